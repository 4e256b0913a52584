// SPDX-License-Identifier: Apache-2.0
// Where a block of threads keeps what in shared memory, and which rows and tiles it takes.
#pragma once

#include "cuda/prefill/barrier.cuh"
#include "cuda/prefill/plan.cuh"

namespace innerkv::cuda {

inline constexpr int kConsumers = 2; ///< warpgroups
inline constexpr int kWarpgroup = 128;
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

/// kChunkRows rows of one KV head, and the tiles they see.
struct ChunkItem {
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

/// The last rows, which see most, come first; blocks that run at the same time share a KV head's tiles.
template <class C>
__device__ ChunkItem chunk_item(const AttentionParams& params, const PrefillPlan& plan, int index) {
    ChunkItem item;
    item.chunk = find_chunk(plan, &Chunk::first_item, index, 0);
    const Chunk& chunk = plan.chunk[item.chunk];
    const Sequence& sequence = params.sequences[chunk.sequence];
    const int row_blocks = innerkv::cuda::row_blocks(params, sequence);
    const int at = index - chunk.first_item;
    item.kv_head = at / row_blocks;
    item.first_row = kChunkRows * (row_blocks - 1 - at % row_blocks);
    const int first_token = item.first_row / params.group;
    const int last_token =
        min((item.first_row + kChunkRows - 1) / params.group, sequence.query_tokens - 1);
    const KeyRange first = keys_of_token(params, chunk, first_token);
    const KeyRange last = keys_of_token(params, chunk, last_token);
    item.first_tile = first.begin / C::kTokens;
    item.last_tile = max(item.first_tile, (last.end + C::kTokens - 1) / C::kTokens);
    item.all_begin = last.begin;
    item.all_end = first.end;
    return item;
}

} // namespace innerkv::cuda
