// SPDX-License-Identifier: Apache-2.0
#include "score.h"

#include <algorithm>

namespace innerkv::cli {
namespace {

/// What is known of a cache without its rows.
CacheScore describe(const CacheFormat& format, const runner::CacheReport& report) {
    CacheScore result;
    result.cache = format.cache;
    result.bits_per_value = format.bits_per_value;
    result.never_quantized =
        format.bits_per_value < 16.0 && report.tokens > 0 && report.quantized_pages == 0;
    if (report.f16_bytes > 0)
        result.bits_per_value_total =
            16.0 * static_cast<double>(report.bytes) / static_cast<double>(report.f16_bytes);
    return result;
}

} // namespace

std::vector<CacheScore> sum_up(const std::vector<CacheFormat>& caches,
                               const std::vector<std::vector<Standing>>& items) {
    std::vector<CacheScore> scores;
    for (std::size_t index = 0; index < caches.size(); ++index) {
        std::vector<RowScore> rows;
        std::vector<double> means;
        runner::CacheReport report;
        for (const std::vector<Standing>& item : items) {
            means.push_back(summarize(item[index].rows).divergence_mean);
            rows.insert(rows.end(), item[index].rows.begin(), item[index].rows.end());
            report = item[index].report;
        }
        CacheScore score = describe(caches[index], report);
        score.score = summarize(rows);
        score.rows = std::move(rows);
        score.item_divergences = std::move(means);
        scores.push_back(std::move(score));
    }
    return scores;
}

std::vector<Stretch> by_position(std::span<const RowScore> rows, std::size_t length,
                                 std::int64_t first, std::size_t stretches) {
    stretches = std::min(stretches, length);
    std::vector<Stretch> result;
    for (std::size_t stretch = 0; stretch < stretches; ++stretch) {
        const std::size_t begin = length * stretch / stretches;
        const std::size_t end = length * (stretch + 1) / stretches;
        std::vector<RowScore> chosen;
        for (std::size_t item = 0; item < rows.size(); item += length) {
            const std::span<const RowScore> part = rows.subspan(item + begin, end - begin);
            chosen.insert(chosen.end(), part.begin(), part.end());
        }
        result.push_back({first + static_cast<std::int64_t>(begin),
                          static_cast<double>(first) + 0.5 * static_cast<double>(begin + end - 1),
                          summarize(chosen)});
    }
    return result;
}

} // namespace innerkv::cli
