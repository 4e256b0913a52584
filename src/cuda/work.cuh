// SPDX-License-Identifier: Apache-2.0
// Which pages a sequence's queries see, and how the work of a launch is cut: into segments, parts of a KV head's strip
// of rows, each of which one block of threads takes at a time.
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

/// A KV head's units, in this order: what takes longest to come first.
struct HeadWork {
    PageRange sink; ///< of kDenseTokens tokens
    PageRange recent;
    PageRange quantized; ///< pages
    __device__ int dense_tiles() const { return sink.count() + recent.count(); }
    __device__ int units() const { return max(1, quantized.count() + kDenseUnits * dense_tiles()); }
};

__device__ inline HeadWork head_work(const AttentionParams& params, const Sequence& sequence) {
    const Visible visible = visible_to(params, sequence, 0, sequence.query_tokens - 1);
    return {pages_of(sequence.sink, visible, kDenseTokens),
            pages_of(sequence.recent, visible, kDenseTokens),
            pages_of(sequence.quantized, visible, kPageTokens)};
}

template <class C>
__device__ int strips_of(const AttentionParams& params, const Sequence& sequence) {
    return (sequence.query_tokens * params.group + C::kRows - 1) / C::kRows;
}

__device__ inline int sum_of_warp(int value) { return __reduce_add_sync(~0u, value); }

/// numerator / denominator, both at least 0, for quotients below 2^22.
__device__ inline int quotient(int numerator, int denominator) {
    int result =
        __float2int_rz(__fdividef(static_cast<float>(numerator), static_cast<float>(denominator)));
    const int rest = numerator - result * denominator;
    if (rest < 0) --result;
    if (rest >= denominator) ++result;
    return result;
}

/// An item's parts: `large` ones over its first `covered` units, `small` ones over the others.
struct Cut {
    int large;
    int covered;
    int small;
    __device__ int parts() const { return large + small; }
};

__device__ inline Cut cut_item(const Sizes& sizes, int units) {
    if (units == 0) return {0, 0, 0};
    const auto count = static_cast<float>(units);
    if (sizes.small == 0.0f)
        return {max(1, __float2int_ru(__fdividef(count, sizes.large))), units, 0};
    const int large = __float2int_rd(__fdividef(count, sizes.equal));
    const int covered = min(units, __float2int_rd(static_cast<float>(large) * sizes.large));
    return {large, covered,
            __float2int_ru(__fdividef(count - static_cast<float>(covered), sizes.small))};
}

/// Sizes of parts for `units` units of `items` items; `largest_of(chunk)`: units of the largest part where items are
/// cut into equal parts of at most `chunk`. One warp calls it.
template <class Largest>
__device__ Sizes choose_sizes(int units, int items, int warps, const Largest& largest_of) {
    const auto blocks = static_cast<float>(gridDim.x);
    // A part of less than a unit a warp takes no less time.
    const float equal =
        fmaxf(__fdividef(static_cast<float>(units), blocks), static_cast<float>(warps));
    // Then there are no more parts than blocks, however item lengths are rounded up.
    const float spare = blocks - static_cast<float>(items);
    const float chunk =
        spare > 0.0f ? fmaxf(equal, __fdividef(static_cast<float>(units), spare)) : 1e9f;
    if (equal < kOneRoundUnits && spare >= 0.0f && largest_of(chunk) <= kMostUnequal * equal)
        return {equal, chunk, 0.0f};
    return {equal, kLargeShare * equal, fmaxf(kLeastSmallUnits, equal / kSmallParts)};
}

/// Over a warp.
__device__ inline Counts prefix_sums(Counts sums, int lane) {
#pragma unroll
    for (int step = 1; step < kWarpSize; step *= 2) {
        const int large = __shfl_up_sync(~0u, sums.large, step);
        const int small = __shfl_up_sync(~0u, sums.small, step);
        const int slots = __shfl_up_sync(~0u, sums.slots, step);
        if (lane < step) continue;
        sums.large += large;
        sums.small += small;
        sums.slots += slots;
    }
    return sums;
}

/// Where each sequence's segments and slots begin. One warp calls it.
template <class C>
__device__ void place_sequences(const AttentionParams& params, BlockShared<C>& shared,
                                const Sizes& sizes, int lane) {
    Counts before{};
    if (lane == 0) shared.first[0] = {0, 0, 0};
#pragma unroll 1
    for (int start = 0; start < params.count; start += kWarpSize) {
        const int s = start + lane;
        Counts sums{};
        if (s < params.count) {
            const Cut cut = cut_item(sizes, shared.units[s]);
            const int items = params.kv_heads * strips_of<C>(params, params.sequences[s]);
            sums = {items * cut.large, items * cut.small,
                    cut.parts() > 1 ? items * cut.parts() : 0};
        }
        sums = prefix_sums(sums, lane);
        if (s < params.count)
            shared.first[s + 1] = {before.large + sums.large, before.small + sums.small,
                                   before.slots + sums.slots};
        before.large += __shfl_sync(~0u, sums.large, kWarpSize - 1);
        before.small += __shfl_sync(~0u, sums.small, kWarpSize - 1);
        before.slots += __shfl_sync(~0u, sums.slots, kWarpSize - 1);
    }
    if (lane == 0) shared.plan = {sizes, before.large, before.large + before.small};
}

/// Shares a launch's work out, the same in every block. All threads call it.
template <class C>
__device__ void plan_work(const AttentionParams& params, BlockShared<C>& shared,
                          const Thread& thread) {
#pragma unroll 1
    for (int s = static_cast<int>(threadIdx.x); s < params.count;
         s += static_cast<int>(blockDim.x)) {
        const Sequence& sequence = params.sequences[s];
        shared.units[s] = sequence.query_tokens == 0 ? 0 : head_work(params, sequence).units();
    }
    __syncthreads();
    if (thread.warp == 0) {
        int units = 0;
        int items = 0;
#pragma unroll 1
        for (int s = thread.lane; s < params.count; s += kWarpSize) {
            const int of_sequence = params.kv_heads * strips_of<C>(params, params.sequences[s]);
            units += shared.units[s] * of_sequence;
            items += of_sequence;
        }
        const auto largest_of = [&](float chunk) {
            int largest = 0;
#pragma unroll 1
            for (int s = thread.lane; s < params.count; s += kWarpSize) {
                const int parts = max(1, cut_item({0.0f, chunk, 0.0f}, shared.units[s]).large);
                largest = max(largest, quotient(shared.units[s] + parts - 1, parts));
            }
            return static_cast<float>(__reduce_max_sync(~0u, largest));
        };
        const Sizes sizes =
            choose_sizes(sum_of_warp(units), sum_of_warp(items), thread.warps, largest_of);
        place_sequences(params, shared, sizes, thread.lane);
    }
    __syncthreads();
}

/// The sequence that segment `at` of its kind is in. A warp calls it.
template <class C>
__device__ int find_sequence(const AttentionParams& params, const BlockShared<C>& shared,
                             int Counts::*kind, int at, int lane) {
    int before = 0; // sequences whose segments all lie in front
#pragma unroll 1
    for (int start = 0; start < params.count; start += kWarpSize) {
        const int s = start + lane;
        const bool in_front = s < params.count && shared.first[s + 1].*kind <= at;
        before += __popc(__ballot_sync(~0u, in_front));
        if (before < start + kWarpSize) break;
    }
    return before;
}

/// Every warp of a block calls it.
template <class C>
__device__ Item item_of(const AttentionParams& params, const BlockShared<C>& shared, int segment,
                        int lane) {
    const Plan& plan = shared.plan;
    const bool large = segment < plan.large_segments;
    const auto kind = large ? &Counts::large : &Counts::small;
    const int at = large ? segment : segment - plan.large_segments;
    const int sequence = find_sequence(params, shared, kind, at, lane);
    const Cut cut = cut_item(plan.sizes, shared.units[sequence]);
    const int parts = large ? cut.large : cut.small;
    const int place = at - shared.first[sequence].*kind;
    const int index = quotient(place, parts);
    const int part = place - index * parts;
    const int units = large ? cut.covered : shared.units[sequence] - cut.covered;
    const int share = quotient(units, parts); // `longer` parts have one unit more
    const int longer = units - share * parts;
    const int begin = (large ? 0 : cut.covered) + share * part + min(part, longer);
    const int strips = strips_of<C>(params, params.sequences[sequence]);
    const int kv_head = quotient(index, strips);
    return {sequence,
            kv_head,
            index - kv_head * strips,
            begin,
            begin + share + (part < longer ? 1 : 0),
            cut.parts(),
            large ? part : cut.large + part,
            shared.first[sequence].slots + index * cut.parts()};
}

} // namespace innerkv::cuda
