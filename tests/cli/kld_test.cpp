// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "kld.h"
#include "share_rows.h"

namespace innerkv::cli {
namespace {

std::vector<float> random_logits(std::size_t count, std::uint32_t seed, float spread) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0, spread);
    std::vector<float> logits(count);
    for (float& logit : logits) logit = normal(random);
    return logits;
}

/// Probabilities in long double, spelled out.
std::vector<long double> softmax(const std::vector<float>& logits) {
    long double total = 0;
    std::vector<long double> probabilities;
    for (const float logit : logits) {
        probabilities.push_back(std::exp(static_cast<long double>(logit)));
        total += probabilities.back();
    }
    for (long double& probability : probabilities) probability /= total;
    return probabilities;
}

TEST(Kld, LogSumExpAndTop) {
    for (const float shift : {0.0f, -300.0f, 500.0f}) {
        std::vector<float> logits = {1.0f, 3.0f, -2.0f, 3.0f};
        for (float& logit : logits) logit += shift;
        const Prediction prediction = predict(logits);
        EXPECT_EQ(prediction.top, 1);
        EXPECT_NEAR(prediction.log_sum_exp,
                    std::log(std::exp(1) + 2 * std::exp(3) + std::exp(-2)) +
                        static_cast<double>(shift),
                    1e-5);
    }
}

TEST(Kld, DivergenceIsItsDefinition) {
    for (const float spread : {0.1f, 2.0f, 6.0f}) {
        const std::vector<float> reference = random_logits(5000, 1, spread);
        std::vector<float> other = random_logits(5000, 2, 0.3f);
        for (std::size_t i = 0; i < other.size(); ++i) other[i] += reference[i] + 7.0f;
        const auto p = softmax(reference);
        const auto q = softmax(other);
        long double expected = 0;
        for (std::size_t i = 0; i < p.size(); ++i) expected += p[i] * std::log(p[i] / q[i]);
        EXPECT_NEAR(divergence(reference, predict(reference), other, predict(other)),
                    static_cast<double>(expected), 2e-6);
    }
}

TEST(Kld, OfAPredictionWithItselfIsZero) {
    const std::vector<float> logits = random_logits(49152, 3, 4.0f);
    const Prediction prediction = predict(logits);
    EXPECT_EQ(divergence(logits, prediction, logits, prediction), 0);
}

TEST(Kld, Summary) {
    std::vector<RowScore> rows;
    for (int i = 1; i <= 200; ++i) rows.push_back({-0.5, static_cast<double>(201 - i), i % 4 == 0});
    const Score score = summarize(rows);
    EXPECT_EQ(score.tokens, 200);
    EXPECT_NEAR(score.perplexity, std::exp(0.5), 1e-12);
    EXPECT_DOUBLE_EQ(score.divergence_mean, 100.5);
    EXPECT_EQ(score.divergence_p99, 198); // 198 of 200 do not exceed it
    EXPECT_EQ(score.divergence_max, 200);
    EXPECT_EQ(score.same_top, 0.25);
    rows.resize(150); // divergences 51 to 200: the rank is 148.5, rounded up
    EXPECT_EQ(summarize(rows).divergence_p99, 50 + 149);
    EXPECT_EQ(summarize(std::vector<RowScore>(1)).tokens, 1);
    EXPECT_EQ(summarize({}).tokens, 0);
}

TEST(Kld, StandardErrorOfAMean) {
    EXPECT_EQ(standard_error({}), std::nullopt);
    EXPECT_EQ(standard_error(std::vector<double>{3.0}), std::nullopt);
    EXPECT_EQ(standard_error(std::vector<double>{3.0, 3.0}), 0.0);
    EXPECT_DOUBLE_EQ(*standard_error(std::vector<double>{1.0, 2.0}), 0.5);
    // Deviations -2, -1, 0, 3: squares sum to 14.
    EXPECT_DOUBLE_EQ(*standard_error(std::vector<double>{2.0, 3.0, 4.0, 7.0}),
                     std::sqrt(14.0 / 3.0 / 4.0));
}

TEST(Kld, WhatNoModelGives) {
    const double nan = std::nan("");
    for (const RowScore& row : {RowScore{-1, 0}, RowScore{1e-6, -1e-6}, RowScore{-9e5, 9e5}})
        EXPECT_TRUE(is_possible(row));
    for (const RowScore& row : {RowScore{-1, -5}, RowScore{1, 0}, RowScore{-1, 1e300},
                                RowScore{-1e7, 0}, RowScore{nan, 0}, RowScore{-1, nan}})
        EXPECT_FALSE(is_possible(row)) << row.log_likelihood << " " << row.divergence;
}

TEST(Kld, RowsAreSharedOutOnce) {
    for (const int threads : {1, 2, 7}) {
        for (const std::size_t count : {0u, 1u, 5u, 100u}) {
            std::vector<std::atomic<int>> seen(count);
            share_rows(count, threads, [&](std::size_t first, std::size_t last) {
                for (std::size_t row = first; row < last; ++row) ++seen[row];
            });
            for (const auto& times : seen) EXPECT_EQ(times, 1);
        }
    }
}

} // namespace
} // namespace innerkv::cli
