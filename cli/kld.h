// SPDX-License-Identifier: Apache-2.0
// How far a cache's predictions are from a reference's, token by token.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace innerkv::cli {

/// Logits in terms of what is asked of them: log p(token) = logits[token] - log_sum_exp.
struct Prediction {
    double log_sum_exp = 0;
    std::int32_t top = 0; ///< the most likely token, the first of equals
};

Prediction predict(std::span<const float> logits);

/// sum over tokens of p (log p - log q), natural logarithms, p the reference's distribution.
double divergence(std::span<const float> reference, const Prediction& reference_prediction,
                  std::span<const float> logits, const Prediction& prediction);

/// What one row, the prediction of one token, gave.
struct RowScore {
    double log_likelihood = 0; ///< of the token that came
    double divergence = 0;     ///< from the reference
    bool same_top = false;     ///< as the reference's
    bool correct = false;      ///< the token that came was the most likely
};

/// Whether a row can be what a model gave, rounding allowed for: finite, the probability at most 1, the divergence
/// at least 0, neither of them beyond a million nats.
bool is_possible(const RowScore& row);

struct Score {
    std::int64_t tokens = 0;
    double perplexity = 0;
    double divergence_mean = 0;
    double divergence_p99 = 0; ///< the smallest that at least 99% of the rows do not exceed
    double divergence_max = 0;
    double same_top = 0; ///< fraction of 1
};

/// Zeros where there are no rows.
Score summarize(std::span<const RowScore> rows);

/// Of the mean of `means`, each over a stretch of text of its own: their sample deviation over the root of their
/// number. Nothing where there are fewer than two.
std::optional<double> standard_error(std::span<const double> means);

} // namespace innerkv::cli
