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

/// Sums of units in front of each sequence; returns all units. All threads call it.
template <class C>
__device__ int plan_work(const AttentionParams& params, BlockShared<C>& shared) {
    for (int s = static_cast<int>(threadIdx.x); s < params.count;
         s += static_cast<int>(blockDim.x)) {
        const Sequence& sequence = params.sequences[s];
        const int strips = strips_of<C>(params, sequence);
        shared.first_unit[s + 1] =
            strips == 0 ? 0 : head_work(params, sequence).units() * strips * params.kv_heads;
    }
    if (threadIdx.x == 0) shared.first_unit[0] = 0;
    __syncthreads();
    const Thread thread;
    if (thread.warp == 0) {
        int before = 0;
        for (int first = 0; first < params.count; first += kWarpSize) {
            const int s = first + thread.lane;
            int sum = s < params.count ? shared.first_unit[s + 1] : 0;
#pragma unroll
            for (int step = 1; step < kWarpSize; step *= 2) {
                const int other = __shfl_up_sync(~0u, sum, step);
                if (thread.lane >= step) sum += other;
            }
            if (s < params.count) shared.first_unit[s + 1] = before + sum;
            before += __shfl_sync(~0u, sum, kWarpSize - 1);
        }
    }
    __syncthreads();
    return shared.first_unit[params.count];
}

/// Blocks' shares of `total` units, equal but for one.
struct Shares {
    int total;
    int workers; ///< blocks that have any
    __device__ Shares(int units, int blocks) : total(units), workers(min(units, blocks)) {}
    __device__ int start(int block) const {
        return static_cast<int>(static_cast<long long>(total) * block / workers);
    }
    __device__ int block_of(int unit) const {
        return static_cast<int>((static_cast<long long>(unit + 1) * workers - 1) / total);
    }
};

/// The item of a unit. One thread calls it.
template <class C>
__device__ Item find_item(const AttentionParams& params, const BlockShared<C>& shared, int unit) {
    int low = 0;
    int high = params.count; // first_unit[low] <= unit < first_unit[high]
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        (shared.first_unit[middle] <= unit ? low : high) = middle;
    }
    // Sequences without units share their place with the next one.
    while (shared.first_unit[low + 1] <= unit) ++low;
    const Sequence& sequence = params.sequences[low];
    const int strips = strips_of<C>(params, sequence);
    const int units =
        (shared.first_unit[low + 1] - shared.first_unit[low]) / (strips * params.kv_heads);
    const int index = (unit - shared.first_unit[low]) / units;
    return {low, index / strips, index % strips, shared.first_unit[low] + index * units, units};
}

} // namespace innerkv::cuda
