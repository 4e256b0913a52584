// SPDX-License-Identifier: Apache-2.0
// The decode loop of docs/cache.md, whole, with fp32 rows. Every 74th step's output, of the second slot in the last
// layer, is the host's attention on what the cache then holds.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "device.h"
#include "innerkv/attention.h"
#include "innerkv/cuda_cache.h"

namespace innerkv::test {
namespace {

constexpr int kLayers = 2;
constexpr int kHeadDim = 64;
constexpr int kKvHeads = 2;
constexpr int kQHeads = 4;
constexpr int kSlots = 2;
constexpr int kSteps = 222; // the last sees quantized pages

class DeviceSample : public OnDevice {};

std::vector<float> row(std::size_t elements, int seed) {
    std::vector<float> values(elements);
    for (std::size_t i = 0; i < elements; ++i)
        values[i] = std::sin(static_cast<float>(seed) + 0.37f * static_cast<float>(i * i % 1009));
    return values;
}

/// Of one slot's query rows at `position`.
std::vector<float> on_host(const AttentionShape& shape, const SequenceView& view, const float* q,
                           std::int64_t position) {
    std::vector<float> out(static_cast<std::size_t>(kQHeads * kHeadDim));
    QueryBlock block;
    block.sequence = &view;
    block.q = q;
    block.out = out.data();
    block.q_head_stride = block.out_head_stride = kHeadDim;
    block.first_position = position;
    Attention(shape, {&block, 1}).run_all();
    return out;
}

TEST_F(DeviceSample, DecodeLoop) {
    CacheConfig config = CacheConfig::from_preset(find_preset("base"), kLayers, kKvHeads, kHeadDim);
    config.max_tokens = 2048;
    config.max_sequences = kSlots;
    AttentionShape shape;
    shape.q_heads = kQHeads;
    shape.kv_heads = kKvHeads;
    shape.format = config.format;

    cuda::DeviceCache cache(config);
    cuda::AttentionLimits limits;
    limits.max_sequences = config.max_sequences;
    limits.max_blocks = 8; // the work is little
    cuda::Attention attention(shape, limits);
    for (int i = 0; i < kSlots; ++i) cache.reserve(cache.create(), kSteps);

    constexpr std::size_t kKvElements = kSlots * kKvHeads * kHeadDim;
    constexpr std::size_t kQElements = kSlots * kQHeads * kHeadDim;
    DeviceBuffer k(kKvElements * sizeof(float));
    DeviceBuffer v(kKvElements * sizeof(float));
    DeviceBuffer q(kQElements * sizeof(float));
    const DeviceBuffer out(kQElements * sizeof(float));
    for (int step = 0; step < kSteps; ++step) {
        std::vector<float> queries;
        for (int layer = 0; layer < kLayers; ++layer) {
            k.write(row(kKvElements, 7 * step + layer).data(), kKvElements * sizeof(float));
            v.write(row(kKvElements, 11 * step + layer).data(), kKvElements * sizeof(float));
            queries = row(kQElements, 13 * step + layer);
            q.write(queries.data(), kQElements * sizeof(float));

            cuda::DeviceAppend append;
            append.layer = layer;
            append.k = {k.as(), RowType::f32, kKvHeads * kHeadDim, kKvHeads * kHeadDim, kHeadDim};
            append.v = {v.as(), RowType::f32, kKvHeads * kHeadDim, kKvHeads * kHeadDim, kHeadDim};
            append.q = {q.as(), RowType::f32, kQHeads * kHeadDim, kQHeads * kHeadDim, kHeadDim};
            append.q_heads = kQHeads;
            cache.append(append);

            cuda::AttentionCall call;
            call.sequences = cache.sequences(layer);
            call.count = config.max_sequences;
            call.q = q.as();
            call.out = out.as();
            call.q_sequence_stride = call.out_sequence_stride = kQHeads * kHeadDim;
            call.q_head_stride = call.out_head_stride = kHeadDim;
            attention.run(call);
        }
        if (step % 74 != 73) continue;
        cache.verify();
        std::vector<float> result(kQElements);
        out.read(result.data(), kQElements * sizeof(float));
        const cuda::HostSequence fetched = cache.fetch(1);
        const std::size_t second = kQElements / kSlots;
        const std::vector<float> expected =
            on_host(shape, fetched.view(kLayers - 1), queries.data() + second, step);
        for (std::size_t i = 0; i < expected.size(); ++i)
            EXPECT_NEAR(result[second + i], expected[i], 0.02f) << "step " << step;
    }
}

} // namespace
} // namespace innerkv::test
