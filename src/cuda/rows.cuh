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
            token < params.sequences[item.sequence].query_tokens};
}

/// An element's bits, which nothing waits for until they become a number.
__device__ inline std::uint32_t load_bits(const void* data, RowType type, std::int64_t index) {
    if (type == RowType::f32) return static_cast<const std::uint32_t*>(data)[index];
    return static_cast<const std::uint16_t*>(data)[index];
}
__device__ inline float float_of(std::uint32_t bits, RowType type) {
    if (type == RowType::f32) return __uint_as_float(bits);
    if (type == RowType::bf16) return __uint_as_float(bits << 16);
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

__device__ inline void store_element(void* data, RowType type, std::int64_t index, float value) {
    if (type == RowType::f32)
        static_cast<float*>(data)[index] = value;
    else if (type == RowType::f16)
        static_cast<__half*>(data)[index] = __float2half_rn(value);
    else
        static_cast<__nv_bfloat16*>(data)[index] = __float2bfloat16_rn(value);
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
    constexpr int kSize = kBlock * kWarpSize;
    constexpr float kScale = kSize == 64 ? 0.125f : kSize == 128 ? 0.08838834764f : 0.0625f;
#pragma unroll
    for (int j = 0; j < kElements; ++j) row[j] *= kScale;
}

} // namespace innerkv::cuda
