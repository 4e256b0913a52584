// SPDX-License-Identifier: Apache-2.0
// Which pages a sequence's queries see, and which block of threads takes which: the work of a launch is one line of
// units, every block takes an equal part of it.
#pragma once

#include "cuda/layout.cuh"

namespace innerkv::cuda {

struct PageRange {
    int first;
    int last;
    __device__ int count() const { return last - first; }
};

/// Positions that any query token of a sequence sees.
struct Visible {
    int begin;
    int end;
};

__device__ inline Visible visible_to(const AttentionParams& params, const Sequence& sequence,
                                     int first_token, int last_token) {
    const int first = static_cast<int>(sequence.first_position) + first_token;
    const int last = static_cast<int>(sequence.first_position) + last_token;
    const int begin = params.sliding_window > 0 ? first + 1 - params.sliding_window : 0;
    return {max(begin, 0), min(last + 1, static_cast<int>(sequence.length))};
}

/// Pages of `tokens` tokens that [begin, end) touches.
__device__ inline PageRange pages_of(const Run& run, Visible visible, int tokens) {
    const int first = static_cast<int>(run.first_token);
    const int begin = max(visible.begin - first, 0) / tokens;
    const int end = min(visible.end - first, static_cast<int>(run.tokens));
    return {begin, max((end + tokens - 1) / tokens, begin)};
}

/// A KV head's units, in this order.
struct HeadWork {
    PageRange quantized; ///< pages
    PageRange sink;      ///< of kDenseTokens tokens
    PageRange recent;
    __device__ int units() const {
        return max(1, quantized.count() + kDenseUnits * (sink.count() + recent.count()));
    }
};

__device__ inline HeadWork head_work(const AttentionParams& params, const Sequence& sequence) {
    const Visible visible = visible_to(params, sequence, 0, sequence.query_tokens - 1);
    return {pages_of(sequence.quantized, visible, kPageTokens),
            pages_of(sequence.sink, visible, kDenseTokens),
            pages_of(sequence.recent, visible, kDenseTokens)};
}

template <class C>
__device__ int strips_of(const AttentionParams& params, const Sequence& sequence) {
    return (sequence.query_tokens * params.group + C::kRows - 1) / C::kRows;
}

/// Parts that an item is cut into.
__device__ inline int parts_of(int units, float chunk) {
    return max(1, __float2int_ru(__fdividef(static_cast<float>(units), chunk)));
}

__device__ inline int sum_of_warp(int value) { return __reduce_add_sync(~0u, value); }

/// Prefix sums of what `count_of` says of each sequence, into shared.first. One warp calls it; returns the sum.
template <class C, class Count>
__device__ int place_sequences(const AttentionParams& params, BlockShared<C>& shared, int lane,
                               const Count& count_of) {
    int before = 0;
    if (lane == 0) shared.first[0] = 0;
    for (int start = 0; start < params.count; start += kWarpSize) {
        const int s = start + lane;
        int sum = s < params.count ? count_of(s) : 0;
#pragma unroll
        for (int step = 1; step < kWarpSize; step *= 2) {
            const int other = __shfl_up_sync(~0u, sum, step);
            if (lane >= step) sum += other;
        }
        if (s < params.count) shared.first[s + 1] = before + sum;
        before += __shfl_sync(~0u, sum, kWarpSize - 1);
    }
    return before;
}

/// The least chunk for which every part has a block of its own, if that leaves blocks at most a fifth more than equal
/// shares would be; otherwise 0. A part costs more than its units: queries, merging. Lanes try one each.
template <class C, class Items>
__device__ float choose_chunk(const AttentionParams& params, const BlockShared<C>& shared, int lane,
                              int units, int items, const Items& items_of) {
    const int blocks = static_cast<int>(gridDim.x);
    if (items > blocks) return 0.0f;
    constexpr float kMost = 1.2f;
    const float equal = fmaxf(static_cast<float>(units) / static_cast<float>(blocks), 1.0f);
    const float chunk = equal * (1.0f + (kMost - 1.0f) / 31.0f * static_cast<float>(lane));
    int parts = 0;
    for (int s = 0; s < params.count; ++s)
        if (shared.units[s] > 0) parts += items_of(s) * parts_of(shared.units[s], chunk);
    const unsigned enough = __ballot_sync(~0u, parts <= blocks);
    if (enough == 0) return 0.0f;
    return __shfl_sync(~0u, chunk, __ffs(static_cast<int>(enough)) - 1);
}

/// Shares a launch's work out, the same in every block. All threads call it.
template <class C>
__device__ void plan_work(const AttentionParams& params, BlockShared<C>& shared,
                          const Thread& thread) {
    for (int s = static_cast<int>(threadIdx.x); s < params.count;
         s += static_cast<int>(blockDim.x)) {
        const Sequence& sequence = params.sequences[s];
        shared.units[s] = sequence.query_tokens == 0 ? 0 : head_work(params, sequence).units();
    }
    __syncthreads();
    if (thread.warp == 0) {
        const auto items_of = [&](int s) {
            return params.kv_heads * strips_of<C>(params, params.sequences[s]);
        };
        int units = 0;
        int items = 0;
        for (int s = thread.lane; s < params.count; s += kWarpSize) {
            units += shared.units[s] * items_of(s);
            items += items_of(s);
        }
        units = sum_of_warp(units);
        items = sum_of_warp(items);
        const float chunk = choose_chunk(params, shared, thread.lane, units, items, items_of);
        const int sum = place_sequences(params, shared, thread.lane, [&](int s) {
            return items_of(s) * (chunk == 0.0f         ? shared.units[s]
                                  : shared.units[s] > 0 ? parts_of(shared.units[s], chunk)
                                                        : 0);
        });
        const int workers = chunk > 0.0f ? sum : min(units, static_cast<int>(gridDim.x));
        const int share = units / max(workers, 1);
        if (thread.lane == 0) shared.plan = {workers, share, units - share * workers, chunk};
    }
    __syncthreads();
}

/// The sequence that place `at` of shared.first is in. Sequences without items share their place with the next one.
template <class C>
__device__ int find_sequence(const AttentionParams& params, const BlockShared<C>& shared, int at) {
    int low = 0;
    int high = params.count; // first[low] <= at < first[high]
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        (shared.first[middle] <= at ? low : high) = middle;
    }
    while (shared.first[low + 1] <= at) ++low;
    return low;
}

/// The part of a block that has one alone.
template <class C>
__device__ Item only_item(const AttentionParams& params, const BlockShared<C>& shared, int block) {
    const int sequence = find_sequence(params, shared, block);
    const int strips = strips_of<C>(params, params.sequences[sequence]);
    const int units = shared.units[sequence];
    const int parts = parts_of(units, shared.plan.chunk);
    const int place = block - shared.first[sequence];
    const int index = place / parts;
    const int part = place - index * parts;
    const int share = units / parts; // `larger` parts have one more
    const int larger = units - share * parts;
    const int begin = share * part + min(part, larger);
    return {sequence,
            index / strips,
            index % strips,
            begin,
            begin + share + (part < larger ? 1 : 0),
            parts,
            part,
            2 * (block - part),
            block - part};
}

/// Blocks' shares of all units where they span items.
struct Shares {
    int share;
    int larger; ///< so many blocks have one unit more
    __device__ explicit Shares(const Plan& plan) : share(plan.share), larger(plan.larger) {}
    __device__ int start(int block) const { return share * block + min(block, larger); }
    __device__ int block_of(int unit) const {
        const int of_larger = (share + 1) * larger;
        return unit < of_larger ? unit / (share + 1) : larger + (unit - of_larger) / share;
    }
};

/// The item of a unit, up to the end of the block's share.
template <class C>
__device__ Item item_at(const AttentionParams& params, const BlockShared<C>& shared,
                        const Shares& shares, int block, int unit) {
    const int sequence = find_sequence(params, shared, unit);
    const int strips = strips_of<C>(params, params.sequences[sequence]);
    const int units = shared.units[sequence];
    const int index = (unit - shared.first[sequence]) / units;
    const int start = shared.first[sequence] + index * units;
    const int first_block = shares.block_of(start);
    const int last_block = shares.block_of(start + units - 1);
    return {sequence,
            index / strips,
            index % strips,
            unit - start,
            min(shares.start(block + 1) - start, units),
            last_block - first_block + 1,
            block - first_block,
            2 * first_block + (shares.start(first_block) < start ? 1 : 0),
            first_block};
}

} // namespace innerkv::cuda
