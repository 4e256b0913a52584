// SPDX-License-Identifier: Apache-2.0
// Which sequences are taken as chunks, what their queries see, and where that goes.
#include "cuda/prefill/kernels.h"
#include "cuda/prefill/plan.cuh"

namespace innerkv::cuda {
namespace {

__device__ Piece visible_piece(const Run& run, Visible visible) {
    const int start = static_cast<int>(run.first_token);
    const int first = max(visible.begin - start, 0);
    const int last = min(visible.end - start, static_cast<int>(run.tokens));
    return {first, max(last - first, 0), start + first};
}

__device__ Chunk chunk_of(const AttentionParams& params, int index) {
    const Sequence& sequence = params.sequences[index];
    const Visible visible = visible_to(params, sequence, 0, query_tokens_of(params, sequence) - 1);
    Chunk chunk{};
    chunk.sequence = index;
    chunk.pieces[0] = visible_piece(sequence.sink, visible);
    chunk.pieces[1] = visible_piece(sequence.quantized, visible);
    chunk.pieces[2] = visible_piece(sequence.recent, visible);
    chunk.tokens = chunk.pieces[0].count + chunk.pieces[1].count + chunk.pieces[2].count;
    return chunk;
}

/// How many parts each of so many items is cut into, fewer than there are blocks: so that these are busy, but no more
/// than helps.
__device__ int parts_of(const PrefillMemory& memory, int items, int longest) {
    if (items == 0) return 1;
    int best = 1;
    int best_rounds = 1;
    const int most = min(memory.max_parts / items, longest / kLeastPartTiles);
    for (int parts = 2; parts <= most; ++parts) {
        const int rounds = (items * parts + memory.blocks - 1) / memory.blocks;
        // rounds / parts is the time; what costs as much to merge as it gains is not worth it.
        if (10 * rounds * best >= 9 * best_rounds * parts) continue;
        best = parts;
        best_rounds = rounds;
    }
    return best;
}

/// One block of kMaxSequences threads. Chunks that memory has no room for are left to the other kernel.
__global__ void __launch_bounds__(kMaxSequences)
    plan_kernel(const __grid_constant__ AttentionParams params,
                const __grid_constant__ PrefillMemory memory, int tile_tokens) {
    // Of each sequence; once it has its place, what lies in front of it.
    __shared__ int tiles[kMaxSequences];
    __shared__ int pages[kMaxSequences];
    __shared__ int items[kMaxSequences];
    __shared__ int place[kMaxSequences]; // among the chunks; -1: it is none
    const int index = static_cast<int>(threadIdx.x);
    Chunk chunk{};
    if (index < params.count) {
        const Sequence& sequence = params.sequences[index];
        chunk = chunk_of(params, index);
        tiles[index] = (chunk.tokens + tile_tokens - 1) / tile_tokens;
        pages[index] = pages_of(chunk);
        items[index] = params.kv_heads * row_blocks(params, sequence);
        place[index] = query_tokens_of(params, sequence) * params.group >= kLeastChunkRows ? 0 : -1;
    }
    __syncthreads();
    if (index == 0) {
        Chunk before{};
        int chunks = 0;
        int longest = 0; // in tiles
        for (int s = 0; s < params.count; ++s) {
            if (place[s] < 0) continue;
            const Chunk own = before;
            if (own.first_tile + tiles[s] > memory.max_tiles) {
                place[s] = -1;
                continue;
            }
            longest = max(longest, tiles[s]);
            before.first_tile += tiles[s];
            before.first_page += pages[s];
            before.first_item += items[s];
            tiles[s] = own.first_tile;
            pages[s] = own.first_page;
            items[s] = own.first_item;
            place[s] = chunks++;
        }
        memory.plan->chunks = chunks;
        memory.plan->pages = before.first_page;
        memory.plan->items = before.first_item;
        const int rest = before.first_item % memory.blocks;
        memory.plan->whole = before.first_item - rest;
        memory.plan->parts = parts_of(memory, rest, longest);
    }
    __syncthreads();
    if (index >= params.count) return;
    Sequence other = params.sequences[index];
    if (place[index] >= 0) {
        other.query_tokens = 0;
        chunk.first_tile = tiles[index];
        chunk.first_page = pages[index];
        chunk.first_item = items[index];
        memory.plan->chunk[place[index]] = chunk;
    }
    memory.others[index] = other;
}

} // namespace

PrefillKernel prefill_plan_kernel() {
    return {reinterpret_cast<const void*>(&plan_kernel), kMaxSequences, 0};
}

} // namespace innerkv::cuda
