// SPDX-License-Identifier: Apache-2.0
// Softmax states over disjoint tokens become one: of a block's warps, then of an item's parts. Sums of fp16 pages are
// rotated as values in quantized pages are, so that there is one sum a row; weights stay apart, since the value centre
// counts for quantized tokens alone.
#pragma once

#include "cuda/rows.cuh"

namespace innerkv::cuda {

/// Of a state with this reference in a sum whose reference is `reference`.
__device__ inline float state_factor(float own, float reference) {
    return own == kNoReference ? 0.0f : fast_exp2(own - reference);
}

/// What each warp's sums count, of quantized and of fp16 pages, and the state of all. Lanes of the first warps have a
/// row's warps, eight side by side.
template <class C>
__device__ void merge_warp_states(BlockShared<C>& shared, int kinds, MergedState* states,
                                  const Thread& thread) {
    const int row = static_cast<int>(threadIdx.x) / kMaxWarps;
    const int w = static_cast<int>(threadIdx.x) % kMaxWarps;
    if (thread.warp >= C::kRows * kMaxWarps / kWarpSize) return;
    RowState own[2];
#pragma unroll
    for (int kind = 0; kind < 2; ++kind)
        own[kind] = kind < kinds && w < thread.warps ? shared.warp_states[kind][row][w]
                                                     : RowState{kNoReference, 0.0f};
    float reference = fmaxf(own[0].reference, own[1].reference);
#pragma unroll
    for (int step = 1; step < kMaxWarps; step *= 2)
        reference = fmaxf(reference, __shfl_xor_sync(~0u, reference, step));
    float weights[2];
#pragma unroll
    for (int kind = 0; kind < 2; ++kind) {
        const float factor = state_factor(own[kind].reference, reference);
        shared.warp_factors[kind][row][w] = factor;
        weights[kind] = factor * own[kind].weight;
#pragma unroll
        for (int step = 1; step < kMaxWarps; step *= 2)
            weights[kind] += __shfl_xor_sync(~0u, weights[kind], step);
    }
    if (w == 0) states[row] = {reference, weights[0], weights[1]};
}

/// Two channels of the warps' sums of a kind, which lie in their rings.
template <class C>
__device__ inline float2 sum_warps(const WarpShared<C>* warps, const float* factors, int count,
                                   int at) {
    float2 sum = {};
#pragma unroll 4
    for (int w = 0; w < count; ++w) {
        const float2 own =
            *reinterpret_cast<const float2*>(reinterpret_cast<const float*>(warps[w].ring) + at);
        sum = {fmaf(factors[w], own.x, sum.x), fmaf(factors[w], own.y, sum.y)};
    }
    return sum;
}

/// fp16 pages' sums of all warps into shared.merged_dense, rotated. All threads call it.
template <class C>
__device__ void merge_dense_warps(BlockShared<C>& shared, const WarpShared<C>* warps, bool rotate,
                                  const Thread& thread) {
    constexpr int kSums = C::kRows * C::kDim;
    for (int e = 2 * static_cast<int>(threadIdx.x); e < kSums;
         e += 2 * static_cast<int>(blockDim.x))
        *reinterpret_cast<float2*>(&shared.merged_dense[0][0] + e) =
            sum_warps<C>(warps, shared.warp_factors[1][e / C::kDim], thread.warps, kSums + e);
    __syncthreads();
    if (!rotate) return;
    constexpr int kElements = 2 * C::kBlocks;
    for (int row = thread.warp; row < C::kRows; row += thread.warps) {
        float sums[kElements];
#pragma unroll
        for (int j = 0; j < kElements; ++j)
            sums[j] = shared.merged_dense[row][kWarpSize * j + thread.lane];
        hadamard(sums, thread.lane);
#pragma unroll
        for (int j = 0; j < kElements; ++j)
            shared.merged_dense[row][kWarpSize * j + thread.lane] = sums[j];
    }
    __syncthreads();
}

/// Warps' states, whose sums lie in their rings, to `sums` [rows][dim] and `states` [rows]. All threads call it; what
/// all warps wrote must be there.
template <class C>
__device__ void merge_warps(BlockShared<C>& shared, const WarpShared<C>* warps, bool dense,
                            bool rotate, float* sums, MergedState* states, const Thread& thread) {
    merge_warp_states(shared, dense ? 2 : 1, states, thread);
    __syncthreads();
    if (dense) merge_dense_warps(shared, warps, rotate, thread);
    for (int e = 2 * static_cast<int>(threadIdx.x); e < C::kRows * C::kDim;
         e += 2 * static_cast<int>(blockDim.x)) {
        float2 sum = sum_warps<C>(warps, shared.warp_factors[0][e / C::kDim], thread.warps, e);
        if (dense) {
            const float2 other = *reinterpret_cast<const float2*>(&shared.merged_dense[0][0] + e);
            sum = {sum.x + other.x, sum.y + other.y};
        }
        *reinterpret_cast<float2*>(sums + e) = sum;
    }
}

/// What a part of an item leaves for the block that comes last: sums, then states.
template <class C>
struct Partial {
    float* memory;
    __device__ Partial(const AttentionParams& params, int slot)
        : memory(params.partials +
                 static_cast<std::int64_t>(slot) * partial_floats(C::kRows, C::kDim)) {}
    __device__ MergedState* states() const {
        return reinterpret_cast<MergedState*>(memory + C::kRows * C::kDim);
    }
    __device__ MergedState state(int row) const {
        const float4 four = __ldcg(reinterpret_cast<const float4*>(states() + row));
        return {four.x, four.y, four.z};
    }
    __device__ float4 four_sums(int column) const {
        return __ldcg(reinterpret_cast<const float4*>(memory) + column);
    }
};

/// True in the block that is the last of `parts` to come. All threads call it, after they wrote their partial.
template <class C>
__device__ bool arrive(BlockShared<C>& shared, int* arrivals, int parts) {
    __syncthreads();
    if (threadIdx.x == 0) {
        const bool last = add_acquire_release(arrivals, 1) == parts - 1;
        if (last) *arrivals = 0; // for the next launch
        shared.last_arrival = last ? 1 : 0;
    }
    __syncthreads();
    return shared.last_arrival != 0;
}

inline constexpr int kPartsAtOnce = 16; ///< loads on their way

/// States of an item's rows, and what each part's sums count into factors[row][part]: zeros from the last part to a
/// multiple of kPartsAtOnce * slices.
template <class C>
__device__ void merge_states(const AttentionParams& params, BlockShared<C>& shared,
                             const Item& item, float* factors, int padded_parts,
                             const Thread& thread) {
#pragma unroll 1
    for (int row = thread.warp; row < C::kRows; row += thread.warps) { // parts: lanes
        float* of_row = factors + row * padded_parts;
        float reference = kNoReference;
        float weights[2] = {};
#pragma unroll 1
        for (int part = thread.lane; part < padded_parts; part += kWarpSize) {
            MergedState state{kNoReference, 0.0f, 0.0f};
            if (part < item.parts) state = Partial<C>(params, item.first_slot + part).state(row);
            of_row[part] = state.reference;
            const float higher = fmaxf(reference, state.reference);
            const float before = state_factor(reference, higher);
            const float own = state_factor(state.reference, higher);
            weights[0] = weights[0] * before + state.quantized_weight * own;
            weights[1] = weights[1] * before + state.dense_weight * own;
            reference = higher;
        }
        float highest = reference;
#pragma unroll
        for (int step = 16; step > 0; step /= 2)
            highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, step));
        const float own = state_factor(reference, highest);
        weights[0] = sum_in_warp(weights[0] * own);
        weights[1] = sum_in_warp(weights[1] * own);
#pragma unroll 1
        for (int part = thread.lane; part < padded_parts; part += kWarpSize)
            of_row[part] = state_factor(of_row[part], highest);
        if (thread.lane == 0) shared.merged_states[row] = {highest, weights[0], weights[1]};
    }
}

/// Four channels of parts first, first + step, ... of an item.
template <class C>
__device__ inline void load_parts(const AttentionParams& params, const Item& item, int column,
                                  int first, int step, float4 (&own)[kPartsAtOnce]) {
#pragma unroll
    for (int i = 0; i < kPartsAtOnce; ++i) // beyond the last part, what a factor of 0 takes out
        own[i] = Partial<C>(params, item.first_slot + min(first + i * step, item.parts - 1))
                     .four_sums(column);
}

/// Parts, in the order of units, to shared.merged. `memory`: of merge_bytes(). All threads call it.
template <class C>
__device__ void merge_partials(const AttentionParams& params, BlockShared<C>& shared,
                               const Item& item, float* memory, const Thread& thread) {
    constexpr int kColumns = C::kRows * C::kDim / 4;
    const int t = static_cast<int>(threadIdx.x);
    const int threads = static_cast<int>(blockDim.x);
    const int slices = max(1, threads / kColumns);
    const int step = kPartsAtOnce * slices;
    const int padded_parts = quotient(item.parts + step - 1, step) * step;
    float* factors = memory + 4 * max(threads, kColumns);
    float4 own[kPartsAtOnce];
    // The first loads do not wait for states.
    load_parts<C>(params, item, t % kColumns, t / kColumns, slices, own);
    merge_states(params, shared, item, factors, padded_parts, thread);
    __syncthreads();
#pragma unroll 1
    for (int place = t; place < slices * kColumns; place += threads) {
        const int column = place % kColumns;
        const int slice = place / kColumns;
        const float* of_row = factors + 4 * column / C::kDim * padded_parts + slice;
        float4 sum = {};
#pragma unroll 1
        for (int first = 0; first < padded_parts; first += step) {
            if (first > 0 || place > t)
                load_parts<C>(params, item, column, first + slice, slices, own);
#pragma unroll
            for (int i = 0; i < kPartsAtOnce; ++i) {
                const float factor = of_row[first + i * slices];
                sum = {fmaf(factor, own[i].x, sum.x), fmaf(factor, own[i].y, sum.y),
                       fmaf(factor, own[i].z, sum.z), fmaf(factor, own[i].w, sum.w)};
            }
        }
        reinterpret_cast<float4*>(memory)[place] = sum;
    }
    __syncthreads();
#pragma unroll 1
    for (int column = t; column < kColumns; column += threads) {
        float4 sum = reinterpret_cast<const float4*>(memory)[column];
        for (int slice = 1; slice < slices; ++slice) {
            const float4 other = reinterpret_cast<const float4*>(memory)[column + slice * kColumns];
            sum = {sum.x + other.x, sum.y + other.y, sum.z + other.z, sum.w + other.w};
        }
        reinterpret_cast<float4*>(&shared.merged[0][0])[column] = sum;
    }
}

/// Undoes the values' transform, divides, writes. A warp a row.
template <class C>
__device__ void write_row(const AttentionParams& params, const BlockShared<C>& shared,
                          const Item& item, int row, int lane) {
    const RowPlace place = place_of<C>(params, item, row);
    if (!place.present) return;
    const Sequence& sequence = params.sequences[item.sequence];
    const MergedState state = shared.merged_states[row];
    float weight = state.quantized_weight + state.dense_weight;
    if (shared.faulty[row] != 0 && weight > 0.0f) weight = __uint_as_float(0x7fffffff);
    constexpr int kElements = 2 * C::kBlocks;
    float out[kElements];
#pragma unroll
    for (int j = 0; j < kElements; ++j) out[j] = shared.merged[row][kWarpSize * j + lane];
    if (sequence.rotate != 0) hadamard(out, lane);
    const std::int64_t at = item.sequence * params.out_sequence_stride +
                            place.token * params.out_token_stride +
                            place.q_head * params.out_head_stride;
    const float inverse = weight == 0.0f ? 0.0f : 1.0f / weight;
    float centre[kElements] = {};
    if (sequence.value_centre != nullptr)
        load_channels(sequence.value_centre + item.kv_head * params.head_dim, params.head_dim, lane,
                      centre);
#pragma unroll
    for (int j = 0; j < kElements; ++j)
        out[j] = fmaf(state.quantized_weight, centre[j], out[j]) * inverse;
    store_row(params.out, params.out_type, at, params.head_dim, lane, out);
    if (lane != 0 || params.log_sum_exp == nullptr) return;
    constexpr float kLn2 = 0.69314718056f;
    const std::int64_t token =
        static_cast<std::int64_t>(item.sequence) * params.max_query_tokens + place.token;
    params.log_sum_exp[token * params.q_heads + place.q_head] =
        weight == 0.0f ? -__uint_as_float(0x7f800000) : (state.reference + log2f(weight)) * kLn2;
}

} // namespace innerkv::cuda
