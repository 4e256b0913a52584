// SPDX-License-Identifier: Apache-2.0
// How a launch's work is shared out among blocks, for sizes whose attention would take too long to compute.
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <tuple>
#include <vector>

#include "cuda/work.cuh"
#include "launch.h"

namespace innerkv::cuda {
namespace {

using C = Config<Side<CodecKind::affine, 3>, Side<CodecKind::affine, 3>, 1, false>;

alignas(128) unsigned char block_memory[sizeof(BlockShared<C>)];

struct Shared {
    Plan plan;
    std::vector<Item> items; ///< of all segments
};

/// What every block of 132 finds: two warps each.
Shared plan_of(const AttentionParams& params) {
    Shared result;
    simt::launch({132, 1, 1}, {2 * kWarpSize, 1, 1}, block_memory, sizeof block_memory, [&] {
        auto& shared = *reinterpret_cast<BlockShared<C>*>(block_memory);
        const Thread thread;
        plan_work(params, shared, thread);
        if (blockIdx.x != 0 || thread.warp != 0) return;
        for (int segment = 0; segment < shared.plan.segments; ++segment) {
            const Item item = item_of(params, shared, segment, thread.lane);
            if (thread.lane == 0) result.items.push_back(item);
        }
        if (thread.lane == 0) result.plan = shared.plan;
    });
    return result;
}

AttentionParams params_of(const std::vector<Sequence>& sequences, int query_tokens) {
    AttentionParams params{};
    params.sequences = sequences.data();
    params.count = static_cast<int>(sequences.size());
    params.kv_heads = 8;
    params.group = 4;
    params.max_query_tokens = query_tokens;
    params.max_strips = (4 * query_tokens + C::kRows - 1) / C::kRows;
    params.parts = 132 / (params.count * params.kv_heads * params.max_strips);
    return params;
}

Sequence sequence_of(std::int64_t tokens, int query_tokens) {
    Sequence sequence{};
    sequence.quantized.tokens = sequence.length = tokens;
    sequence.first_position = tokens - 1;
    sequence.query_tokens = query_tokens;
    return sequence;
}

/// Parts of every item follow each other from its first unit to its last, and partial results have places of their own.
void expect_covered(const AttentionParams& params, const Shared& shared) {
    std::map<std::tuple<int, int, int>, std::vector<Item>> items;
    std::map<int, int> places;
    for (const Item& item : shared.items) {
        if (item.parts == 0) continue;
        items[{item.sequence, item.kv_head, item.strip}].push_back(item);
        if (item.parts > 1) {
            ASSERT_GE(item.first_slot, 0);
            ASSERT_LT(item.first_slot + item.part, most_slots(132));
            EXPECT_EQ(places[item.first_slot + item.part]++, 0);
        }
    }
    std::size_t expected = 0;
    for (int s = 0; s < params.count; ++s)
        expected +=
            static_cast<std::size_t>(params.kv_heads * strips_of<C>(params, params.sequences[s]));
    EXPECT_EQ(items.size(), expected);
    for (auto& [place, parts] : items) {
        const int units = head_work(params, params.sequences[std::get<0>(place)]).units();
        std::sort(parts.begin(), parts.end(),
                  [](const Item& a, const Item& b) { return a.part < b.part; });
        EXPECT_EQ(static_cast<int>(parts.size()), parts[0].parts);
        EXPECT_EQ(parts.front().begin, 0);
        for (std::size_t i = 1; i < parts.size(); ++i) EXPECT_EQ(parts[i].begin, parts[i - 1].end);
        EXPECT_EQ(parts.back().end, units);
    }
}

TEST(DevicePlan, CoversLaunchesOfAllSizes) {
    for (const auto& [count, tokens, query_tokens] :
         {std::tuple{1, 1 << 15, 1}, {5, 1 << 15, 1}, {40, 3000, 1}, {3, 1 << 20, 700}}) {
        SCOPED_TRACE(testing::Message() << count << " x " << tokens << ", " << query_tokens);
        std::vector<Sequence> sequences;
        for (int s = 0; s < count; ++s)
            sequences.push_back(sequence_of(tokens / (s + 1), query_tokens));
        const AttentionParams params = params_of(sequences, query_tokens);
        expect_covered(params, plan_of(params));
    }
}

/// More work than 32 bits count: of items alike, and of one that is longer than all others together.
TEST(DevicePlan, CountsMoreWorkThanAnIntHolds) {
    for (const bool alike : {true, false}) {
        SCOPED_TRACE(alike);
        std::vector<Sequence> sequences(kMaxSequences, sequence_of(1 << 26, 1));
        if (!alike)
            for (std::size_t s = 0; s < sequences.size(); ++s)
                sequences[s] = sequence_of(1 << (s == 77 ? 27 : 26), 1 + static_cast<int>(s % 3));
        const AttentionParams params = params_of(sequences, 3);
        double units = 0;
        for (const Sequence& sequence : sequences)
            units += 8.0 * strips_of<C>(params, sequence) * head_work(params, sequence).units();
        ASSERT_GT(units, 4e9);
        const Shared shared = plan_of(params);
        EXPECT_NEAR(shared.plan.equal * 132 / units, 1, 1e-6);
        EXPECT_LT(shared.plan.segments, 2 * 256 * 8 * 2);
        expect_covered(params, shared);
    }
}

/// What asks more than there is room for is as long as there is room.
TEST(DevicePlan, ClampsQueryTokens) {
    std::vector<Sequence> sequences(3, sequence_of(5000, 2));
    const Shared expected = plan_of(params_of(sequences, 2));
    sequences[0].query_tokens = 1 << 30;
    sequences[2].query_tokens = -7;
    const AttentionParams params = params_of(sequences, 2);
    const Shared shared = plan_of(params);
    EXPECT_EQ(shared.plan.segments, expected.plan.segments);
    expect_covered(params, shared);
}

} // namespace
} // namespace innerkv::cuda
