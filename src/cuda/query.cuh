// SPDX-License-Identifier: Apache-2.0
// Queries of an item as the products take them: q' = H(q * norm) in int8 per 32 channels for quantized keys, q in
// fp16 for fp16 keys, q . centre for the epochs of quantized keys. A warp a row.
#pragma once

#include "cuda/rows.cuh"
#include "cuda/scales.cuh"
#include "cuda/work.cuh"

namespace innerkv::cuda {

/// Rows with an element beyond are computed as zeros, and their result is NaN.
inline constexpr float kLargestQuery = 1e30f;
/// Below, 127 / largest is no number to multiply with.
inline constexpr float kSmallestQuery = 1e-30f;

/// Affine scales are 2^112 too small as they are read, so queries' are made larger, by what floats hold: sums
/// with them are below 2^19. The rest comes with the row's scale.
template <class S>
constexpr float key_unit() {
    return has_small_scales(S::kind) ? 0x1p100f : 1.0f;
}
template <class S>
constexpr float key_rest() {
    return has_small_scales(S::kind) ? 0x1p12f : 1.0f;
}

/// One group of 32 channels of a row: codes, and the column that its sums are scaled by; `relative`: its scale over
/// the row's.
template <class C>
__device__ void write_group(BlockShared<C>& shared, int row, int group, int lane, int code,
                            float relative) {
    using Key = typename C::Key;
    shared.q_codes[row][32 * group + lane] = static_cast<signed char>(code);
    const int sum = __reduce_add_sync(~0u, code);
    if (lane != 0) return;
    const int high = group % 2;
    constexpr float kLow = 1 << position_low(Key::bits);
    const float factor = high != 0 ? static_cast<float>(1 << position_high(Key::bits)) : 1.0f;
    const float scale = relative * key_unit<Key>() / factor;
    const auto first = column_scale<Key>(static_cast<float>(sum), scale, factor);
    const auto second = column_scale<Key>(static_cast<float>(sum), scale, factor * kLow);
    shared.key_columns[group / 2][high][row] = {scale, first.weight, first.add, second.add};
}

/// q' of a row to int8.
template <class C>
__device__ void quantize_row(const AttentionParams& params, BlockShared<C>& shared, int row,
                             int lane, const float (&q)[2 * C::kBlocks]) {
    float largest[2 * C::kBlocks];
    float largest_of_row = 0.0f;
#pragma unroll
    for (int j = 0; j < 2 * C::kBlocks; ++j) {
        largest[j] = largest_in_warp(fabsf(q[j]));
        largest_of_row = fmaxf(largest_of_row, largest[j]);
    }
    const bool tiny_row = !(largest_of_row > kSmallestQuery);
#pragma unroll
    for (int j = 0; j < 2 * C::kBlocks; ++j) {
        const bool tiny = !(largest[j] > kSmallestQuery);
        const float inverse = tiny ? 0.0f : 127.0f / largest[j];
        write_group(shared, row, j, lane, __float2int_rn(q[j] * inverse),
                    tiny || tiny_row ? 0.0f : largest[j] / largest_of_row);
    }
    if (lane == 0)
        shared.key_scale[row] =
            tiny_row ? 0.0f
                     : largest_of_row / 127.0f * params.logit_scale * key_rest<typename C::Key>();
}

template <class C>
__device__ void prepare_row(const AttentionParams& params, BlockShared<C>& shared, const Item& item,
                            int row, int lane) {
    const Sequence& sequence = params.sequences[item.sequence];
    const RowPlace place = place_of<C>(params, item, row);
    const std::int64_t at = item.sequence * params.q_sequence_stride +
                            place.token * params.q_token_stride +
                            place.q_head * params.q_head_stride;
    constexpr int kElements = 2 * C::kBlocks;
    float q[kElements];
    float transformed[kElements];
    bool faulty = false;
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
        const int channel = kWarpSize * j + lane;
        const bool there = place.present && channel < params.head_dim;
        q[j] = there ? load_element(params.q, params.q_type, at + channel) : 0.0f;
        const float norm = there && sequence.norm != nullptr
                               ? sequence.norm[item.kv_head * params.head_dim + channel]
                               : 1.0f;
        transformed[j] = q[j] * norm;
        faulty = faulty || !(fabsf(q[j] * params.logit_scale) <= kLargestQuery);
    }
    if (sequence.rotate != 0) hadamard(transformed, lane);
    float largest = 0.0f;
#pragma unroll
    for (int j = 0; j < kElements; ++j)
        faulty = faulty || !(fabsf(transformed[j] * params.logit_scale) <= kLargestQuery);
    faulty = __any_sync(~0u, faulty) != 0;
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
        if (faulty) q[j] = transformed[j] = 0.0f;
        q[j] *= params.logit_scale;
        largest = fmaxf(largest, fabsf(q[j]));
        shared.q_scaled[row][kWarpSize * j + lane] = q[j];
    }
    quantize_row(params, shared, row, lane, transformed);
    largest = largest_in_warp(largest);
    const float inverse = largest > kSmallestQuery ? 1.0f / largest : 0.0f;
#pragma unroll
    for (int j = 0; j < kElements; ++j)
        shared.q_half[row][kWarpSize * j + lane] =
            __half_as_ushort(__float2half_rn(q[j] * inverse));
    if (lane != 0) return;
    const Visible visible = visible_to(params, sequence, place.token, place.token);
    shared.faulty[row] = faulty ? 1 : 0;
    shared.dense_scale[row] = largest > kSmallestQuery ? largest : 0.0f;
    // A column without a row sees all: no page is masked for it.
    shared.visible_begin[row] = place.present ? visible.begin : 0;
    shared.visible_end[row] = place.present ? visible.end : 1 << 30;
}

/// All threads call it; they must meet before they read what it wrote.
template <class C>
__device__ void prepare_queries(const AttentionParams& params, BlockShared<C>& shared,
                                const Item& item, const Thread& thread) {
    for (int row = thread.warp; row < C::kRows; row += thread.warps)
        prepare_row(params, shared, item, row, thread.lane);
    for (int row = C::kRows + thread.warp; row < kManyRows; row += thread.warps)
        for (int channel = thread.lane; channel < C::kDim; channel += kWarpSize)
            shared.q_half[row][channel] = 0;
}

/// Products of all rows with one centre.
template <class C>
__device__ void epoch_products(const BlockShared<C>& shared, const float (&centre)[2 * C::kBlocks],
                               int lane, float* offsets) {
#pragma unroll
    for (int row = 0; row < C::kRows; ++row) {
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < 2 * C::kBlocks; ++j)
            sum = fmaf(centre[j], shared.q_scaled[row][kWarpSize * j + lane], sum);
        sum = sum_in_warp(sum);
        if (lane == 0) offsets[row] = sum;
    }
}

/// What the centres of epochs first_epoch .. first_epoch + count - 1 add to the logits, into shared.offsets. As
/// prepare_queries, which it follows.
template <class C>
__device__ void prepare_offsets(const AttentionParams& params, BlockShared<C>& shared,
                                const Item& item, const Thread& thread, int first_epoch,
                                int count) {
    const Sequence& sequence = params.sequences[item.sequence];
    for (int e = thread.warp; e < count; e += thread.warps) {
        float centre[2 * C::kBlocks];
#pragma unroll
        for (int j = 0; j < 2 * C::kBlocks; ++j) {
            const int channel = kWarpSize * j + thread.lane;
            const int at = item.kv_head * params.head_dim + channel;
            centre[j] = 0.0f;
            if (channel >= params.head_dim) continue;
            if (sequence.epochs != nullptr)
                centre[j] = __half2float(
                    reinterpret_cast<const __half*>(sequence.epochs[first_epoch + e])[at]);
            else if (sequence.centre != nullptr)
                centre[j] = sequence.centre[at];
        }
        epoch_products<C>(shared, centre, thread.lane, shared.offsets[e]);
    }
}

} // namespace innerkv::cuda
