// SPDX-License-Identifier: Apache-2.0
#include "kld.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace innerkv::cli {

Prediction predict(std::span<const float> logits) {
    const auto top = std::ranges::max_element(logits);
    const float largest = *top;
    double sum = 0;
    // exp in float: its error of 1e-7 is below what float logits carry themselves. The sum in double.
    for (const float logit : logits) sum += static_cast<double>(std::exp(logit - largest));
    return {static_cast<double>(largest) + std::log(sum),
            static_cast<std::int32_t>(top - logits.begin())};
}

double divergence(std::span<const float> reference, const Prediction& reference_prediction,
                  std::span<const float> logits, const Prediction& prediction) {
    const auto shift = static_cast<float>(reference_prediction.log_sum_exp);
    const double offset = prediction.log_sum_exp - reference_prediction.log_sum_exp;
    double sum = 0;
    for (std::size_t token = 0; token < reference.size(); ++token) {
        const auto probability = static_cast<double>(std::exp(reference[token] - shift));
        const double difference =
            static_cast<double>(reference[token]) - static_cast<double>(logits[token]);
        sum += probability * (difference + offset);
    }
    return sum;
}

bool is_possible(const RowScore& row) {
    constexpr double kRounding = 0.1; // sums of floats, with much room
    constexpr double kMost = 1e6;
    // Written so that NaN fails.
    return row.log_likelihood <= kRounding && row.log_likelihood >= -kMost &&
           row.divergence >= -kRounding && row.divergence <= kMost;
}

Score summarize(std::span<const RowScore> rows) {
    Score score;
    score.tokens = static_cast<std::int64_t>(rows.size());
    if (rows.empty()) return score;
    const auto count = static_cast<double>(rows.size());
    std::vector<double> divergences;
    double log_likelihood = 0;
    double divergence_sum = 0;
    std::int64_t same_top = 0;
    for (const RowScore& row : rows) {
        log_likelihood += row.log_likelihood;
        divergence_sum += row.divergence;
        same_top += row.same_top ? 1 : 0;
        divergences.push_back(row.divergence);
    }
    std::ranges::sort(divergences);
    const auto rank = static_cast<std::size_t>(std::ceil(0.99 * count));
    score.divergence_mean = divergence_sum / count;
    score.perplexity = std::exp(-log_likelihood / count);
    score.same_top = static_cast<double>(same_top) / count;
    score.divergence_p99 = divergences[rank - 1];
    score.divergence_max = divergences.back();
    return score;
}

std::optional<double> standard_error(std::span<const double> means) {
    if (means.size() < 2) return std::nullopt;
    const auto count = static_cast<double>(means.size());
    const double mean = std::accumulate(means.begin(), means.end(), 0.0) / count;
    double squares = 0;
    for (const double value : means) squares += (value - mean) * (value - mean);
    return std::sqrt(squares / (count - 1) / count);
}

} // namespace innerkv::cli
