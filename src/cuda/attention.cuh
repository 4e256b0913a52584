// SPDX-License-Identifier: Apache-2.0
// The kernel: one launch from queries to outputs. Blocks take parts of all KV heads (work.cuh); one of several parts
// leaves its state, and the last one to come merges them.
#pragma once

#include <climits>

#include "cuda/dense.cuh"
#include "cuda/merge.cuh"
#include "cuda/quantized.cuh"

namespace innerkv::cuda {

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

/// Into the second-level cache, while queries are prepared and quantized pages are read. Tiles go to the warps from the
/// last one on: the first ones have more quantized pages.
template <class C>
__device__ void prefetch_dense(const AttentionParams& params, const Task& task,
                               const Thread& thread) {
    const Sequence& sequence = params.sequences[task.item.sequence];
#pragma unroll 1
    for (int index = task.tiles.first + thread.warps - 1 - thread.warp; index < task.tiles.last;
         index += thread.warps) {
        const DenseTile tile(sequence, task.work, index);
        const int row_bytes = 2 * params.head_dim;
        const unsigned char* keys = tile.page(task.item.kv_head) + tile.first_in_page() * row_bytes;
        for (int at = 128 * thread.lane; at < kDenseTokens * row_bytes; at += 128 * kWarpSize) {
            prefetch_line(keys + at);
            prefetch_line(keys + kPageTokens * row_bytes + at);
        }
    }
    const int channel = 32 * static_cast<int>(threadIdx.x);
    if (sequence.value_centre != nullptr && channel < params.head_dim)
        prefetch_line(sequence.value_centre + task.item.kv_head * params.head_dim + channel);
}

/// Where a warp is among the pages of a part: every warp takes every so manieth.
struct PagePlace {
    int page;
    int epoch;
    int in_epoch;

    __device__ PagePlace(const Task& task, const Thread& thread)
        : page(task.pages.first + thread.warp), epoch(task.epochs.first),
          in_epoch(task.epochs.first_page + thread.warp) {
        settle(task);
    }
    __device__ void go_on(const Task& task, const Thread& thread) {
        page += thread.warps;
        in_epoch += thread.warps;
        settle(task);
    }
    __device__ void settle(const Task& task) {
        while (in_epoch >= task.epochs.pages) {
            in_epoch -= task.epochs.pages;
            ++epoch;
        }
    }
};

/// Offsets of the task's epochs from `first` on, where there are more than shared memory holds. Rare, so apart from what
/// registers are for.
template <class C>
__device__ void write_more_offsets(const AttentionParams& params, BlockShared<C>& shared,
                                   int first) {
    __syncthreads(); // those before have been read
    const Thread thread;
    Offsets<C> offsets(params, shared.task.item, thread, first,
                       min(first + kMaxEpochs, shared.task.epochs.end));
    offsets.write_all(shared);
    __syncthreads();
}

/// Prepares the part's queries and takes its quantized pages, those of this warp among them.
template <class C>
__device__ void attend_quantized(const AttentionParams& params, BlockShared<C>& shared,
                                 WarpShared<C>& mine, const Thread& thread) {
    const Task& task = shared.task;
    const Sequence& sequence = params.sequences[task.item.sequence];
    const Run& run = sequence.quantized;
    PagePlace place(task, thread);
    // All that comes from memory is asked for before anything waits; what takes two steps, first.
    PageStream<C> stream(run, task.item.kv_head, place.page, thread.warps,
                         max(0, (task.pages.last - place.page + thread.warps - 1) / thread.warps),
                         mine.ring, thread.lane);
    const int first_epoch = task.epochs.first;
    const int end_epoch = task.epochs.end;
    const bool has_epochs = sequence.epochs != nullptr;
    Offsets<C> offsets(params, task.item, thread, first_epoch,
                       has_epochs ? min(first_epoch + kMaxEpochs, end_epoch) : first_epoch);
    const RowLoads<C> row(params, task.item, thread.warp, thread.lane);
    offsets.prefetch();
    stream.begin();
    prefetch_dense<C>(params, task, thread);
    prepare_queries(params, shared, task.item, row, thread);
    offsets.write_all(shared);
    __syncthreads();
    const int first_token = static_cast<int>(run.first_token);
    Walk<C> walk(params, shared, first_token + static_cast<int>(run.tokens), mine.exchange, thread);
    // As many epochs at a time as shared memory has offsets for.
#pragma unroll 1
    for (int first = first_epoch; first < end_epoch;) {
        while (place.page < task.pages.last && place.epoch < first + kMaxEpochs) {
            walk.attend(shared, stream, first_token + kPageTokens * place.page,
                        shared.offsets[place.epoch - first]);
            place.go_on(task, thread);
        }
        first += kMaxEpochs;
        if (first >= end_epoch) break;
        write_more_offsets(params, shared, first);
    }
    wait_for_copies<0>();
    __syncwarp(); // all lanes have read the last page: its place is used again
    walk.write_state(reinterpret_cast<float*>(mine.ring), shared.warp_states[0]);
}

template <class C>
__device__ void attend_dense(const AttentionParams& params, BlockShared<C>& shared,
                             WarpShared<C>& mine, const Thread& thread) {
    const Task& task = shared.task;
    const Sequence& sequence = params.sequences[task.item.sequence];
    const Visible visible = visible_to(params, sequence, 0, query_tokens_of(params, sequence) - 1);
    const RowRules rules = row_rules(params, shared, thread.g);
    DenseWalk<C> walk(params, shared, mine.exchange, thread);
    __syncwarp(); // the last page's logits have been read
#pragma unroll 1
    for (int index = task.tiles.first + thread.warps - 1 - thread.warp; index < task.tiles.last;
         index += thread.warps) {
        const DenseTile tile(sequence, task.work, index);
        walk.attend(shared, rules.within(tile.run_end()), tile.page(task.item.kv_head),
                    tile.first_in_page(), {visible.begin, min(visible.end, tile.run_end())},
                    tile.position());
    }
    walk.write_state(reinterpret_cast<float*>(mine.ring) + C::kRows * C::kDim,
                     shared.warp_states[1]);
}

/// The segment that this block takes next: beyond the last there is none. One thread calls it.
__device__ inline int next_segment(const AttentionParams& params, const Plan& plan) {
    const int blocks = static_cast<int>(gridDim.x);
    if (plan.segments <= blocks) return INT_MAX;
    const int segment = blocks + atomicAdd(params.next_segment, 1);
    // Every block asks until there is none: this one was the last to ask.
    if (segment == plan.segments + blocks - 1) *params.next_segment = 0;
    return segment;
}

/// The block's part of an item. All threads call it.
template <class C>
__device__ void attend_task(const AttentionParams& params, BlockShared<C>& shared,
                            WarpShared<C>* warps, const Thread& thread) {
    const Task& task = shared.task;
    const Item& item = task.item;
    const bool dense = task.tiles.count() > 0;
    attend_quantized(params, shared, warps[thread.warp], thread);
    if (dense) attend_dense(params, shared, warps[thread.warp], thread);
    __syncthreads();
    int next = INT_MAX; // on its way while states are merged
    if (threadIdx.x == 0) next = next_segment(params, shared.plan);
    const bool whole = item.parts == 1;
    const Partial<C> partial(params, whole ? 0 : item.first_slot + item.part);
    merge_warps(shared, warps, dense, params.sequences[item.sequence].rotate != 0,
                whole ? &shared.merged[0][0] : partial.memory,
                whole ? shared.merged_states : partial.states(), thread);
    if (threadIdx.x == 0) shared.segment = next;
    if (!whole) {
        if (!arrive(shared, params.arrivals + item.first_slot, item.parts)) return;
        merge_partials(params, shared, item, reinterpret_cast<SliceSums*>(warps), thread);
    }
    __syncthreads();
    for (int row = thread.warp; row < C::kRows; row += thread.warps)
        write_row(params, shared, item, row, thread.lane);
}

template <class C>
__global__ void __launch_bounds__(kMaxWarps* kWarpSize, 1)
    attention_kernel(const __grid_constant__ AttentionParams params) {
    extern __shared__ __align__(128) unsigned char memory[];
    auto& shared = *reinterpret_cast<BlockShared<C>*>(memory);
    auto* warps = reinterpret_cast<WarpShared<C>*>(memory + sizeof(BlockShared<C>));
    const Thread thread;
    if (threadIdx.x == 0) shared.segment = static_cast<int>(blockIdx.x);
    plan_work(params, shared, thread);
#pragma unroll 1
    while (true) {
        if (thread.warp == 0) write_task(params, shared, thread);
        __syncthreads();
        if (shared.segment >= shared.plan.segments) return;
        if (shared.task.item.parts > 0) {
            attend_task(params, shared, warps, thread);
        } else {
            __syncthreads();
            if (threadIdx.x == 0) shared.segment = next_segment(params, shared.plan);
        }
        __syncthreads(); // what this part left in shared memory has been read
    }
}

} // namespace innerkv::cuda
