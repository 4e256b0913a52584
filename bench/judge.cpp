// SPDX-License-Identifier: Apache-2.0
// What a contender computed and how long it took, as a result: on any device.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

#include "attention_bench.h"
#include "contender.h"
#include "innerkv/error.h"
#include "statistics.h"

namespace innerkv::bench {
namespace {

/// int8 queries and uint8 probabilities change the output by 0.7% on this data.
constexpr double kLargestArithmeticError = 0.01;
/// Two-bit codes reach 0.8 on this data; a wrong layout gives about 0.
constexpr double kSmallestCosine = 0.6;
constexpr double kGigabyte = 1e9;

std::string three_digits(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.3g", value);
    return text;
}

void check(const ContenderResult& result) {
    if (result.arithmetic_error > kLargestArithmeticError)
        throw Error(result.name + " computes wrong attention: relative error " +
                    three_digits(result.arithmetic_error) +
                    " against double precision on the same cache");
    // Written so that NaN fails.
    if (!(result.cosine >= kSmallestCosine))
        throw Error(result.name + " computes wrong attention: cosine " +
                    three_digits(result.cosine) + " with the exact result");
}

} // namespace

void add_times(const AttentionBenchResult& machine, const AttentionCase& attention,
               std::span<const double> samples, ContenderResult& result) {
    const auto bytes = static_cast<double>(result.bytes_read);
    result.median_us = median(samples);
    result.min_us = minimum(samples);
    result.gb_per_s = bytes / kGigabyte / (result.median_us * 1e-6);
    result.percent_of_read_bandwidth = 100.0 * result.gb_per_s / machine.read_bandwidth_gb_per_s;
    result.floor_us = 1e6 * bytes / kGigabyte / machine.read_bandwidth_gb_per_s;
    if (result.integer_rows > 0) {
        const bool alone = result.integer_rows <= attention.rows();
        const double products_us = 1e6 * attention.multiply_accumulates() / kGigabyte /
                                   (alone ? machine.dot_gmac_per_s : machine.shared_dot_gmac_per_s);
        result.floor_us = std::max(result.floor_us, products_us);
    }
    result.times_floor = result.median_us / result.floor_us;
    result.min_times_floor = result.min_us / result.floor_us;
}

ContenderResult judge(const AttentionCase& attention, Contender& contender,
                      std::span<const ExactOutput> exact) {
    contender.wake();
    contender.run();
    contender.rest();
    ContenderResult result;
    result.name = contender.name();
    result.bytes_read = contender.bytes_read();
    result.cosine = 1;
    // NaN is the largest.
    const auto larger = [](double a, double b) { return std::isnan(a) || a > b ? a : b; };
    for (const auto& [sequence, rows] : exact) {
        const std::vector<float> output = judged_output(attention, contender.output(), sequence);
        const std::vector<float> expected = contender.expected_output(sequence);
        for (std::size_t at = 0; at < rows.size(); at += attention.token_elements()) {
            const auto token = [&](const std::vector<float>& all) {
                return std::span(all).subspan(at, attention.token_elements());
            };
            result.relative_error =
                larger(result.relative_error, relative_error(token(output), token(rows)));
            result.cosine = -larger(-result.cosine, -cosine(token(output), token(rows)));
            if (!expected.empty())
                result.arithmetic_error =
                    larger(result.arithmetic_error, relative_error(token(output), token(expected)));
        }
    }
    result.integer_rows = contender.integer_rows();
    check(result);
    return result;
}

} // namespace innerkv::bench
