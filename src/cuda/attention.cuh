// SPDX-License-Identifier: Apache-2.0
// The kernel: one launch from queries to outputs. Blocks take equal parts of all sequences' pages; one that
// has a part of a KV head leaves its state, and the last one to come merges them.
#pragma once

#include <climits>

#include "cuda/dense.cuh"
#include "cuda/merge.cuh"
#include "cuda/quantized.cuh"

namespace innerkv::cuda {

/// A block's units of an item.
struct Part {
    int begin; ///< from the item's first unit
    int end;
};

/// fp16 tokens of an item that a block takes: those whose first unit is its own.
__device__ inline PageRange dense_part(const HeadWork& work, const Part& part) {
    const int first = work.quantized.count();
    const auto index = [&](int unit) {
        const int before = max(unit - first, 0);
        const int all = work.sink.count() + work.recent.count();
        return min((before + kDenseUnits - 1) / kDenseUnits, all);
    };
    return {index(part.begin), index(part.end)};
}

/// Pages [pages.first, pages.last) of the quantized run, those of this warp among them.
template <class C>
__device__ void attend_quantized(const AttentionParams& params, BlockShared<C>& shared,
                                 WarpShared<C>& mine, const Item& item, const PageRange& pages,
                                 const Thread& thread) {
    const Sequence& sequence = params.sequences[item.sequence];
    const Run& run = sequence.quantized;
    const int count = max(0, (pages.count() - thread.warp + thread.warps - 1) / thread.warps);
    PageStream<C> stream(run, item.kv_head, pages.first + thread.warp, thread.warps, count,
                         mine.ring, thread.lane);
    const int epoch_pages = sequence.epochs != nullptr ? sequence.epoch_pages : INT_MAX;
    const int before = sequence.epochs != nullptr ? sequence.first_page : 0;
    int page = pages.first + thread.warp;
    int epoch = (before + page) / epoch_pages;
    int in_epoch = (before + page) % epoch_pages;
    const int first_epoch = (before + pages.first) / epoch_pages;
    const int end_epoch = pages.count() > 0 ? (before + pages.last - 1) / epoch_pages + 1 : 0;
    Offsets<C> offsets(params, item, thread, first_epoch, min(kMaxEpochs, end_epoch - first_epoch));
    prepare_queries(params, shared, item, thread);
    __syncthreads();
    offsets.write(shared);
    const int first_token = static_cast<int>(run.first_token);
    Walk<C> walk(params, shared, first_token + static_cast<int>(run.tokens), mine.exchange, thread);
    __syncthreads();
    // As many epochs at a time as shared memory has offsets for.
    for (int first = first_epoch; first < end_epoch; first += kMaxEpochs) {
        if (first > first_epoch) {
            __syncthreads();
            Offsets<C>(params, item, thread, first, min(kMaxEpochs, end_epoch - first))
                .write(shared);
            __syncthreads();
        }
        while (page < pages.last && epoch < first + kMaxEpochs) {
            walk.attend(shared, stream.next(), first_token + kPageTokens * page,
                        shared.offsets[epoch - first]);
            page += thread.warps;
            in_epoch += thread.warps;
            while (in_epoch >= epoch_pages) {
                in_epoch -= epoch_pages;
                ++epoch;
            }
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
    for (int tile = tiles.first + thread.warp; tile < tiles.last; tile += thread.warps) {
        const bool in_sink = tile < work.sink.count();
        const Run& run = in_sink ? sequence.sink : sequence.recent;
        const int index =
            in_sink ? work.sink.first + tile : work.recent.first + tile - work.sink.count();
        const int first = index * kDenseTokens;
        const int run_end = static_cast<int>(run.first_token + run.tokens);
        const auto* page = reinterpret_cast<const unsigned char*>(run.pages[first / kPageTokens]) +
                           run.head_stride * static_cast<unsigned>(item.kv_head);
        walk.attend(shared, rules.within(run_end), page, first % kPageTokens,
                    {visible.begin, min(visible.end, run_end)},
                    static_cast<int>(run.first_token) + first);
    }
    walk.write_state(reinterpret_cast<float*>(mine.ring) + C::kRows * C::kDim,
                     shared.warp_states[thread.warp][1]);
}

/// A block's part of an item. All threads call it; `first_of_block`: whether it is where the block begins.
template <class C>
__device__ void attend_item(const AttentionParams& params, BlockShared<C>& shared,
                            WarpShared<C>* warps, const Item& item, const Part& part,
                            const Shares& shares, const Thread& thread) {
    const Sequence& sequence = params.sequences[item.sequence];
    const HeadWork work = head_work(params, sequence);
    const PageRange pages{work.quantized.first + min(part.begin, work.quantized.count()),
                          work.quantized.first + min(part.end, work.quantized.count())};
    const PageRange tiles = dense_part(work, part);
    const bool dense = tiles.count() > 0;
    attend_quantized(params, shared, warps[thread.warp], item, pages, thread);
    if (dense) attend_dense(params, shared, warps[thread.warp], item, work, tiles, thread);
    merge_warps(shared, warps, dense ? 2 : 1, thread);
    if (part.begin != 0 || part.end != item.units) {
        const int block = static_cast<int>(blockIdx.x);
        const int first_block = shares.block_of(item.start);
        const int last_block = shares.block_of(item.start + item.units - 1);
        const PartialSlots slots{2 * first_block + (shares.start(first_block) < item.start ? 1 : 0),
                                 first_block, last_block - first_block + 1};
        write_partial(shared, Partial<C>(params, slots.at(block - first_block)));
        int* arrivals = params.arrivals +
                        (item.sequence * params.kv_heads + item.kv_head) * params.max_strips +
                        item.strip;
        if (!arrive(shared, arrivals, slots.count)) return;
        merge_partials(params, shared, slots, reinterpret_cast<float*>(warps[0].ring), thread);
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
    const Shares shares(plan_work(params, shared), static_cast<int>(gridDim.x));
    const int block = static_cast<int>(blockIdx.x);
    if (block >= shares.workers) return;
    const int end = shares.start(block + 1);
    for (int unit = shares.start(block); unit < end;) {
        __syncthreads(); // what the item before left in shared memory has been read
        if (threadIdx.x == 0) shared.item = find_item<C>(params, shared, unit);
        __syncthreads();
        const Item item = shared.item;
        const int stop = min(end, item.start + item.units);
        attend_item(params, shared, warps, item, {unit - item.start, stop - item.start}, shares,
                    thread);
        unit = stop;
    }
}

} // namespace innerkv::cuda
