// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include "attention_case.h"
#include "cases.h"
#include "innerkv/codec.h"

namespace innerkv::bench {
namespace {

constexpr std::int64_t kContext = 50;

struct AllRows {
    std::vector<float> k;
    std::vector<float> v;
};

AllRows all_rows(const AttentionCase& attention, int sequence) {
    const std::size_t elements =
        attention.row_elements() * static_cast<std::size_t>(attention.context);
    AllRows rows{std::vector<float>(elements), std::vector<float>(elements)};
    make_rows(attention, sequence, 0, attention.context, rows.k.data(), rows.v.data());
    return rows;
}

TEST(AttentionCase, RowsDoNotDependOnHowTheyAreCut) {
    const AttentionCase attention = small_case(kContext);
    const AllRows whole = all_rows(attention, 1);
    std::vector<float> k(attention.row_elements() * 7);
    std::vector<float> v(k.size());
    make_rows(attention, 1, 13, 7, k.data(), v.data());
    const auto offset = static_cast<std::ptrdiff_t>(attention.row_elements() * 13);
    EXPECT_TRUE(std::equal(k.begin(), k.end(), whole.k.begin() + offset));
    EXPECT_TRUE(std::equal(v.begin(), v.end(), whole.v.begin() + offset));
    EXPECT_NE(all_rows(attention, 0).k, whole.k);
    EXPECT_NE(whole.k, whole.v);
}

TEST(AttentionCase, ValuesAreHalfPrecisionOfVarianceOne) {
    const AttentionCase attention = small_case(500);
    const AllRows rows = all_rows(attention, 0);
    double sum = 0;
    double squares = 0;
    for (const float value : rows.k) {
        EXPECT_EQ(float_from_f16(f16_from_float(value)), value);
        sum += static_cast<double>(value);
        squares += static_cast<double>(value) * static_cast<double>(value);
    }
    const auto count = static_cast<double>(rows.k.size());
    EXPECT_NEAR(sum / count, 0, 0.02);
    EXPECT_NEAR(squares / count, 1, 0.02);
}

/// Softmax in two passes, of one head and the tokens before `end`.
std::vector<double> attend(const AllRows& rows, const float* query, std::size_t kv_head,
                           std::size_t end) {
    std::vector<double> weights;
    double total = 0;
    for (std::size_t token = 0; token < end; ++token) {
        double logit = 0;
        for (std::size_t channel = 0; channel < 64; ++channel)
            logit += static_cast<double>(query[channel]) *
                     static_cast<double>(rows.k[(token * 2 + kv_head) * 64 + channel]);
        weights.push_back(std::exp(logit / 8));
        total += weights.back();
    }
    std::vector<double> out(64);
    for (std::size_t token = 0; token < end; ++token)
        for (std::size_t channel = 0; channel < 64; ++channel)
            out[channel] += weights[token] / total *
                            static_cast<double>(rows.v[(token * 2 + kv_head) * 64 + channel]);
    return out;
}

TEST(AttentionCase, ExactAttentionIsSoftmaxOfLogitsTimesValues) {
    AttentionCase attention = small_case(kContext);
    for (const int tokens : {1, 5}) {
        attention.tokens = tokens;
        const std::vector<float> out = exact_attention(attention, 1);
        const std::vector<float> queries = make_queries(attention, 1);
        const AllRows rows = all_rows(attention, 1);
        const std::vector<std::size_t> judged =
            tokens == 1 ? std::vector<std::size_t>{0} : std::vector<std::size_t>{0, 4};
        ASSERT_EQ(out.size(), judged.size() * 6 * 64);
        for (std::size_t i = 0; i < judged.size(); ++i) {
            const std::size_t end = 50 - static_cast<std::size_t>(tokens) + judged[i] + 1;
            for (std::size_t head = 0; head < 6; ++head) {
                const std::vector<double> expected =
                    attend(rows, &queries[(judged[i] * 6 + head) * 64], head / 3, end);
                for (std::size_t channel = 0; channel < 64; ++channel)
                    EXPECT_NEAR(out[(i * 6 + head) * 64 + channel], expected[channel], 1e-6);
            }
        }
    }
}

TEST(AttentionCase, CountsOfWork) {
    AttentionCase attention = small_case(kContext);
    EXPECT_EQ(attention.query_elements(), 384u);
    EXPECT_EQ(attention.row_elements(), 128u);
    EXPECT_EQ(attention.multiply_accumulates(), 2.0 * 384 * 50 * 2);
    EXPECT_EQ(attention.rows(), 3);
    // Three tokens see 48, 49 and 50.
    attention.tokens = 3;
    EXPECT_EQ(attention.query_elements(), 3 * 384u);
    EXPECT_EQ(attention.first_position(1), 47);
    EXPECT_EQ(attention.multiply_accumulates(), 2.0 * 384 * (48 + 49 + 50) * 2);
    attention.batch = 4;
    attention.ragged = true;
    EXPECT_EQ(attention.context_of(0), 13);
    EXPECT_EQ(attention.context_of(3), 50);
    EXPECT_EQ(attention.total_context(), 13 + 25 + 38 + 50);
    EXPECT_EQ(attention.multiply_accumulates(), 2.0 * 3 * 384 * (12 + 24 + 37 + 49));
}

TEST(AttentionCase, ErrorsOfVectors) {
    const std::vector<float> expected{3, 4};
    EXPECT_NEAR(relative_error(std::vector<float>{3, 4.5f}, expected), 0.1, 1e-12);
    EXPECT_NEAR(cosine(std::vector<float>{-4, 3}, expected), 0, 1e-12);
    EXPECT_NEAR(cosine(std::vector<float>{6, 8}, expected), 1, 1e-12);
}

} // namespace
} // namespace innerkv::bench
