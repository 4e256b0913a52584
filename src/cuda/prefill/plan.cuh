// SPDX-License-Identifier: Apache-2.0
// Chunks as kernels read them: what their queries see, and where in all chunks something lies.
#pragma once

#include "cuda/prefill/params.h"
#include "cuda/work.cuh"

namespace innerkv::cuda {

/// The same in all lanes, which the compiler does not know of what comes from memory. What depends on it then needs no
/// vector registers, and branches on it no care for lanes that went another way.
__device__ inline int uniform(int value) { return __shfl_sync(~0u, value, 0); }

__device__ inline int pages_of(const Piece& piece) {
    if (piece.count == 0) return 0;
    return (piece.first + piece.count - 1) / kPageTokens - piece.first / kPageTokens + 1;
}
__device__ inline int pages_of(const Chunk& chunk) {
    return pages_of(chunk.pieces[0]) + pages_of(chunk.pieces[1]) + pages_of(chunk.pieces[2]);
}

/// The chunk's keys at positions below `position`: those are its first ones.
__device__ inline int keys_below(const Chunk& chunk, int position) {
    int keys = 0;
#pragma unroll
    for (int i = 0; i < 3; ++i)
        keys += min(max(position - chunk.pieces[i].position, 0), chunk.pieces[i].count);
    return keys;
}

__device__ inline int row_blocks(const AttentionParams& params, const Sequence& sequence) {
    return (query_tokens_of(params, sequence) * params.group + kChunkRows - 1) / kChunkRows;
}

/// The chunk that something lies in, of `first_...`; chunks in front of `from` are not looked at.
__device__ inline int find_chunk(const PrefillPlan& plan, int Chunk::*first, int at, int from) {
    while (from + 1 < plan.chunks && plan.chunk[from + 1].*first <= at) ++from;
    return from;
}

} // namespace innerkv::cuda
