// SPDX-License-Identifier: Apache-2.0
// Sequences with nothing in them, distributions made to break things, queries that are no numbers.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "batches.h"
#include "device.h"

namespace innerkv::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

PageFormat base(int head_dim = 64) { return find_preset("base").format(head_dim); }

class DeviceEdge : public OnDevice {};

TEST_F(DeviceEdge, EmptySequence) {
    Batch batch(shape_of(base(), 4, 2));
    SequenceSpec spec;
    spec.sink = spec.recent = 0;
    batch.add(spec, 3);
    expect_nothing_seen(attend_on_device(batch));
}

TEST_F(DeviceEdge, EmptyBesideFull) {
    Batch batch(shape_of(base(), 4, 2));
    SequenceSpec spec;
    spec.quantized = 640;
    batch.add(spec);
    SequenceSpec nothing;
    nothing.sink = nothing.recent = 0;
    batch.add(nothing);
    batch.add(spec);
    const Result result = attend_on_device(batch);
    const Result expected = reference(batch);
    EXPECT_LT(largest_error(result, expected), 0.02);
    EXPECT_EQ(result.log_sum_exp[4], -kInfinity);
}

TEST_F(DeviceEdge, WindowOverDroppedTokens) {
    const Batch batch = window_over_dropped_tokens();
    expect_nothing_seen(attend_on_device(batch));
}

TEST_F(DeviceEdge, RowsThatSeeNothingBesideRowsThatDo) {
    const Batch batch = rows_that_see_nothing_beside_rows_that_do();
    const Result result = attend_on_device(batch);
    for (std::size_t row = 0; row < 8; ++row) EXPECT_EQ(result.log_sum_exp[row], -kInfinity);
    EXPECT_LT(largest_error(result, reference(batch)), 0.02);
}

TEST_F(DeviceEdge, OneTokenDominates) {
    for (const int token : {0, 40, 300, 350}) {
        SCOPED_TRACE(token);
        const Batch batch = one_token_dominates(token);
        EXPECT_LT(largest_error(attend_on_device(batch), reference(batch)), 0.01);
    }
}

TEST_F(DeviceEdge, EqualKeysGiveEqualWeights) {
    const Batch batch = equal_keys();
    EXPECT_LT(largest_error(attend_on_device(batch), reference(batch)), 0.01);
}

TEST_F(DeviceEdge, TinyLogits) {
    for (const float size : {1e-3f, 1e-20f, 1e-38f, 0.0f}) {
        SCOPED_TRACE(size);
        const Batch batch = tiny_logits(size);
        EXPECT_LT(largest_error(attend_on_device(batch), reference(batch)), 0.01);
    }
}

/// Scales of keys and values from fp16's smallest to its largest.
TEST_F(DeviceEdge, ScalesOfAllSizes) {
    for (const char* name : {"base", "hybrid", "k8v8"})
        for (const float size : {1e-6f, 1e-4f, 1e-2f, 10.0f, 1e3f, 1e4f}) {
            SCOPED_TRACE(testing::Message() << name << " " << size);
            Batch batch(shape_of(find_preset(name).format(64), 2, 1));
            SequenceSpec spec;
            spec.sink = spec.recent = 0;
            spec.quantized = 256;
            spec.k = spec.v = scaled(size);
            batch.add(spec, 1, scaled(1.0f / size));
            const Result expected = reference(batch);
            EXPECT_LT(largest_error(attend_on_device(batch), expected), 0.02);
        }
}

TEST_F(DeviceEdge, LogitsOfTenThousand) {
    const Batch batch = logits_of_ten_thousand();
    // An fp32 logit of this size has steps of 1e-3, and so have weights that depend on it.
    EXPECT_LT(largest_error(attend_on_device(batch), reference(batch)), 0.01);
}

TEST_F(DeviceEdge, OneTokenDominatesAtAnySize) {
    for (const float largest : {1e5f, -1e5f, 1e6f, -1e6f}) {
        SCOPED_TRACE(largest);
        const Batch batch = one_logit_a_tenth_larger(largest);
        EXPECT_LT(largest_error(attend_on_device(batch), reference(batch)), 1e-4);
    }
}

TEST_F(DeviceEdge, RandomLogitsOfTenThousandStayFinite) {
    const Batch batch = random_logits_of_ten_thousand();
    for (const auto& row : attend_on_device(batch).out)
        for (const float value : row) EXPECT_LT(std::abs(value), 6.0f);
}

/// Every page's logits exceed those in front of it by far, or fall behind: the reference moves each time.
TEST_F(DeviceEdge, LogitsThatGrowPageByPage) {
    for (const int group : {2, 8})
        for (const float sign : {1.0f, -1.0f}) {
            SCOPED_TRACE(testing::Message() << group << " " << sign);
            Batch batch(shape_of(base(), 32 * group, 32)); // so that a warp has many pages
            SequenceSpec spec;
            spec.quantized = 32 * 150;
            spec.k = [count = 0](std::mt19937& random, std::vector<float>& row) mutable {
                gaussian(random, row);
                const float level = 0.05f * static_cast<float>(count++ / 32 % 150);
                for (float& value : row) value = 0.1f * value + level;
            };
            batch.add(spec, 1, constant(sign));
            const Result expected = reference(batch);
            EXPECT_LT(largest_error(attend_on_device(batch), expected), 0.02);
        }
}

/// In the second of three tokens, second of two heads; its neighbours get the bits they get without it.
TEST_F(DeviceEdge, QueriesThatAreNotFiniteGiveNan) {
    for (const float fault :
         {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity, 1e38f})
        for (const int parts : {1, 2, 3}) { // windows, quantized pages, both
            SCOPED_TRACE(testing::Message() << fault << ", " << parts);
            Batch batch = three_tokens_of_two_heads(parts);
            const Result expected = attend_on_device(batch);
            float& element = element_of_row_3(batch);
            const float before = std::exchange(element, fault);
            const Result result = attend_on_device(batch);
            element = before;
            expect_fault_in_row_3(result, expected);
        }
}

TEST_F(DeviceEdge, QueriesThatAreNotFiniteAndSeeNothing) {
    Batch batch(shape_of(base(), 2, 1));
    SequenceSpec spec;
    spec.sink = spec.recent = 0;
    batch.add(spec, 1, constant(kInfinity));
    expect_nothing_seen(attend_on_device(batch));
}

TEST_F(DeviceEdge, LargestValuesOfF16) {
    const Batch batch = largest_values_of_f16();
    EXPECT_LT(largest_error(attend_on_device(batch), reference(batch)), 0.01);
}

/// Of the first of two sequences: NaN for all tokens that there is room for, nothing behind; the other is answered.
TEST_F(DeviceEdge, MoreQueryTokensThanThereIsRoomFor) {
    for (const int tokens : {1, 3, 100})
        for (const int asked : {tokens + 1, std::numeric_limits<int>::max(), -1}) {
            SCOPED_TRACE(testing::Message() << asked << " of " << tokens);
            Batch batch(shape_of(base(), 4, 2));
            SequenceSpec spec;
            spec.quantized = 320;
            spec.recent = 100;
            batch.add(spec, tokens);
            batch.add(spec, tokens);
            DeviceBatch device(batch);
            cuda::Sequence changed;
            auto* const first = const_cast<cuda::Sequence*>(device.sequences().data());
            expect_success(cudaMemcpy(&changed, first, sizeof changed, cudaMemcpyDeviceToHost));
            changed.query_tokens = asked;
            expect_success(cudaMemcpy(first, &changed, sizeof changed, cudaMemcpyHostToDevice));
            cuda::AttentionLimits limits = device.limits();
            limits.max_history_tokens = 4096; // on some devices chunks are another kernel's
            cuda::Attention attention(batch.shape, limits);
            const std::size_t rows = static_cast<std::size_t>(tokens) * 4;
            std::vector<float> sums(2 * rows + 64, 0.5f);
            const DeviceBuffer log_sum_exp(sums.data(), sums.size() * sizeof(float));
            cuda::AttentionCall call = device.call();
            call.log_sum_exp = log_sum_exp.as<float>();
            const Result result = collect(batch, [&] {
                attention.run(call);
                expect_success(cudaDeviceSynchronize());
                device.fetch(batch);
            });
            log_sum_exp.read(sums.data(), sums.size() * sizeof(float));
            for (std::size_t row = 0; row < rows; ++row) {
                EXPECT_TRUE(std::isnan(sums[row])) << row;
                for (const float value : result.out[row]) EXPECT_TRUE(std::isnan(value)) << row;
                EXPECT_TRUE(std::isfinite(sums[rows + row])) << row;
                for (const float value : result.out[rows + row])
                    EXPECT_TRUE(std::isfinite(value)) << row;
            }
            for (std::size_t i = 2 * rows; i < sums.size(); ++i) EXPECT_EQ(sums[i], 0.5f);
            expect_only_outputs_written(batch, device, 0);
        }
}

TEST_F(DeviceEdge, NothingIsWrittenBesideTheOutput) {
    Batch batch(shape_of(base(80), 4, 2));
    SequenceSpec spec;
    spec.quantized = 640;
    batch.add(spec, 5);
    batch.add(spec, 2); // three tokens fewer than there is room for
    DeviceBatch device(batch);
    cuda::Attention attention(batch.shape, device.limits());
    attention.run(device.call());
    expect_only_outputs_written(batch, device);
}

} // namespace
} // namespace innerkv::test
