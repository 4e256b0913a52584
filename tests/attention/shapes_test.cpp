// SPDX-License-Identifier: Apache-2.0
// Scalar kernels against the fp64 reference: heads, batches, chunks of queries, masks, in every preset.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "batches.h"

namespace innerkv::test {
namespace {

PageFormat base() { return find_preset("base").format(64); }

class Shapes : public testing::TestWithParam<std::string_view> {
protected:
    static PageFormat format(int head_dim = 64) { return find_preset(GetParam()).format(head_dim); }
};

INSTANTIATE_TEST_SUITE_P(Presets, Shapes, testing::ValuesIn(preset_names()),
                         [](const auto& test) { return std::string(test.param); });

TEST_P(Shapes, EveryGroupSizeFrom1To16) {
    for (int group = 1; group <= 16; ++group) {
        SCOPED_TRACE(group);
        Batch batch(shape_of(format(), group, 1));
        SequenceSpec spec = spec_for(format(), 64);
        spec.sink = 0;
        batch.add(spec);
        expect_close_to_reference(batch);
    }
}

TEST_P(Shapes, GroupLargerThanTheRowsOfACall) {
    Batch batch = group_of_71(format());
    expect_close_to_reference(batch);
}

TEST_P(Shapes, ChunksOf1To64QueryTokens) {
    for (const int tokens : {1, 3, 16, 31, 32, 33, 64}) {
        SCOPED_TRACE(tokens);
        Batch batch = chunk_of(format(), tokens);
        expect_close_to_reference(batch);
    }
}

TEST_P(Shapes, QueriesBeforeTheEnd) {
    for (const int position : {0, 31, 32, 40, 63, 64, 95, 120}) {
        SCOPED_TRACE(position);
        Batch batch = queries_at(format(), position);
        expect_close_to_reference(batch);
    }
}

TEST_P(Shapes, BatchOfUnequalLengths) {
    Batch batch(shape_of(format(128), 4, 2));
    for (const int quantized : {0, 32, 160, 320}) {
        SequenceSpec spec = spec_for(format(), quantized);
        spec.recent += quantized % 29;
        batch.add(spec, quantized == 160 ? 7 : 1);
    }
    expect_close_to_reference(batch);
}

TEST_P(Shapes, RunsThatEndInsideAPage) {
    for (const int tokens : {1, 15, 16, 17, 31, 33}) {
        SCOPED_TRACE(tokens);
        Batch batch = runs_that_end_inside_a_page(format(80), tokens);
        expect_close_to_reference(batch);
    }
}

TEST_P(Shapes, SlidingWindows) {
    for (const int window : {1, 5, 33, 64, 129, 500}) {
        SCOPED_TRACE(window);
        Batch batch = under_sliding_window(format(), window);
        expect_close_to_reference(batch);
    }
}

TEST_P(Shapes, SoftCaps) {
    for (const float cap : {0.5f, 50.0f}) {
        SCOPED_TRACE(cap);
        const Batch batch = under_soft_cap(format(), cap);
        const Result expected = reference(batch);
        EXPECT_LT(largest_error(attend(batch, Arithmetic::exact), expected), 1e-5);
        // Logits spread four times as far as the default scale's, and so do their errors.
        EXPECT_LT(mean_error(attend(batch, Arithmetic::integer), expected), 0.04);
    }
}

/// Two halves of a sequence, attended to apart and merged, are the whole.
TEST(States, OfPartsMerge) {
    Batch batch(shape_of(base(), 4, 2));
    SequenceSpec spec;
    spec.quantized = 256;
    batch.add(spec);
    const Result whole = attend(batch, Arithmetic::integer);

    SequenceView front = batch.sequences[0].view();
    SequenceView back = front;
    front.recent = {};
    back.sink = back.quantized = {};
    QueryBlock& block = batch.blocks[0];
    block.sequence = &front;
    Result merged = attend(batch, Arithmetic::integer);
    block.sequence = &back;
    const Result other = attend(batch, Arithmetic::integer);
    for (std::size_t row = 0; row < whole.out.size(); ++row)
        merge_attention(merged.out[row], merged.log_sum_exp[row], other.out[row],
                        other.log_sum_exp[row]);
    EXPECT_LT(largest_error(merged, whole), 1e-6);
    EXPECT_LT(log_sum_exp_error(merged, whole), 1e-5);
}

TEST(States, EmptyOnesAreNeutral) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    std::vector<float> state = {1.0f, 2.0f};
    const std::vector<float> empty = {0.0f, 0.0f};
    float log_sum_exp = 3.0f;
    merge_attention(state, log_sum_exp, empty, -kInfinity);
    EXPECT_EQ(state, (std::vector<float>{1.0f, 2.0f}));
    EXPECT_EQ(log_sum_exp, 3.0f);

    std::vector<float> target = empty;
    float target_log_sum_exp = -kInfinity;
    merge_attention(target, target_log_sum_exp, state, log_sum_exp);
    EXPECT_EQ(target, state);
    EXPECT_EQ(target_log_sum_exp, 3.0f);

    target = empty;
    target_log_sum_exp = -kInfinity;
    merge_attention(target, target_log_sum_exp, empty, -kInfinity);
    EXPECT_EQ(target, empty);
    EXPECT_EQ(target_log_sum_exp, -kInfinity);
}

TEST(States, LogSumExpIsOptional) {
    Batch batch(shape_of(base(), 4, 2));
    SequenceSpec spec;
    spec.quantized = 64;
    batch.add(spec);
    const Result with = attend(batch, Arithmetic::integer);
    float* log_sum_exp = batch.blocks[0].log_sum_exp;
    batch.blocks[0].log_sum_exp = nullptr;
    Attention(batch.shape, batch.blocks, {Arithmetic::integer, "scalar", 1}).run_all();
    const QueryBlock& block = batch.blocks[0];
    for (int head = 0; head < 4; ++head)
        for (int c = 0; c < 64; ++c)
            EXPECT_EQ(block.out[head * block.out_head_stride + c],
                      with.out[static_cast<std::size_t>(head)][static_cast<std::size_t>(c)]);
    batch.blocks[0].log_sum_exp = log_sum_exp;
}

} // namespace
} // namespace innerkv::test
