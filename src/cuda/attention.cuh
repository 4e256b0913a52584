// SPDX-License-Identifier: Apache-2.0
// The kernel: one launch from queries to outputs. Blocks take parts of all KV heads (work.cuh); one of several parts
// leaves its state, and the last one to come merges them.
#pragma once

#include <climits>

#include "cuda/dense.cuh"
#include "cuda/merge.cuh"
#include "cuda/quantized.cuh"

namespace innerkv::cuda {

/// fp16 tokens of an item that a part has: those whose first unit is its own.
__device__ inline PageRange dense_part(const HeadWork& work, const Item& item) {
    const auto index = [&](int unit) {
        return min((unit + kDenseUnits - 1) / kDenseUnits, work.dense_tiles());
    };
    return {index(item.begin), index(item.end)};
}

__device__ inline PageRange quantized_part(const HeadWork& work, const Item& item) {
    const auto page = [&](int unit) {
        return work.quantized.first +
               min(max(0, unit - kDenseUnits * work.dense_tiles()), work.quantized.count());
    };
    return {page(item.begin), page(item.end)};
}

/// Where 16 tokens of fp16 pages lie.
struct DenseTile {
    const Run& run;
    int first; ///< token of the run

    __device__ DenseTile(const Sequence& sequence, const HeadWork& work, int tile)
        : run(tile < work.sink.count() ? sequence.sink : sequence.recent),
          first(kDenseTokens * (tile < work.sink.count()
                                    ? work.sink.first + tile
                                    : work.recent.first + tile - work.sink.count())) {}
    __device__ const unsigned char* page(int kv_head) const {
        return reinterpret_cast<const unsigned char*>(run.pages[first / kPageTokens]) +
               run.head_stride * static_cast<unsigned>(kv_head);
    }
    __device__ int first_in_page() const { return first % kPageTokens; }
    __device__ int position() const { return static_cast<int>(run.first_token) + first; }
    __device__ int run_end() const { return static_cast<int>(run.first_token + run.tokens); }
};

/// Into the second-level cache, while queries are prepared and quantized pages are read.
__device__ inline void prefetch_dense(const AttentionParams& params, const Item& item,
                                      const HeadWork& work, const PageRange& tiles,
                                      const Thread& thread) {
    const Sequence& sequence = params.sequences[item.sequence];
    for (int index = tiles.first + thread.warp; index < tiles.last; index += thread.warps) {
        const DenseTile tile(sequence, work, index);
        const int row_bytes = 2 * params.head_dim;
        const unsigned char* keys = tile.page(item.kv_head) + tile.first_in_page() * row_bytes;
        for (int at = 128 * thread.lane; at < kDenseTokens * row_bytes; at += 128 * kWarpSize) {
            prefetch_line(keys + at);
            prefetch_line(keys + kPageTokens * row_bytes + at);
        }
    }
    const int channel = 32 * static_cast<int>(threadIdx.x);
    if (sequence.value_centre != nullptr && channel < params.head_dim)
        prefetch_line(sequence.value_centre + item.kv_head * params.head_dim + channel);
}

/// Pages [pages.first, pages.last) of the quantized run, those of this warp among them.
template <class C>
__device__ void attend_quantized(const AttentionParams& params, BlockShared<C>& shared,
                                 WarpShared<C>& mine, const Item& item, const HeadWork& work,
                                 const PageRange& pages, const PageRange& tiles,
                                 const Thread& thread) {
    const Sequence& sequence = params.sequences[item.sequence];
    const Run& run = sequence.quantized;
    const int epoch_pages = sequence.epochs != nullptr ? sequence.epoch_pages : INT_MAX;
    const int before = sequence.epochs != nullptr ? sequence.first_page : 0;
    int page = pages.first + thread.warp;
    const int first_epoch = (before + pages.first) / epoch_pages;
    const int in_first = before + pages.first - first_epoch * epoch_pages;
    const int end_epoch =
        pages.count() > 0 ? first_epoch + (in_first + pages.count() - 1) / epoch_pages + 1 : 0;
    int epoch = first_epoch;
    int in_epoch = in_first + thread.warp;
    const auto settle = [&] {
        while (in_epoch >= epoch_pages) {
            in_epoch -= epoch_pages;
            ++epoch;
        }
    };
    settle();

    // All that comes from memory is asked for before anything waits; what takes two steps, first.
    const int count = max(0, (pages.count() - thread.warp + thread.warps - 1) / thread.warps);
    PageStream<C> stream(run, item.kv_head, page, thread.warps, count, mine.ring, thread.lane);
    const bool has_epochs = sequence.epochs != nullptr;
    Offsets<C> offsets(params, item, thread, first_epoch,
                       has_epochs ? min(kMaxEpochs, end_epoch - first_epoch) : 0);
    const RowLoads<C> row(params, item, thread.warp, thread.lane);
    stream.begin();
    offsets.prefetch();
    prefetch_dense(params, item, work, tiles, thread);
    prepare_queries(params, shared, item, row, thread);
    __syncthreads();
    const int first_token = static_cast<int>(run.first_token);
    Walk<C> walk(params, shared, first_token + static_cast<int>(run.tokens), mine.exchange, thread);
    // As many epochs at a time as shared memory has offsets for.
#pragma unroll 1
    for (int first = first_epoch; first < end_epoch;) {
        offsets.write_all(shared);
        __syncthreads();
        while (page < pages.last && epoch < first + kMaxEpochs) {
            walk.attend(shared, stream.next(), first_token + kPageTokens * page,
                        shared.offsets[epoch - first]);
            page += thread.warps;
            in_epoch += thread.warps;
            settle();
        }
        first += kMaxEpochs;
        if (first >= end_epoch) break;
        __syncthreads(); // offsets have been read
        offsets = Offsets<C>(params, item, thread, first, min(kMaxEpochs, end_epoch - first));
    }
    wait_for_copies<0>();
    __syncwarp(); // all lanes have read the last page: its place is used again
    walk.write_state(reinterpret_cast<float*>(mine.ring), shared.warp_states[0]);
}

template <class C>
__device__ void attend_dense(const AttentionParams& params, BlockShared<C>& shared,
                             WarpShared<C>& mine, const Item& item, const HeadWork& work,
                             const PageRange& tiles, const Thread& thread) {
    const Sequence& sequence = params.sequences[item.sequence];
    const Visible visible = visible_to(params, sequence, 0, sequence.query_tokens - 1);
    const RowRules rules = row_rules(params, shared, thread.g);
    DenseWalk<C> walk(params, shared, mine.exchange, thread);
    __syncwarp(); // the last page's logits have been read
    for (int index = tiles.first + thread.warp; index < tiles.last; index += thread.warps) {
        const DenseTile tile(sequence, work, index);
        walk.attend(shared, rules.within(tile.run_end()), tile.page(item.kv_head),
                    tile.first_in_page(), {visible.begin, min(visible.end, tile.run_end())},
                    tile.position());
    }
    walk.write_state(reinterpret_cast<float*>(mine.ring) + C::kRows * C::kDim,
                     shared.warp_states[1]);
}

/// The segment that this block takes next: beyond the last there is none. One thread calls it.
__device__ inline int take_segment(const AttentionParams& params, const Plan& plan) {
    const int blocks = static_cast<int>(gridDim.x);
    const int segment = blocks + atomicAdd(params.next_segment, 1);
    // Every block asks until there is none: this one was the last to ask.
    if (segment == plan.segments + blocks - 1) *params.next_segment = 0;
    return segment;
}

/// A part of an item. All threads call it.
template <class C>
__device__ void attend_item(const AttentionParams& params, BlockShared<C>& shared,
                            WarpShared<C>* warps, const Item& item, const Thread& thread) {
    const Sequence& sequence = params.sequences[item.sequence];
    const HeadWork work = head_work(params, sequence);
    const PageRange pages = quantized_part(work, item);
    const PageRange tiles = dense_part(work, item);
    const bool dense = tiles.count() > 0;
    attend_quantized(params, shared, warps[thread.warp], item, work, pages, tiles, thread);
    if (dense) attend_dense(params, shared, warps[thread.warp], item, work, tiles, thread);
    __syncthreads();
    int next = INT_MAX; // on its way while states are merged
    if (threadIdx.x == 0 && shared.plan.segments > static_cast<int>(gridDim.x))
        next = take_segment(params, shared.plan);
    const bool whole = item.parts == 1;
    const Partial<C> partial(params, whole ? 0 : item.first_slot + item.part);
    merge_warps(shared, warps, dense, sequence.rotate != 0,
                whole ? &shared.merged[0][0] : partial.memory,
                whole ? shared.merged_states : partial.states(), thread);
    if (threadIdx.x == 0) shared.next_segment = next;
    if (!whole) {
        int* arrivals = params.arrivals +
                        (item.sequence * params.kv_heads + item.kv_head) * params.max_strips +
                        item.strip;
        if (!arrive(shared, arrivals, item.parts)) return;
        merge_partials(params, shared, item, reinterpret_cast<float*>(warps), thread);
    }
    __syncthreads();
    for (int row = thread.warp; row < C::kRows; row += thread.warps)
        write_row(params, shared, item, row, thread.lane);
}

template <class C>
__global__ void __launch_bounds__(kMaxWarps* kWarpSize, kBlocksResident)
    attention_kernel(const __grid_constant__ AttentionParams params) {
    extern __shared__ __align__(128) unsigned char memory[];
    auto& shared = *reinterpret_cast<BlockShared<C>*>(memory);
    auto* warps = reinterpret_cast<WarpShared<C>*>(memory + sizeof(BlockShared<C>));
    const Thread thread;
    plan_work(params, shared, thread);
    int segment = static_cast<int>(blockIdx.x);
    while (segment < shared.plan.segments) {
        const Item item = item_of(params, shared, segment, thread.lane);
        attend_item(params, shared, warps, item, thread);
        __syncthreads(); // what this item left in shared memory has been read
        segment = shared.next_segment;
    }
}

} // namespace innerkv::cuda
