// SPDX-License-Identifier: Apache-2.0
// Which pages a sequence's queries see, and how the work of a launch is cut: into segments, parts of a KV head's strip
// of rows, each of which one block of threads takes at a time.
#pragma once

#include "cuda/layout.cuh"

namespace innerkv::cuda {

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

__device__ inline HeadWork head_work(const AttentionParams& params, const Sequence& sequence) {
    const Visible visible = visible_to(params, sequence, 0, query_tokens_of(params, sequence) - 1);
    return {pages_of(sequence.sink, visible, kDenseTokens),
            pages_of(sequence.recent, visible, kDenseTokens),
            pages_of(sequence.quantized, visible, kPageTokens)};
}

template <class C>
__device__ int strips_of(const AttentionParams& params, const Sequence& sequence) {
    return (query_tokens_of(params, sequence) * params.group + C::kRows - 1) / C::kRows;
}

__device__ inline int sum_of_warp(int value) { return __reduce_add_sync(~0u, value); }
/// Of numbers below 2^52: their halves' sums fit 32 bits.
__device__ inline float sum_of_warp(std::uint64_t value) {
    constexpr int kLowBits = 26;
    const unsigned low = static_cast<unsigned>(value) & ((1u << kLowBits) - 1);
    const auto high = static_cast<unsigned>(value >> kLowBits);
    return fmaf(static_cast<float>(__reduce_add_sync(~0u, high)), 0x1p26f,
                static_cast<float>(__reduce_add_sync(~0u, low)));
}

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

__device__ inline Cut cut_item(const Plan& plan, int units) {
    if (units == 0) return {0, 0, 0};
    const auto count = static_cast<float>(units);
    if (plan.uniform != 0) return {plan.large_parts, units, 0};
    if (plan.chunk > 0.0f) return {__float2int_ru(__fdividef(count, plan.chunk)), units, 0};
    const int large = __float2int_rd(__fdividef(count, plan.equal));
    const int covered =
        min(units, __float2int_rd(static_cast<float>(large) * kLargeShare * plan.equal));
    return {large, covered,
            __float2int_ru(__fdividef(count - static_cast<float>(covered), plan.small))};
}

/// Work of a launch.
struct Load {
    float units; ///< of all items
    int items;
    int longest; ///< units of one item
};

/// How all of it is cut, but for where sequences' segments begin. `longest_part(chunk)`: units of the longest part where
/// items are cut into equal parts of at most `chunk`. A warp calls it.
template <class Longest>
__device__ Plan choose_plan(const AttentionParams& params, const Load& load, int warps,
                            const Longest& longest_part) {
    const auto blocks = static_cast<float>(gridDim.x);
    const auto longest = static_cast<float>(load.longest);
    Plan plan{};
    // A part of less than a unit a warp takes no less time.
    plan.equal = fmaxf(__fdividef(load.units, blocks), static_cast<float>(warps));
    plan.small = fmaxf(kLeastSmallUnits, plan.equal / kSmallParts);
    // Items that are nearly alike are cut alike, which every block can work out by itself.
    const int parts = min(params.parts, quotient(load.longest + warps - 1, warps));
    if (parts > 0 && longest <= kMostUnequal * plan.equal * static_cast<float>(parts)) {
        plan.uniform = 1;
        plan.large_parts = parts;
        plan.segments = plan.large_segments =
            params.count * params.kv_heads * params.max_strips * parts;
        return plan;
    }
    // With parts of this size there are no more than blocks, however items' lengths are rounded up.
    const float spare = blocks - static_cast<float>(load.items);
    if (spare <= 0.0f) return plan;
    const float chunk = fmaxf(plan.equal, __fdividef(load.units, spare));
    if (longest_part(chunk) <= kMostUnequal * plan.equal) plan.chunk = chunk;
    return plan;
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

/// Where each sequence's segments and slots begin, unless all are alike. One warp calls it.
template <class C>
__device__ void place_sequences(const AttentionParams& params, BlockShared<C>& shared, Plan& plan,
                                int lane) {
    Counts before{};
    if (lane == 0) shared.first[0] = {0, 0, 0};
#pragma unroll 1
    for (int start = 0; start < params.count; start += kWarpSize) {
        const int s = start + lane;
        Counts sums{};
        if (s < params.count) {
            const Cut cut = cut_item(plan, shared.units[s]);
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
    plan.large_segments = before.large;
    plan.segments = before.large + before.small;
}

/// Shares a launch's work out, the same in every block. All threads call it; the first warp may read the plan.
template <class C>
__device__ void plan_work(const AttentionParams& params, BlockShared<C>& shared,
                          const Thread& thread) {
#pragma unroll 1
    for (int s = static_cast<int>(threadIdx.x); s < params.count;
         s += static_cast<int>(blockDim.x)) {
        const Sequence& sequence = params.sequences[s];
        const int units = head_work(params, sequence).units(); // asks for all of it at once
        shared.units[s] = query_tokens_of(params, sequence) == 0 ? 0 : units;
    }
    if (params.count > kWarpSize) __syncthreads(); // otherwise the first warp has written all
    if (thread.warp != 0) return;
    __syncwarp();
    std::uint64_t all = 0; // of long sequences' chunks more than an int holds
    int items = 0;
    int most = 0;
#pragma unroll 1
    for (int s = thread.lane; s < params.count; s += kWarpSize) {
        const int own = params.kv_heads * strips_of<C>(params, params.sequences[s]);
        const int units = shared.units[s];
        all += std::uint64_t{static_cast<unsigned>(units)} * static_cast<unsigned>(own);
        items += own;
        most = max(most, units);
    }
    const Load load = {sum_of_warp(all), sum_of_warp(items), __reduce_max_sync(~0u, most)};
    const auto longest_part = [&](float chunk) {
        float longest = 0.0f;
#pragma unroll 1
        for (int s = thread.lane; s < params.count; s += kWarpSize) {
            const auto units = static_cast<float>(shared.units[s]);
            const float parts = fmaxf(1.0f, ceilf(__fdividef(units, chunk)));
            longest = fmaxf(longest, __fdividef(units, parts));
        }
        return __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(longest)));
    };
    Plan plan = choose_plan(params, load, thread.warps, longest_part);
    if (plan.uniform == 0) place_sequences(params, shared, plan, thread.lane);
    if (thread.lane == 0) shared.plan = plan;
    __syncwarp();
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

/// Part `part` of those that cover `units` units from `begin` on.
struct Share {
    int begin;
    int end;
    __device__ Share(int begin_unit, int units, int part, int parts) {
        const int share = quotient(units, parts);
        const int longer = units - share * parts; // so many parts have one unit more
        begin = begin_unit + share * part + min(part, longer);
        end = begin + share + (part < longer ? 1 : 0);
    }
};

/// A warp calls it. An item without units has no parts.
template <class C>
__device__ Item item_of(const AttentionParams& params, const BlockShared<C>& shared, int segment,
                        int lane) {
    const Plan& plan = shared.plan;
    const bool large = segment < plan.large_segments;
    const auto kind = large ? &Counts::large : &Counts::small;
    int at = large ? segment : segment - plan.large_segments;
    int sequence = 0;
    int index = 0; // of the item in its sequence
    int part = 0;
    int slots = 0; // in front of the sequence
    Cut cut{};
    if (plan.uniform != 0) {
        const int parts = plan.large_parts;
        const int of_sequence = params.kv_heads * params.max_strips;
        const int item = quotient(at, parts);
        part = at - item * parts;
        sequence = quotient(item, of_sequence);
        index = item - sequence * of_sequence;
        cut = cut_item(plan, shared.units[sequence]);
        slots = sequence * of_sequence * parts;
    } else {
        sequence = find_sequence(params, shared, kind, at, lane);
        at -= shared.first[sequence].*kind;
        cut = cut_item(plan, shared.units[sequence]);
        const int parts = large ? cut.large : cut.small;
        index = quotient(at, parts);
        part = at - index * parts;
        slots = shared.first[sequence].slots;
    }
    const int units = shared.units[sequence];
    const int strips =
        plan.uniform != 0 ? params.max_strips : strips_of<C>(params, params.sequences[sequence]);
    const int kv_head = quotient(index, strips);
    const int strip = index - kv_head * strips;
    if (plan.uniform != 0 && strip >= strips_of<C>(params, params.sequences[sequence])) cut = {};
    const Share share(large ? 0 : cut.covered, large ? cut.covered : units - cut.covered, part,
                      max(1, large ? cut.large : cut.small));
    return {sequence,
            kv_head,
            strip,
            share.begin,
            share.end,
            cut.parts(),
            large ? part : cut.large + part,
            slots + index * cut.parts()};
}

/// Pages of a part: units count fp16 tiles first, a tile where its first unit is.
__device__ inline PageRange tiles_of(const HeadWork& work, const Item& item) {
    const auto tile = [&](int unit) {
        return min((unit + kDenseUnits - 1) / kDenseUnits, work.dense_tiles());
    };
    return {tile(item.begin), tile(item.end)};
}
__device__ inline PageRange quantized_pages_of(const HeadWork& work, const Item& item) {
    const auto page = [&](int unit) {
        return work.quantized.first +
               min(max(0, unit - kDenseUnits * work.dense_tiles()), work.quantized.count());
    };
    return {page(item.begin), page(item.end)};
}

__device__ inline EpochWork epochs_of(const Sequence& sequence, const PageRange& pages) {
    if (sequence.epochs == nullptr) return {1 << 30, 0, 0, pages.count() > 0 ? 1 : 0};
    const int size = sequence.epoch_pages;
    const int place = sequence.first_page + pages.first;
    const int first = quotient(place, size);
    const int first_page = place - first * size;
    const int end =
        pages.count() > 0 ? first + quotient(first_page + pages.count() - 1, size) + 1 : first;
    return {size, first, first_page, end};
}

/// The first warp writes shared.task, if the block's segment is one.
template <class C>
__device__ void write_task(const AttentionParams& params, BlockShared<C>& shared,
                           const Thread& thread) {
    if (shared.segment >= shared.plan.segments) return;
    const Item item = item_of(params, shared, shared.segment, thread.lane);
    const Sequence& sequence = params.sequences[item.sequence];
    const HeadWork work = head_work(params, sequence);
    const PageRange pages = quantized_pages_of(work, item);
    if (thread.lane == 0)
        shared.task = {item, work, pages, tiles_of(work, item), epochs_of(sequence, pages)};
}

} // namespace innerkv::cuda
