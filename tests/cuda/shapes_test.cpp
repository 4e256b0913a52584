// SPDX-License-Identifier: Apache-2.0
// Batches, chunks, masks, windows and contexts long enough to be split among all blocks, in every preset.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "batches.h"
#include "device.h"
#include "innerkv/cache.h"

namespace innerkv::test {
namespace {

class DeviceShapes : public OnDevice, public testing::WithParamInterface<std::string_view> {
protected:
    static PageFormat format(int head_dim = 64) { return find_preset(GetParam()).format(head_dim); }
};

INSTANTIATE_TEST_SUITE_P(Presets, DeviceShapes, testing::ValuesIn(preset_names()),
                         [](const auto& test) { return std::string(test.param); });

TEST_P(DeviceShapes, GroupLargerThanAStrip) {
    Batch batch = group_of_71(format());
    expect_device_close_to_reference(batch);
}

TEST_P(DeviceShapes, LongChunks) {
    for (const int tokens : {31, 32, 33, 64}) {
        SCOPED_TRACE(tokens);
        Batch batch = chunk_of(format(), tokens);
        expect_device_close_to_reference(batch);
    }
}

TEST_P(DeviceShapes, QueriesBeforeTheEnd) {
    for (const int position : {0, 31, 32, 40, 63, 64, 95, 120}) {
        SCOPED_TRACE(position);
        Batch batch = queries_at(format(), position);
        expect_device_close_to_reference(batch);
    }
}

TEST_P(DeviceShapes, BatchOfUnequalLengthsAndChunks) {
    Batch batch(shape_of(format(128), 4, 2));
    for (const int quantized : {0, 32, 160, 320, 1600}) {
        SequenceSpec spec = spec_for(format(), quantized);
        spec.recent += quantized % 29;
        batch.add(spec, quantized == 160 ? 7 : 1);
    }
    expect_device_close_to_reference(batch);
}

TEST_P(DeviceShapes, MoreSequencesThanBlocks) {
    Batch batch(shape_of(format(), 4, 2));
    for (int i = 0; i < 150; ++i) {
        SequenceSpec spec = spec_for(format(), 32 * (i % 4));
        spec.sink = i % 33;
        spec.recent = 1 + i % 47;
        batch.add(spec);
    }
    expect_device_close_to_reference(batch);
}

TEST_P(DeviceShapes, RunsThatEndInsideAPage) {
    for (const int tokens : {1, 15, 16, 17, 31, 33}) {
        SCOPED_TRACE(tokens);
        Batch batch = runs_that_end_inside_a_page(format(80), tokens);
        expect_device_close_to_reference(batch);
    }
}

TEST_P(DeviceShapes, SlidingWindows) {
    for (const int window : {1, 5, 33, 64, 129, 500}) {
        SCOPED_TRACE(window);
        Batch batch = under_sliding_window(format(), window);
        expect_device_close_to_reference(batch);
    }
}

TEST_P(DeviceShapes, SoftCaps) {
    for (const float cap : {0.5f, 50.0f}) {
        SCOPED_TRACE(cap);
        const Batch batch = under_soft_cap(format(), cap);
        const Result expected = reference(batch);
        // Logits spread four times as far as the default scale's, and so do their errors.
        EXPECT_LT(mean_error(attend_on_device(batch), expected),
                  format().quantized() ? 0.04 : 2e-3);
    }
}

TEST_P(DeviceShapes, LongContexts) {
    for (const int group : {1, 4, 8}) {
        SCOPED_TRACE(group);
        Batch batch(shape_of(format(128), group, 1));
        batch.add(spec_for(format(), 32 * 600));
        batch.add(spec_for(format(), 32 * 37));
        expect_device_close_to_reference(batch);
    }
}

/// One, two and seven blocks of threads: many pages a warp, blocks that span items, items that span blocks.
TEST_P(DeviceShapes, FewBlocks) {
    for (const int blocks : {1, 2, 7})
        for (const int head_dim : {64, 128, 192})
            for (const int group : {3, 8}) {
                SCOPED_TRACE(testing::Message() << blocks << ", " << head_dim << ", " << group);
                Batch batch(shape_of(format(head_dim), 2 * group, 2));
                SequenceSpec spec = spec_for(format(), 32 * 90);
                spec.epoch_pages = 8;
                spec.first_page = 5;
                if (format().quantized()) spec.transform = {true, true, true, true};
                batch.add(spec);
                spec = spec_for(format(), 32 * 33);
                spec.recent += 17;
                batch.add(spec);
                expect_device_close_to_reference(batch, {.max_blocks = blocks});
            }
}

class DeviceCaches : public OnDevice {};

/// What innerkv::Cache holds, its own transforms and centres in it.
TEST_F(DeviceCaches, OfTheLibraryAreAttendedTo) {
    constexpr int kTokens = 1500;
    constexpr int kHeads = 2;
    constexpr int kDim = 128;
    for (const char* name : {"base", "hybrid", "f16"}) {
        SCOPED_TRACE(name);
        const Preset& preset = find_preset(name);
        CacheConfig config = CacheConfig::from_preset(preset, 1, kHeads, kDim);
        config.max_tokens = kTokens;
        Cache cache(config);
        const SequenceId sequence = cache.create();
        std::mt19937 random(3);
        std::vector<float> rows(static_cast<std::size_t>(kTokens * kHeads * kDim));
        for (int first = 0; first < kTokens; first += 100) {
            gaussian(random, rows);
            AppendRows append{
                sequence,
                100,
                {rows.data(), RowType::f32, kHeads * kDim, kDim},
                {rows.data() + 100 * kHeads * kDim, RowType::f32, kHeads * kDim, kDim},
                {rows.data() + 300 * kHeads * kDim, RowType::f32, 4 * kDim, kDim},
                4};
            cache.append(0, {&append, 1});
        }
        const SequenceView view = cache.view(0, sequence);
        Batch batch(shape_of(preset.format(kDim), 4, kHeads));
        SequenceSpec nothing;
        nothing.sink = nothing.recent = 0;
        batch.add(nothing, 2);
        batch.blocks[0].sequence = &view;
        batch.blocks[0].first_position = kTokens - 2;
        const Result expected = reference(batch);
        const Result result = attend_on_device(batch);
        EXPECT_LT(mean_error(result, expected), 0.01);
        EXPECT_LT(log_sum_exp_error(result, expected), 5e-3);
        EXPECT_GT(preset.k.quantized() ? view.quantized.tokens : view.recent.tokens, 1000);
    }
}

} // namespace
} // namespace innerkv::test
