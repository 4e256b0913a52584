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

/// What each warp's sums count, of quantized and of fp16 pages, and the state of all: a lane has a warp of a row, the
/// row's warps side by side. All threads call it.
template <class C>
__device__ void merge_warp_states(BlockShared<C>& shared, int kinds, MergedState* states,
                                  const Thread& thread) {
#pragma unroll 1
    for (int at = static_cast<int>(threadIdx.x); at < C::kRows * kMaxWarps;
         at += static_cast<int>(blockDim.x)) {
        const int row = at / kMaxWarps;
        const int w = at % kMaxWarps;
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
    __device__ float reference(int row) const { return __ldcg(&states()[row].reference); }
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

/// The states of an item's rows over all parts: a row a warp, parts its lanes. Loads of the first parts are on their way
/// when this is made.
template <class C>
class PartStates {
public:
    __device__ PartStates(const AttentionParams& params, const Item& item, int row, int lane)
        : state_{kNoReference, 0.0f, 0.0f} {
        if (row < C::kRows && lane < item.parts)
            state_ = Partial<C>(params, item.first_slot + lane).state(row);
    }

    __device__ MergedState merge(const AttentionParams& params, const Item& item, int row,
                                 int lane) {
#pragma unroll 1
        for (int part = lane + kWarpSize; part < item.parts; part += kWarpSize)
            add(Partial<C>(params, item.first_slot + part).state(row));
        float highest = state_.reference;
#pragma unroll
        for (int step = 16; step > 0; step /= 2)
            highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, step));
        const float factor = state_factor(state_.reference, highest);
        return {highest, sum_in_warp(state_.quantized_weight * factor),
                sum_in_warp(state_.dense_weight * factor)};
    }

private:
    __device__ void add(const MergedState& own) {
        const float higher = fmaxf(state_.reference, own.reference);
        const float before = state_factor(state_.reference, higher);
        const float factor = state_factor(own.reference, higher);
        state_ = {higher, state_.quantized_weight * before + own.quantized_weight * factor,
                  state_.dense_weight * before + own.dense_weight * factor};
    }

    MergedState state_;
};

/// Four channels of a row's sums, and the reference that they have.
struct SliceSums {
    float4 sums;
    float reference;
};

/// Of parts first, first + step, ... of an item.
template <class C>
__device__ inline SliceSums sum_parts(const AttentionParams& params, const Item& item, int column,
                                      int first, int step) {
    constexpr int kAtOnce = 8; // loads on their way
    const int row = 4 * column / C::kDim;
    SliceSums out{{}, kNoReference};
#pragma unroll 1
    for (int start = first; start < item.parts; start += kAtOnce * step) {
        float4 sums[kAtOnce];
        float references[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
            const int part = start + i * step;
            const Partial<C> partial(params, item.first_slot + min(part, item.parts - 1));
            sums[i] = partial.four_sums(column);
            references[i] = partial.reference(row);
            if (part >= item.parts) references[i] = kNoReference;
        }
        float higher = out.reference;
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) higher = fmaxf(higher, references[i]);
        const float before = state_factor(out.reference, higher);
        float4 sum = {out.sums.x * before, out.sums.y * before, out.sums.z * before,
                      out.sums.w * before};
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
            const float factor = state_factor(references[i], higher);
            sum = {fmaf(factor, sums[i].x, sum.x), fmaf(factor, sums[i].y, sum.y),
                   fmaf(factor, sums[i].z, sum.z), fmaf(factor, sums[i].w, sum.w)};
        }
        out = {sum, higher};
    }
    return out;
}

/// Parts, in the order of units, to shared.merged: slices of them first, then these. `memory`: of merge_bytes(). All
/// threads call it.
template <class C>
__device__ void merge_partials(const AttentionParams& params, BlockShared<C>& shared,
                               const Item& item, SliceSums* memory, const Thread& thread) {
    constexpr int kColumns = C::kRows * C::kDim / 4;
    const int t = static_cast<int>(threadIdx.x);
    const int threads = static_cast<int>(blockDim.x);
    const int slices = max(1, threads / kColumns);
    PartStates<C> states(params, item, thread.warp, thread.lane);
#pragma unroll 1
    for (int place = t; place < slices * kColumns; place += threads)
        memory[place] = sum_parts<C>(params, item, place % kColumns, place / kColumns, slices);
#pragma unroll 1
    for (int row = thread.warp; row < C::kRows;) {
        const MergedState state = states.merge(params, item, row, thread.lane);
        if (thread.lane == 0) shared.merged_states[row] = state;
        row += thread.warps;
        states = PartStates<C>(params, item, row, thread.lane);
    }
    __syncthreads();
#pragma unroll 1
    for (int column = t; column < kColumns; column += threads) {
        const float reference = shared.merged_states[4 * column / C::kDim].reference;
        float4 sum = {};
#pragma unroll 1
        for (int slice = 0; slice < slices; ++slice) {
            const SliceSums own = memory[column + slice * kColumns];
            const float factor = state_factor(own.reference, reference);
            sum = {fmaf(factor, own.sums.x, sum.x), fmaf(factor, own.sums.y, sum.y),
                   fmaf(factor, own.sums.z, sum.z), fmaf(factor, own.sums.w, sum.w)};
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
    write_log_sum_exp(params, item.sequence, place.token, place.q_head, state.reference, weight);
}

} // namespace innerkv::cuda
