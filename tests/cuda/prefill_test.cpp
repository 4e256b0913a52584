// SPDX-License-Identifier: Apache-2.0
// Chunks of many query tokens against the fp64 reference, where there is memory to write their history out: products in
// fp16, so much closer to it than integers come.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <tuple>

#include "batches.h"
#include "device.h"

namespace innerkv::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::int64_t kRoom = 1 << 14; ///< tokens: more than any batch here has

/// Query rows a KV head from which on sequences are taken as chunks.
constexpr int kLeastRows = 160;

/// fp16's rounding of keys, values, queries and weights.
constexpr double kLargestError = 4e-3;
constexpr double kLargestLogSumExpError = 2e-3;

class DevicePrefill : public OnDevice {
protected:
    void SetUp() override {
        OnDevice::SetUp();
        if (IsSkipped()) return;
        const cuda::DeviceInfo device = cuda::devices().at(0);
        if (device.major != 9 || device.minor != 0)
            GTEST_SKIP() << device.name << " is of compute capability " << device.major << "."
                         << device.minor << ", these kernels are for 9.0";
    }
};

Result attend_chunks(const Batch& batch, RowType type = RowType::f32) {
    return attend_on_device(batch, type, {.max_history_tokens = kRoom});
}

void expect_chunks_close_to_reference(Batch& batch) {
    const Result before = attend_chunks(batch);
    batch.poison_unseen();
    const Result expected = reference(batch);
    const Result result = attend_chunks(batch);
    EXPECT_EQ(result.out, before.out);
    EXPECT_EQ(result.log_sum_exp, before.log_sum_exp);
    EXPECT_LT(largest_error(result, expected), kLargestError);
    EXPECT_LT(log_sum_exp_error(result, expected), kLargestLogSumExpError);
}

SequenceSpec transformed_spec(const PageFormat& format, int quantized) {
    SequenceSpec spec = spec_for(format, quantized);
    if (format.quantized()) spec.transform = {true, true, true, true};
    spec.epoch_pages = 3;
    spec.first_page = 1;
    return spec;
}

using Format = std::tuple<std::string_view, int>;
class DevicePrefillFormats : public DevicePrefill, public testing::WithParamInterface<Format> {
protected:
    static PageFormat format() {
        return find_preset(std::get<0>(GetParam())).format(std::get<1>(GetParam()));
    }
};

INSTANTIATE_TEST_SUITE_P(All, DevicePrefillFormats,
                         testing::Combine(testing::ValuesIn(preset_names()),
                                          testing::ValuesIn(kHeadDims)),
                         [](const auto& test) {
                             return std::string(std::get<0>(test.param)) + "_" +
                                    std::to_string(std::get<1>(test.param));
                         });

TEST_P(DevicePrefillFormats, GroupsOfQueryHeads) {
    for (const int group : {1, 3, 4, 8}) {
        SCOPED_TRACE(group);
        Batch batch(shape_of(format(), 2 * group, 2));
        batch.add(transformed_spec(format(), 32 * 11), (kLeastRows + group - 1) / group);
        expect_chunks_close_to_reference(batch);
    }
}

/// Chunks of any length, on nothing, on windows alone, on quantized pages alone, beside single tokens.
TEST_P(DevicePrefillFormats, RaggedBatch) {
    Batch batch(shape_of(format(), 4, 2));
    SequenceSpec spec;
    spec.sink = 0;
    spec.recent = 93;
    batch.add(spec, 93);
    spec.sink = 32;
    spec.recent = 140;
    batch.add(spec, 129);
    batch.add(transformed_spec(format(), 32 * 20));
    spec = transformed_spec(format(), 32 * 9);
    spec.sink = 0;
    spec.recent = format().quantized() ? 0 : spec.recent;
    batch.add(spec, 80);
    spec = transformed_spec(format(), 32 * 13);
    spec.sink = 19;
    spec.recent += 71;
    batch.add(spec, 101);
    const Result expected = reference(batch);
    Result result = attend_chunks(batch);
    // The single token is the other kernel's, whose arithmetic errs by more.
    const auto first = static_cast<std::ptrdiff_t>((93 + 129) * 4);
    const auto take_single = [&](const Result& all) {
        return Result{{all.out.begin() + first, all.out.begin() + first + 4},
                      {all.log_sum_exp.begin() + first, all.log_sum_exp.begin() + first + 4}};
    };
    const Result single = take_single(expected);
    EXPECT_LT(largest_error(take_single(result), single), 0.02);
    EXPECT_LT(log_sum_exp_error(take_single(result), single), 0.01);
    std::copy(single.out.begin(), single.out.end(), result.out.begin() + first);
    std::copy(single.log_sum_exp.begin(), single.log_sum_exp.end(),
              result.log_sum_exp.begin() + first);
    EXPECT_LT(largest_error(result, expected), kLargestError);
    EXPECT_LT(log_sum_exp_error(result, expected), kLargestLogSumExpError);
}

class DevicePrefillTransforms : public DevicePrefill, public testing::WithParamInterface<int> {};
INSTANTIATE_TEST_SUITE_P(AllCombinations, DevicePrefillTransforms, testing::Range(0, 16));

TEST_P(DevicePrefillTransforms, MatchReference) {
    const int bits = GetParam();
    for (const int head_dim : {64, 80, 192, 256})
        for (const char* name : {"base", "hybrid", "k8v8"}) {
            SCOPED_TRACE(std::string(name) + " " + std::to_string(head_dim));
            Batch batch(shape_of(find_preset(name).format(head_dim), 4, 2));
            SequenceSpec spec;
            spec.quantized = 128;
            spec.transform = {(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0};
            batch.add(spec, 81);
            expect_chunks_close_to_reference(batch);
        }
}

class DevicePrefillShapes : public DevicePrefill,
                            public testing::WithParamInterface<std::string_view> {
protected:
    static PageFormat format(int head_dim = 64) { return find_preset(GetParam()).format(head_dim); }
};
INSTANTIATE_TEST_SUITE_P(Presets, DevicePrefillShapes, testing::ValuesIn(preset_names()),
                         [](const auto& test) { return std::string(test.param); });

/// More blocks of rows than the device takes at once: each block of threads has several.
TEST_P(DevicePrefillShapes, ManyHeads) {
    for (const int head_dim : {64, 192}) {
        SCOPED_TRACE(head_dim);
        Batch batch(shape_of(format(head_dim), 4 * 140, 140));
        batch.add(transformed_spec(format(), 32 * 6), 41);
        expect_chunks_close_to_reference(batch);
    }
}

TEST_P(DevicePrefillShapes, LongHistories) {
    for (const int head_dim : {128, 256}) {
        SCOPED_TRACE(head_dim);
        Batch batch(shape_of(format(head_dim), 4, 1));
        batch.add(transformed_spec(format(), 32 * 120), 70);
        batch.add(transformed_spec(format(), 32 * 37), 40);
        expect_chunks_close_to_reference(batch);
    }
}

TEST_P(DevicePrefillShapes, QueriesBeforeTheEnd) {
    for (const int position : {0, 31, 40, 64, 95, 120, 300}) {
        SCOPED_TRACE(position);
        Batch batch(shape_of(format(), 2, 1));
        batch.add(spec_for(format(), 32 * 9), 80);
        batch.blocks[0].first_position = position;
        expect_chunks_close_to_reference(batch);
    }
}

TEST_P(DevicePrefillShapes, RunsThatEndInsideAPage) {
    for (const int tokens : {1, 15, 17, 31, 33}) {
        SCOPED_TRACE(tokens);
        Batch batch(shape_of(format(80), 2, 1));
        SequenceSpec spec = spec_for(format(), 96 + tokens);
        spec.sink = tokens;
        spec.recent = format().quantized() ? tokens : 96 + tokens;
        batch.add(spec, 80);
        expect_chunks_close_to_reference(batch);
    }
}

TEST_P(DevicePrefillShapes, SlidingWindows) {
    for (const int window : {1, 5, 33, 64, 129, 500}) {
        SCOPED_TRACE(window);
        Batch batch(shape_of(format(), 6, 2));
        batch.shape.sliding_window = window;
        SequenceSpec spec = spec_for(format(), 32 * 15);
        spec.recent += 100;
        batch.add(spec, 100);
        spec.dropped = 320;
        batch.add(spec, 60);
        expect_chunks_close_to_reference(batch);
    }
}

TEST_P(DevicePrefillShapes, SoftCaps) {
    for (const float cap : {0.5f, 50.0f}) {
        SCOPED_TRACE(cap);
        Batch batch(shape_of(format(), 4, 2));
        batch.shape.soft_cap = cap;
        batch.shape.scale = 0.5f;
        batch.add(spec_for(format(), 128), 90);
        // Logits spread four times as far as the default scale's.
        EXPECT_LT(largest_error(attend_chunks(batch), reference(batch)), 4 * kLargestError);
    }
}

class DevicePrefillEdge : public DevicePrefill {
protected:
    static PageFormat base(int head_dim = 64) { return find_preset("base").format(head_dim); }
};

TEST_F(DevicePrefillEdge, EpochsOfAnyLength) {
    for (const EpochCase& tested : kEpochCases) {
        SCOPED_TRACE(testing::Message() << tested.epoch_pages << " from " << tested.first_page);
        Batch batch(shape_of(base(80), 4, 2));
        SequenceSpec spec;
        spec.quantized = tested.quantized;
        spec.epoch_pages = tested.epoch_pages;
        spec.first_page = tested.first_page;
        spec.transform = {true, true, true, true};
        batch.add(spec, 80);
        expect_chunks_close_to_reference(batch);
    }
}

TEST_F(DevicePrefillEdge, EmptySequence) {
    Batch batch(shape_of(base(), 4, 2));
    SequenceSpec spec;
    spec.sink = spec.recent = 0;
    batch.add(spec, 80);
    expect_nothing_seen(attend_chunks(batch));
}

TEST_F(DevicePrefillEdge, RowsThatSeeNothingBesideRowsThatDo) {
    Batch batch(shape_of(base(), 2, 1));
    SequenceSpec spec;
    spec.sink = 0;
    spec.dropped = 64; // the sequence begins at token 64
    spec.quantized = 64;
    batch.add(spec, 80);
    batch.blocks[0].first_position = 54;
    const Result result = attend_chunks(batch);
    for (std::size_t row = 0; row < 20; ++row) EXPECT_EQ(result.log_sum_exp[row], -kInfinity);
    EXPECT_LT(largest_error(result, reference(batch)), kLargestError);
}

TEST_F(DevicePrefillEdge, QueriesThatAreNotFiniteGiveNan) {
    for (const float fault :
         {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity, 1e38f}) {
        SCOPED_TRACE(fault);
        Batch batch(shape_of(base(), 2, 1));
        SequenceSpec spec;
        spec.quantized = 96;
        batch.add(spec, 80);
        const Result expected = attend_chunks(batch);
        element_of_row_3(batch) = fault;
        const Result result = attend_chunks(batch);
        for (std::size_t row = 0; row < 160; ++row) {
            if (row == 3) {
                expect_nan(result, row);
            } else {
                EXPECT_EQ(result.out[row], expected.out[row]);
                EXPECT_EQ(result.log_sum_exp[row], expected.log_sum_exp[row]);
            }
        }
    }
}

/// Queries of 0, tiny and huge logits, and one that exceeds the others by a tenth.
TEST_F(DevicePrefillEdge, LogitsOfAnySize) {
    for (const float size : {0.0f, 1e-38f, 1e-20f, 1e-3f}) {
        SCOPED_TRACE(size);
        Batch batch(shape_of(base(), 2, 1));
        SequenceSpec spec;
        spec.quantized = 256;
        batch.add(spec, 80, scaled(size));
        EXPECT_LT(largest_error(attend_chunks(batch), reference(batch)), kLargestError);
    }
    for (const float largest : {1e5f, -1e5f, 1e10f, -1e10f, 1e25f}) {
        SCOPED_TRACE(largest);
        const float dominant = largest > 0.0f ? 1000.0f : 900.0f;
        Batch batch(shape_of(find_preset("k8v8").format(64), 2, 1));
        SequenceSpec spec;
        spec.sink = spec.recent = 0;
        spec.quantized = 320;
        spec.k = [dominant, count = 0](std::mt19937&, std::vector<float>& row) mutable {
            std::fill(row.begin(), row.end(), count++ == 170 ? dominant : 1900.0f - dominant);
        };
        batch.add(spec, 80, constant(largest / (8.0f * dominant)));
        batch.blocks[0].first_position = 300;
        EXPECT_LT(largest_error(attend_chunks(batch), reference(batch)), kLargestError);
    }
}

TEST_F(DevicePrefillEdge, LargestValuesOfF16) {
    Batch batch(shape_of(find_preset("k8v8").format(64), 2, 1));
    SequenceSpec spec;
    spec.quantized = 128;
    spec.v = [](std::mt19937& random, std::vector<float>& row) {
        for (float& value : row) value = random() % 2 == 0 ? 65504.0f : 60000.0f;
    };
    batch.add(spec, 80);
    EXPECT_LT(largest_error(attend_chunks(batch), reference(batch)), kLargestError);
}

/// What has no room is the other kernel's, within its bounds; so is what comes behind and finds some.
TEST_F(DevicePrefillEdge, HistoriesThatFindNoRoom) {
    Batch batch(shape_of(base(), 4, 2));
    SequenceSpec spec;
    spec.quantized = 32 * 30;
    batch.add(spec, 80);
    spec.quantized = 32 * 90;
    batch.add(spec, 80);
    spec.quantized = 32 * 3;
    batch.add(spec, 80);
    const Result expected = reference(batch);
    for (const std::int64_t room : {1, 1000, 1400, 4000}) {
        SCOPED_TRACE(room);
        const Result result = attend_on_device(batch, RowType::f32, {.max_history_tokens = room});
        EXPECT_LT(largest_error(result, expected), 0.02);
        EXPECT_LT(log_sum_exp_error(result, expected), 5e-3);
    }
}

TEST_F(DevicePrefillEdge, QueriesAndOutputsInF16AndBf16) {
    for (const RowType type : {RowType::f16, RowType::bf16}) {
        Batch batch(shape_of(base(128), 8, 2));
        SequenceSpec spec;
        spec.quantized = 320;
        batch.add(spec, 50, [](std::mt19937& random, std::vector<float>& row) {
            for (float& value : row)
                value = static_cast<float>(static_cast<int>(random() % 255) - 127) / 64.0f;
        });
        const Result expected = attend_chunks(batch);
        const Result result = attend_chunks(batch, type);
        EXPECT_LT(largest_error(result, expected), type == RowType::f16 ? 1e-3 : 5e-3);
        EXPECT_EQ(result.log_sum_exp, expected.log_sum_exp);
    }
}

TEST_F(DevicePrefillEdge, NothingIsWrittenBesideTheOutput) {
    Batch batch(shape_of(base(80), 4, 2));
    SequenceSpec spec;
    spec.quantized = 640;
    batch.add(spec, 85);
    batch.add(spec, 80);
    const DeviceBatch device(batch);
    cuda::AttentionLimits limits = device.limits();
    limits.max_history_tokens = kRoom;
    cuda::Attention attention(batch.shape, limits);
    attention.run(device.call());
    expect_only_outputs_written(batch, device);
}

/// The array of sequences is the same memory throughout; chunks and single tokens take turns.
TEST_F(DevicePrefillEdge, GraphsReplayAsTheContextGrows) {
    std::deque<Batch> steps;
    for (const int pages : {0, 3, 40, 100}) {
        Batch& batch = steps.emplace_back(shape_of(base(128), 8, 2));
        SequenceSpec spec;
        spec.quantized = 32 * pages;
        spec.recent = 128;
        batch.add(spec, 64 - pages % 5);
        batch.add(spec, pages == 40 ? 1 : 64);
    }
    std::deque<DeviceBatch> devices;
    for (const Batch& batch : steps) devices.emplace_back(batch, RowType::f32, 64);
    DeviceBuffer sequences(2 * sizeof(cuda::Sequence));
    cuda::AttentionLimits limits = devices[0].limits();
    limits.max_history_tokens = kRoom;
    cuda::Attention attention(steps[0].shape, limits);
    cuda::AttentionCall call = devices[0].call();
    call.sequences = sequences.as<cuda::Sequence>();
    expect_success(cudaMemcpy(sequences.as(), devices[0].call().sequences,
                              2 * sizeof(cuda::Sequence), cudaMemcpyDeviceToDevice));
    const Graph graph([&](cuda::Stream stream) {
        call.stream = stream;
        attention.run(call);
    });
    const auto elements = static_cast<std::size_t>(2 * call.q_sequence_stride);
    for (std::size_t step = 0; step < steps.size(); ++step) {
        SCOPED_TRACE(step);
        expect_success(cudaMemcpy(sequences.as(), devices[step].call().sequences,
                                  2 * sizeof(cuda::Sequence), cudaMemcpyDeviceToDevice));
        expect_success(cudaMemcpy(const_cast<void*>(call.q), devices[step].call().q,
                                  elements * sizeof(float), cudaMemcpyDeviceToDevice));
        const Result result = collect(steps[step], [&] {
            devices[0].clear_outputs();
            graph.replay();
            devices[0].fetch(steps[step]);
        });
        EXPECT_LT(largest_error(result, reference(steps[step])), 0.02);
    }
}

TEST_F(DevicePrefillEdge, MemoryIsCounted) {
    const AttentionShape shape = shape_of(base(128), 8, 2);
    const auto bytes = [&](std::int64_t history_tokens) {
        cuda::AttentionLimits limits;
        limits.max_query_tokens = 64;
        limits.max_history_tokens = history_tokens;
        return cuda::Attention(shape, limits).bytes();
    };
    EXPECT_GT(bytes(128), bytes(0));
    EXPECT_EQ(bytes(2 * 32768) - bytes(32768), 32768u * 4 * 2 * 128);
}

/// Fewer rows than the device has blocks for: their histories are cut into parts.
TEST_F(DevicePrefillEdge, HistoriesInParts) {
    for (const int kv_heads : {1, 3})
        for (const int pages : {16, 60, 300}) {
            SCOPED_TRACE(testing::Message() << kv_heads << " " << pages);
            Batch batch(shape_of(base(64), 2 * kv_heads, kv_heads));
            batch.add(transformed_spec(base(64), 32 * pages), 85);
            batch.add(transformed_spec(base(64), 32), 80);
            expect_chunks_close_to_reference(batch);
        }
}

} // namespace
} // namespace innerkv::test
