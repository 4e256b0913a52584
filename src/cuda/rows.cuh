// SPDX-License-Identifier: Apache-2.0
// One row of up to 256 channels in the registers of a warp: reductions, the Hadamard matrix, and elements of the
// three types that callers have. Element j of lane l is channel 32 j + l.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/layout.cuh"

namespace innerkv::cuda {

/// Rows of an item: query tokens times query heads of its KV head.
struct RowPlace {
    int token;
    int q_head;
    bool present;
};

template <class C>
__device__ RowPlace place_of(const AttentionParams& params, const Item& item, int row) {
    const int index = item.strip * C::kRows + row;
    // Rows are below 2^20, where this is exact.
    const int token = static_cast<int>(
        __fdividef(static_cast<float>(index) + 0.5f, static_cast<float>(params.group)));
    return {token, item.kv_head * params.group + index - token * params.group,
            token < query_tokens_of(params, params.sequences[item.sequence])};
}

/// Bits of a row of `channels` elements from element `at` of `data` on, zeros behind; nothing waits for them until they
/// become numbers.
template <int kElements>
__device__ inline void load_row(const void* data, RowType type, std::int64_t at, int channels,
                                int lane, std::uint32_t (&bits)[kElements]) {
    if (type == RowType::f32) {
        const auto* from = static_cast<const std::uint32_t*>(data) + at + lane;
#pragma unroll
        for (int j = 0; j < kElements; ++j)
            bits[j] = kWarpSize * j + lane < channels ? from[kWarpSize * j] : 0;
    } else {
        const auto* from = static_cast<const std::uint16_t*>(data) + at + lane;
#pragma unroll
        for (int j = 0; j < kElements; ++j)
            bits[j] = kWarpSize * j + lane < channels ? from[kWarpSize * j] : 0;
    }
}

/// Those of `row` that there are.
template <int kElements>
__device__ inline void load_channels(const float* from, int channels, int lane,
                                     float (&row)[kElements]) {
#pragma unroll
    for (int j = 0; j < kElements; ++j)
        if (kWarpSize * j + lane < channels) row[j] = from[kWarpSize * j + lane];
}

__device__ inline float float_of(std::uint32_t bits, RowType type) {
    if (type == RowType::f32) return __uint_as_float(bits);
    if (type == RowType::bf16) return __uint_as_float(bits << 16);
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

/// A row of `channels` elements to element `at` of `data` on.
template <int kElements>
__device__ inline void store_row(void* data, RowType type, std::int64_t at, int channels, int lane,
                                 const float (&row)[kElements]) {
    if (type == RowType::f32) {
        auto* to = static_cast<float*>(data) + at + lane;
#pragma unroll
        for (int j = 0; j < kElements; ++j)
            if (kWarpSize * j + lane < channels) to[kWarpSize * j] = row[j];
        return;
    }
    auto* to = static_cast<unsigned short*>(data) + at + lane;
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
        const unsigned short bits = type == RowType::f16
                                        ? __half_as_ushort(__float2half_rn(row[j]))
                                        : __bfloat16_as_ushort(__float2bfloat16_rn(row[j]));
        if (kWarpSize * j + lane < channels) to[kWarpSize * j] = bits;
    }
}

/// The logarithm of a row's weights, whose logits are in units of log2; minus infinity where it has seen nothing.
__device__ inline void write_log_sum_exp(const AttentionParams& params, int sequence, int token,
                                         int q_head, float reference, float weight) {
    constexpr float kLn2 = 0.69314718056f;
    const std::int64_t at = std::int64_t{sequence} * params.max_query_tokens + token;
    params.log_sum_exp[at * params.q_heads + q_head] =
        weight == 0.0f ? -__uint_as_float(0x7f800000) : (reference + log2f(weight)) * kLn2;
}

/// Of magnitudes: their bits are in the order of their values.
__device__ inline float largest_in_warp(float magnitude) {
    return __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(magnitude)));
}

__device__ inline float sum_in_warp(float value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
    return value;
}

/// What makes a Hadamard matrix of so many rows orthonormal.
constexpr float hadamard_scale(int size) {
    return size == 64 ? 0.125f : size == 128 ? 0.08838834764f : 0.0625f;
}

/// The orthonormal Hadamard matrix on blocks of the largest power of two that divides the dimension.
template <int kElements>
__device__ inline void hadamard(float (&row)[kElements], int lane) {
    constexpr int kBlock = kElements & -kElements; // in elements of a lane
#pragma unroll
    for (int step = 1; step < kWarpSize; step *= 2)
#pragma unroll
        for (int j = 0; j < kElements; ++j) {
            const float other = __shfl_xor_sync(~0u, row[j], step);
            row[j] = (lane & step) != 0 ? other - row[j] : row[j] + other;
        }
#pragma unroll
    for (int step = 1; step < kBlock; step *= 2)
#pragma unroll
        for (int j = 0; j < kElements; ++j) {
            if ((j & step) != 0) continue;
            const float a = row[j];
            const float b = row[j + step];
            row[j] = a + b;
            row[j + step] = a - b;
        }
    constexpr float kScale = hadamard_scale(kBlock * kWarpSize);
#pragma unroll
    for (int j = 0; j < kElements; ++j) row[j] *= kScale;
}

} // namespace innerkv::cuda
