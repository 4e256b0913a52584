// SPDX-License-Identifier: Apache-2.0
// Sequences with nothing in them, distributions made to break things, memory full of NaN.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "batches.h"

namespace innerkv::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

PageFormat base(int head_dim = 64) { return find_preset("base").format(head_dim); }

class Edge : public testing::TestWithParam<std::string_view> {
protected:
    Result run(const Batch& batch, Arithmetic arithmetic = Arithmetic::integer) const {
        return attend(batch, arithmetic, GetParam(), 2);
    }
};

INSTANTIATE_TEST_SUITE_P(Available, Edge, testing::ValuesIn(available_isas()),
                         [](const auto& test) { return std::string(test.param); });

TEST_P(Edge, EmptySequence) {
    Batch batch(shape_of(base(), 4, 2));
    SequenceSpec spec;
    spec.sink = spec.recent = 0;
    batch.add(spec, 3);
    expect_nothing_seen(run(batch));
    expect_nothing_seen(reference(batch));
}

TEST_P(Edge, NoBlocks) {
    const Batch batch(shape_of(base(), 4, 2));
    EXPECT_EQ(Attention(batch.shape, batch.blocks).items(), 0);
}

TEST_P(Edge, WindowOverDroppedTokens) {
    const Batch batch = window_over_dropped_tokens();
    expect_nothing_seen(run(batch));
    expect_nothing_seen(reference(batch));
}

/// Some rows of a chunk see nothing, their neighbours do.
TEST_P(Edge, RowsThatSeeNothingBesideRowsThatDo) {
    const Batch batch = rows_that_see_nothing_beside_rows_that_do();
    const Result result = run(batch);
    const Result expected = reference(batch);
    for (std::size_t row = 0; row < 8; ++row) EXPECT_EQ(result.log_sum_exp[row], -kInfinity);
    EXPECT_LT(largest_error(result, expected), 0.02);
    EXPECT_LT(largest_error(run(batch, Arithmetic::exact), expected), 1e-5);
}

TEST_P(Edge, OnlyQuantizedOrOnlyWindows) {
    for (const bool quantized : {false, true}) {
        Batch batch(shape_of(base(), 4, 2));
        SequenceSpec spec;
        spec.sink = quantized ? 0 : 32;
        spec.recent = quantized ? 0 : 96;
        spec.quantized = quantized ? 128 : 0;
        batch.add(spec);
        const Result expected = reference(batch);
        EXPECT_LT(largest_error(run(batch), expected), quantized ? 0.02 : 1e-5);
        EXPECT_LT(largest_error(run(batch, Arithmetic::exact), expected), 1e-5);
    }
}

TEST_P(Edge, OneTokenDominates) {
    for (const int token : {0, 40, 300, 350}) {
        SCOPED_TRACE(token);
        const Batch batch = one_token_dominates(token);
        const Result expected = reference(batch);
        EXPECT_LT(largest_error(run(batch), expected), 0.01);
        EXPECT_LT(largest_error(run(batch, Arithmetic::exact), expected), 1e-5);
    }
}

TEST_P(Edge, EqualKeysGiveEqualWeights) {
    const Batch batch = equal_keys();
    const Result expected = reference(batch);
    EXPECT_LT(largest_error(run(batch), expected), 0.01);
    EXPECT_LT(largest_error(run(batch, Arithmetic::exact), expected), 1e-5);
}

TEST_P(Edge, TinyLogits) {
    for (const float size : {1e-3f, 1e-20f, 1e-38f, 0.0f}) {
        SCOPED_TRACE(size);
        const Batch batch = tiny_logits(size);
        const Result expected = reference(batch);
        EXPECT_LT(largest_error(run(batch), expected), 0.01);
        EXPECT_LT(largest_error(run(batch, Arithmetic::exact), expected), 1e-5);
    }
}

TEST_P(Edge, LogitsOfTenThousand) {
    const Batch batch = logits_of_ten_thousand();
    const Result expected = reference(batch);
    EXPECT_NEAR(expected.log_sum_exp[0], 35.0 * 35.0 * 8.0, 100.0);
    // An fp32 logit of this size has steps of 1e-3, and so have weights that depend on it.
    EXPECT_LT(largest_error(run(batch), expected), 0.01);
    EXPECT_LT(largest_error(run(batch, Arithmetic::exact), expected), 2e-3);
}

TEST_P(Edge, OneTokenDominatesAtAnySize) {
    for (const float largest : {1e5f, -1e5f, 1.4e5f, -1.4e5f, 1e6f, -1e6f}) {
        SCOPED_TRACE(largest);
        const Batch batch = one_logit_a_tenth_larger(largest);
        const Result expected = reference(batch);
        EXPECT_NEAR(expected.log_sum_exp[0], largest, 1e-3f * std::abs(largest));
        EXPECT_LT(largest_error(run(batch), expected), 1e-5);
        EXPECT_LT(largest_error(run(batch, Arithmetic::exact), expected), 1e-5);
    }
}

TEST_P(Edge, RandomLogitsOfTenThousandStayFinite) {
    const Batch batch = random_logits_of_ten_thousand();
    const Result expected = reference(batch);
    EXPECT_LT(largest_error(run(batch, Arithmetic::exact), expected), 1e-4);
    const Result integer = run(batch);
    for (const auto& row : integer.out)
        for (const float value : row) EXPECT_LT(std::abs(value), 6.0f);
}

/// Every page's logits exceed those in front of it by far: the running reference moves each time.
TEST_P(Edge, LogitsThatGrowPageByPage) {
    Batch batch(shape_of(base(), 2, 1));
    SequenceSpec spec;
    spec.quantized = 512;
    spec.k = [count = 0](std::mt19937& random, std::vector<float>& row) mutable {
        gaussian(random, row);
        const int page = count++ / 32;
        const float level = 0.5f * static_cast<float>(page);
        for (float& value : row) value = 0.1f * value + level;
    };
    for (const float sign : {1.0f, -1.0f}) {
        batch.blocks.clear();
        batch.add(spec, 1, constant(sign));
        const Result expected = reference(batch);
        EXPECT_LT(largest_error(run(batch), expected), 0.02);
        EXPECT_LT(largest_error(run(batch, Arithmetic::exact), expected), 1e-5);
    }
}

/// In the second of three tokens, second of two heads; its neighbours get the bits they get without it.
TEST_P(Edge, QueriesThatAreNotFiniteGiveNan) {
    for (const float fault :
         {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity, 1e38f})
        for (const float cap : {0.0f, 5.0f})
            for (const int parts : {1, 2, 3}) { // windows, quantized pages, both
                SCOPED_TRACE(testing::Message() << fault << ", " << cap << ", " << parts);
                Batch batch = three_tokens_of_two_heads(parts);
                batch.shape.soft_cap = cap;
                for (const Arithmetic arithmetic : {Arithmetic::integer, Arithmetic::exact}) {
                    const Result expected = run(batch, arithmetic);
                    float& element = element_of_row_3(batch);
                    const float before = std::exchange(element, fault);
                    const Result result = run(batch, arithmetic);
                    if (parts == 3 && !std::isfinite(fault)) expect_nan(reference(batch), 3);
                    element = before;
                    expect_fault_in_row_3(result, expected);
                }
            }
}

TEST_P(Edge, QueriesThatAreNotFiniteAndSeeNothing) {
    Batch batch(shape_of(base(), 2, 1));
    SequenceSpec spec;
    spec.sink = spec.recent = 0;
    batch.add(spec, 1, constant(kInfinity));
    expect_nothing_seen(run(batch));
    expect_nothing_seen(reference(batch));
}

TEST_P(Edge, LargestValuesOfF16) {
    const Batch batch = largest_values_of_f16();
    const Result expected = reference(batch);
    EXPECT_LT(largest_error(run(batch), expected), 0.01);
    EXPECT_LT(largest_error(run(batch, Arithmetic::exact), expected), 1e-5);
}

/// Leaves NaN where the next call's scratch will be.
[[gnu::noinline]] void poison_stack() {
    volatile unsigned char memory[300000];
    for (volatile unsigned char& byte : memory) byte = 0xff;
}

TEST_P(Edge, ScratchIsWrittenBeforeItIsRead) {
    for (const int head_dim : {64, 80, 128, 192}) {
        for (const Arithmetic arithmetic : {Arithmetic::integer, Arithmetic::exact}) {
            Batch batch(shape_of(find_preset("hybrid").format(head_dim), 3, 1));
            SequenceSpec spec;
            spec.quantized = 70;
            spec.recent = 40;
            batch.add(spec, 3);
            const Result expected = run(batch, arithmetic);
            const Result result = collect(batch, [&] {
                Attention attention(batch.shape, batch.blocks, {arithmetic, GetParam(), 1});
                for (int item = 0; item < attention.items(); ++item) {
                    poison_stack();
                    attention.run(item);
                }
            });
            EXPECT_EQ(result.out, expected.out);
            EXPECT_EQ(result.log_sum_exp, expected.log_sum_exp);
        }
    }
}

/// Gaps between heads, rows of queries and outputs: what was NaN still is.
TEST_P(Edge, NothingIsWrittenBesideTheOutput) {
    Batch batch(shape_of(base(80), 4, 2));
    SequenceSpec spec;
    spec.quantized = 64;
    batch.add(spec, 5);
    run(batch);
    const QueryBlock& block = batch.blocks[0];
    for (int token = 0; token < 5; ++token)
        for (int head = 0; head < 4; ++head)
            for (int c = 80; c < 83; ++c)
                EXPECT_TRUE(std::isnan(
                    block.out[token * block.out_token_stride + head * block.out_head_stride + c]));
}

} // namespace
} // namespace innerkv::test
