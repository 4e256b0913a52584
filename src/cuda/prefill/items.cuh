// SPDX-License-Identifier: Apache-2.0
// Where a block of threads keeps what in shared memory, and which rows and tiles it takes.
#pragma once

#include "cuda/prefill/barrier.cuh"
#include "cuda/prefill/plan.cuh"

namespace innerkv::cuda {

inline constexpr int kAttendThreads = (kConsumers + 1) * kWarpgroup;
inline constexpr int kStages = 2;

template <int kBlocks_>
struct ChunkConfig {
    static constexpr int kBlocks = kBlocks_; ///< of 64 channels
    static constexpr int kDim = 64 * kBlocks;
    static constexpr int kTokens = tile_tokens(kDim);
    static constexpr int kSideBytes = tile_side_bytes(kDim);
    /// Sums of channels that one product has.
    static constexpr int kSpan = kBlocks % 2 == 0 ? 128 : 64;
    static constexpr int kSpans = kDim / kSpan;
};

template <class C>
struct alignas(1024) ChunkShared {
    unsigned char q[2 * kChunkRows * C::kDim]; ///< [channels / 64][rows], as tiles are
    unsigned char keys[kStages][C::kSideBytes];
    unsigned char values[kStages][C::kSideBytes];
    float scale[kChunkRows]; ///< of logits
    int faulty[kChunkRows];
    int last_arrival[kConsumers];
    Barrier keys_full[kStages];
    Barrier values_full[kStages];
    Barrier keys_free[kStages];
    Barrier values_free[kStages];
};

/// A turn of the ring of stages.
struct Turn {
    int stage = 0;
    int parity = 0;
    __device__ void next() {
        if (++stage < kStages) return;
        stage = 0;
        parity ^= 1;
    }
};

/// kChunkRows rows of one KV head, and the tiles they see, or a part of them.
struct ChunkItem {
    int first_part; ///< of the item, among the parts of items that are cut
    int part;
    int parts;
    int chunk;
    int kv_head;
    int first_row; ///< of the KV head: query tokens times query heads
    int first_tile;
    int last_tile;
    int all_begin; ///< keys that every row sees
    int all_end;
};

struct KeyRange {
    int begin;
    int end;
};

__device__ inline KeyRange keys_of_token(const AttentionParams& params, const Chunk& chunk,
                                         int token) {
    const Visible visible = visible_to(params, params.sequences[chunk.sequence], token, token);
    return {keys_below(chunk, visible.begin), keys_below(chunk, visible.end)};
}

/// Parts of all items, each of which a block takes at a time.
__device__ inline int all_parts(const PrefillPlan& plan) {
    return uniform(plan.whole + (plan.items - plan.whole) * plan.parts);
}

/// All lanes of a warp call it. The last rows, which see most, come first; blocks that run at the same time share a KV
/// head's tiles.
template <class C>
__device__ ChunkItem chunk_item(const AttentionParams& params, const PrefillPlan& plan,
                                int part_index) {
    ChunkItem item;
    const int whole = uniform(plan.whole);
    const int in_rest = part_index - whole; // of the parts of items that are cut
    item.parts = in_rest < 0 ? 1 : uniform(plan.parts);
    const int index = in_rest < 0 ? part_index : whole + in_rest / item.parts;
    item.part = in_rest < 0 ? 0 : in_rest % item.parts;
    item.first_part = in_rest - item.part;
    item.chunk = uniform(find_chunk(plan, &Chunk::first_item, index, 0));
    const Chunk& chunk = plan.chunk[item.chunk];
    const Sequence& sequence = params.sequences[chunk.sequence];
    const int row_blocks = innerkv::cuda::row_blocks(params, sequence);
    const int at = index - chunk.first_item;
    item.kv_head = at / row_blocks;
    item.first_row = kChunkRows * (row_blocks - 1 - at % row_blocks);
    const int first_token = item.first_row / params.group;
    const int last_token = min((item.first_row + kChunkRows - 1) / params.group,
                               query_tokens_of(params, sequence) - 1);
    const KeyRange first = keys_of_token(params, chunk, first_token);
    const KeyRange last = keys_of_token(params, chunk, last_token);
    const int first_tile = first.begin / C::kTokens;
    const int tiles = max((last.end + C::kTokens - 1) / C::kTokens - first_tile, 0);
    item.first_tile = uniform(first_tile + tiles * item.part / item.parts);
    item.last_tile = uniform(first_tile + tiles * (item.part + 1) / item.parts);
    item.all_begin = uniform(last.begin);
    item.all_end = uniform(first.end);
    return item;
}

} // namespace innerkv::cuda
