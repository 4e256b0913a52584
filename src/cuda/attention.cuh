// SPDX-License-Identifier: Apache-2.0
// The kernel: one launch from queries to outputs. Blocks take equal parts of all sequences' pages; one that
// has a part of a KV head leaves its state, and the last one to come merges them.
#pragma once

#include <climits>

#include "cuda/dense.cuh"
#include "cuda/merge.cuh"
#include "cuda/quantized.cuh"

namespace innerkv::cuda {

/// fp16 tokens of an item that a block takes: those whose first unit is its own.
__device__ inline PageRange dense_part(const HeadWork& work, const Item& item) {
    const int first = work.quantized.count();
    const auto index = [&](int unit) {
        const int before = max(unit - first, 0);
        const int all = work.sink.count() + work.recent.count();
        return min((before + kDenseUnits - 1) / kDenseUnits, all);
    };
    return {index(item.begin), index(item.end)};
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

    // All that comes from memory is asked for before anything waits.
    const RowLoads<C> row(params, item, thread.warp, thread.lane);
    const Offsets<C> offsets(params, item, thread, first_epoch,
                             min(kMaxEpochs, end_epoch - first_epoch));
    const int count = max(0, (pages.count() - thread.warp + thread.warps - 1) / thread.warps);
    PageStream<C> stream(run, item.kv_head, page, thread.warps, count, mine.ring, thread.lane);
    const Centre<C> centre = offsets.load(0);
    prefetch_dense(params, item, work, tiles, thread);
    prepare_queries(params, shared, item, row, thread);
    __syncthreads();
    offsets.write_all(shared, centre);
    const int first_token = static_cast<int>(run.first_token);
    Walk<C> walk(params, shared, first_token + static_cast<int>(run.tokens), mine.exchange, thread);
    __syncthreads();
    // As many epochs at a time as shared memory has offsets for.
    for (int first = first_epoch; first < end_epoch; first += kMaxEpochs) {
        if (first > first_epoch) {
            __syncthreads();
            const Offsets<C> more(params, item, thread, first, min(kMaxEpochs, end_epoch - first));
            more.write_all(shared, more.load(0));
            __syncthreads();
        }
        while (page < pages.last && epoch < first + kMaxEpochs) {
            walk.attend(shared, stream.next(), first_token + kPageTokens * page,
                        shared.offsets[epoch - first]);
            page += thread.warps;
            in_epoch += thread.warps;
            settle();
        }
    }
    wait_for_copies<0>();
    __syncwarp(); // all lanes have read the last page: its place is used again
    walk.write_state(reinterpret_cast<float*>(mine.ring), shared.warp_states[thread.warp][0]);
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
                     shared.warp_states[thread.warp][1]);
}

/// A block's part of an item. All threads call it.
template <class C>
__device__ void attend_item(const AttentionParams& params, BlockShared<C>& shared,
                            WarpShared<C>* warps, const Item& item, const Thread& thread) {
    const Sequence& sequence = params.sequences[item.sequence];
    const HeadWork work = head_work(params, sequence);
    const PageRange pages{work.quantized.first + min(item.begin, work.quantized.count()),
                          work.quantized.first + min(item.end, work.quantized.count())};
    const PageRange tiles = dense_part(work, item);
    const bool dense = tiles.count() > 0;
    attend_quantized(params, shared, warps[thread.warp], item, work, pages, tiles, thread);
    if (dense) attend_dense(params, shared, warps[thread.warp], item, work, tiles, thread);
    merge_warps(shared, warps, dense ? 2 : 1, thread);
    if (item.parts > 1) {
        write_partial(shared, Partial<C>(params, item.slot(item.part)));
        int* arrivals = params.arrivals +
                        (item.sequence * params.kv_heads + item.kv_head) * params.max_strips +
                        item.strip;
        if (!arrive(shared, arrivals, item.parts)) return;
        merge_partials(params, shared, item, reinterpret_cast<float*>(warps[0].ring), thread);
    }
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
    const int block = static_cast<int>(blockIdx.x);
    if (block >= shared.plan.workers) return;
    const bool alone = shared.plan.chunk > 0.0f;
    const Shares shares(shared.plan);
    int unit = alone ? 0 : shares.start(block);
    const int end = alone ? 1 : shares.start(block + 1);
    while (unit < end) {
        __syncthreads(); // what the item before left in shared memory has been read
        if (threadIdx.x == 0)
            shared.item = alone ? only_item(params, shared, block)
                                : item_at(params, shared, shares, block, unit);
        __syncthreads();
        const Item item = shared.item;
        attend_item(params, shared, warps, item, thread);
        unit += item.end - item.begin;
    }
}

} // namespace innerkv::cuda
