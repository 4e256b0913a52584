// SPDX-License-Identifier: Apache-2.0
// Softmax states over disjoint tokens become one: of a block's warps, then of an item's blocks. Quantized pages' sums
// are rotated, fp16 pages' are not: there are two states of each row until the end.
#pragma once

#include "cuda/rows.cuh"

namespace innerkv::cuda {

/// Of a state with this reference in a sum whose reference is `reference`.
__device__ inline float state_factor(float own, float reference) {
    return own == kNoReference ? 0.0f : fast_exp2(own - reference);
}

/// Warps' states, whose sums lie in their rings, to shared.merged. All threads call it.
template <class C>
__device__ void merge_warps(BlockShared<C>& shared, const WarpShared<C>* warps, int kinds,
                            const Thread& thread) {
    __syncthreads();
    const int t = static_cast<int>(threadIdx.x);
    if (t < 2 * C::kRows) {
        const int kind = t / C::kRows;
        const int row = t % C::kRows;
        RowState sum{kNoReference, 0.0f};
        if (kind < kinds) {
            for (int w = 0; w < thread.warps; ++w)
                sum.reference = fmaxf(sum.reference, shared.warp_states[w][kind][row].reference);
            for (int w = 0; w < thread.warps; ++w) {
                const RowState& state = shared.warp_states[w][kind][row];
                const float factor = state_factor(state.reference, sum.reference);
                shared.warp_factors[w][kind][row] = factor;
                sum.weight = fmaf(factor, state.weight, sum.weight);
            }
        }
        shared.merged_states[kind][row] = sum;
    }
    __syncthreads();
    constexpr int kSums = C::kRows * C::kDim;
    for (int e = 4 * t; e < kinds * kSums; e += 4 * static_cast<int>(blockDim.x)) {
        const int kind = e / kSums;
        const int row = e % kSums / C::kDim;
        float4 sum = {};
        for (int w = 0; w < thread.warps; ++w) {
            const float factor = shared.warp_factors[w][kind][row];
            const float4 own = reinterpret_cast<const float4*>(warps[w].ring)[e / 4];
            sum = {fmaf(factor, own.x, sum.x), fmaf(factor, own.y, sum.y),
                   fmaf(factor, own.z, sum.z), fmaf(factor, own.w, sum.w)};
        }
        *reinterpret_cast<float4*>(&shared.merged[0][0][0] + e) = sum;
    }
    __syncthreads();
}

/// A block's part of an item: sums of both kinds, then states. Sums of rows that saw nothing are not written.
template <class C>
struct Partial {
    float* memory;
    __device__ Partial(const AttentionParams& params, int slot)
        : memory(params.partials +
                 static_cast<std::int64_t>(slot) * partial_floats(C::kRows, C::kDim)) {}
    __device__ float4* sums() const { return reinterpret_cast<float4*>(memory); }
    __device__ float2* states() const {
        return reinterpret_cast<float2*>(memory + 2 * C::kRows * C::kDim);
    }
};

template <class C>
__device__ void write_partial(const BlockShared<C>& shared, const Partial<C>& partial) {
    const int t = static_cast<int>(threadIdx.x);
    constexpr int kSums = C::kRows * C::kDim;
    for (int e = 4 * t; e < 2 * kSums; e += 4 * static_cast<int>(blockDim.x)) {
        const int row = e % kSums / C::kDim;
        if (shared.merged_states[e / kSums][row].reference == kNoReference) continue;
        __stcg(partial.sums() + e / 4,
               *reinterpret_cast<const float4*>(&shared.merged[0][0][0] + e));
    }
    if (t < 2 * C::kRows) {
        const RowState state = shared.merged_states[t / C::kRows][t % C::kRows];
        __stcg(partial.states() + t, float2{state.reference, state.weight});
    }
}

/// True in the block that is the last of `parts` to come. All threads call it, after write_partial.
template <class C>
__device__ bool arrive(BlockShared<C>& shared, int* arrivals, int parts) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence(); // of what all threads wrote: the barrier comes before
        const bool last = atomicAdd(arrivals, 1) == parts - 1;
        if (last) *arrivals = 0; // for the next launch
        shared.last_arrival = last ? 1 : 0;
        __threadfence();
    }
    __syncthreads();
    return shared.last_arrival != 0;
}

/// References and weights of an item's states, and what each part's sums count.
template <class C>
__device__ void merge_states(const AttentionParams& params, BlockShared<C>& shared,
                             const Item& item, float* factors, const Thread& thread) {
    constexpr int kStates = 2 * C::kRows;
    for (int s = thread.warp; s < kStates; s += thread.warps) { // a state a warp, parts its lanes
        float reference = kNoReference;
        float weight = 0.0f;
        for (int part = thread.lane; part < item.parts; part += kWarpSize) {
            const float2 state = __ldcg(Partial<C>(params, item.slot(part)).states() + s);
            factors[part * kStates + s] = state.x;
            const float higher = fmaxf(reference, state.x);
            weight =
                weight * state_factor(reference, higher) + state.y * state_factor(state.x, higher);
            reference = higher;
        }
        float highest = reference;
#pragma unroll
        for (int step = 16; step > 0; step /= 2)
            highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, step));
        weight = sum_in_warp(weight * state_factor(reference, highest));
        for (int part = thread.lane; part < item.parts; part += kWarpSize)
            factors[part * kStates + s] = state_factor(factors[part * kStates + s], highest);
        if (thread.lane == 0) shared.merged_states[s / C::kRows][s % C::kRows] = {highest, weight};
    }
}

/// Four channels of a state over parts first, first + step, ...
template <class C>
__device__ float4 sum_parts(const AttentionParams& params, const Item& item, const float* factors,
                            int column, int first, int step) {
    constexpr int kAtOnce = 8; // loads on their way
    const int s = 4 * column / C::kDim;
    float4 sum = {};
    for (int part = first; part < item.parts; part += kAtOnce * step) {
        float factor[kAtOnce];
        float4 own[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
            const int at = part + i * step;
            factor[i] = at < item.parts ? factors[at * 2 * C::kRows + s] : 0.0f;
            own[i] = {};
            if (factor[i] != 0.0f) // otherwise there may be nothing behind it
                own[i] = __ldcg(Partial<C>(params, item.slot(at)).sums() + column);
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i)
            sum = {fmaf(factor[i], own[i].x, sum.x), fmaf(factor[i], own[i].y, sum.y),
                   fmaf(factor[i], own[i].z, sum.z), fmaf(factor[i], own[i].w, sum.w)};
    }
    return sum;
}

/// Blocks' parts, in the order of pages, to shared.merged. `memory`: of merge_bytes().
template <class C>
__device__ void merge_partials(const AttentionParams& params, BlockShared<C>& shared,
                               const Item& item, float* memory, const Thread& thread) {
    constexpr int kColumns = C::kRows * C::kDim / 4; // of one kind of pages
    constexpr int kOfKind = kColumns * kMergeSlices;
    float* factors = memory + 4 * 2 * kOfKind;
    merge_states(params, shared, item, factors, thread);
    __syncthreads();
    auto* sums = reinterpret_cast<float4*>(memory);
    for (int t = static_cast<int>(threadIdx.x); t < 2 * kOfKind; t += static_cast<int>(blockDim.x))
        sums[t] = sum_parts<C>(params, item, factors, t / kOfKind * kColumns + t % kColumns,
                               t % kOfKind / kColumns, kMergeSlices);
    __syncthreads();
    for (int t = static_cast<int>(threadIdx.x); t < 2 * kColumns;
         t += static_cast<int>(blockDim.x)) {
        const float4* own = sums + t / kColumns * kOfKind + t % kColumns;
        float4 sum = own[0];
#pragma unroll
        for (int slice = 1; slice < kMergeSlices; ++slice) {
            const float4 other = own[slice * kColumns];
            sum = {sum.x + other.x, sum.y + other.y, sum.z + other.z, sum.w + other.w};
        }
        reinterpret_cast<float4*>(&shared.merged[0][0][0])[t] = sum;
    }
    __syncthreads();
}

/// Undoes the values' transform, adds both kinds, divides, writes. A warp a row.
template <class C>
__device__ void write_row(const AttentionParams& params, const BlockShared<C>& shared,
                          const Item& item, int row, int lane) {
    const RowPlace place = place_of<C>(params, item, row);
    if (!place.present) return;
    const Sequence& sequence = params.sequences[item.sequence];
    const RowState quantized = shared.merged_states[0][row];
    const RowState dense = shared.merged_states[1][row];
    const float reference = fmaxf(quantized.reference, dense.reference);
    const float quantized_factor = state_factor(quantized.reference, reference);
    const float dense_factor = state_factor(dense.reference, reference);
    float weight = quantized.weight * quantized_factor + dense.weight * dense_factor;
    if (shared.faulty[row] != 0 && weight > 0.0f) weight = __uint_as_float(0x7fffffff);
    constexpr int kElements = 2 * C::kBlocks;
    float out[kElements];
#pragma unroll
    for (int j = 0; j < kElements; ++j) out[j] = shared.merged[0][row][kWarpSize * j + lane];
    if (sequence.rotate != 0) hadamard(out, lane);
    const std::int64_t at = item.sequence * params.out_sequence_stride +
                            place.token * params.out_token_stride +
                            place.q_head * params.out_head_stride;
    const float inverse = weight == 0.0f ? 0.0f : 1.0f / weight;
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
        const int channel = kWarpSize * j + lane;
        if (channel >= params.head_dim) continue;
        const float centre = sequence.value_centre != nullptr
                                 ? sequence.value_centre[item.kv_head * params.head_dim + channel]
                                 : 0.0f;
        float sum = fmaf(quantized.weight, centre, out[j]) * quantized_factor;
        if (dense_factor > 0.0f) sum += shared.merged[1][row][channel] * dense_factor;
        store_element(params.out, params.out_type, at + channel, sum * inverse);
    }
    if (lane != 0 || params.log_sum_exp == nullptr) return;
    constexpr float kLn2 = 0.69314718056f;
    const std::int64_t token =
        static_cast<std::int64_t>(item.sequence) * params.max_query_tokens + place.token;
    params.log_sum_exp[token * params.q_heads + place.q_head] =
        weight == 0.0f ? -__uint_as_float(0x7f800000) : (reference + log2f(weight)) * kLn2;
}

} // namespace innerkv::cuda
