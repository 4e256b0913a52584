// SPDX-License-Identifier: Apache-2.0
// Scales and zero-points of two rows of a tile, and the arithmetic that applies them to sums.
//
// A sum S of products with codes, left at bit n, arrives as the float kMagic + 2^n S. With w = 2^n sum(q) / 8
//
//     affine       scale * q_scale * (S + (z - 4 (2^b - 1)) sum(q) / 8)
//                  u = (sum + z w) q_scale + add,   add = -(kMagic + 4 (2^b - 1) w) q_scale
//     symmetric    u = sum q_scale + add,           add = -(kMagic + 2^(b-1) 2^n sum(q)) q_scale
//     hybrid       u = sum q_scale + add,           add = -kMagic q_scale; zero * q_scale * sum(q) is added apart
//
// and scale * u is 2^n times what a group adds: what is added to has the same n, and is divided once, at the end.
// A fused multiply-add with kMagic rounds to ones, or half ones, of the sum: a tenth of what int8 queries err by.
#pragma once

#include <cuda_fp16.h>

#include "cuda/codes.cuh"
#include "cuda/ptx.cuh"

namespace innerkv::cuda {

/// Without its two lowest bits: then its product with kMagic, 3 * 2^22, is exact. A rounded product would be off by a
/// third of a one of the sum, and alike in all pages whose probabilities have the same scale.
__device__ inline float exact_with_magic(float scale) {
    return __uint_as_float(__float_as_uint(scale) & ~3u);
}

/// Affine scales are read as floats whose exponent is 112 too small: the byte is moved, not converted.
constexpr bool has_small_scales(CodecKind kind) { return kind == CodecKind::affine; }

/// 4 (2^b - 1): the middle of the codes in eighths of a step.
constexpr float middle_eighths(int bits) { return static_cast<float>(4 * ((1 << bits) - 1)); }

struct RowScales {
    float scale[2];
    float zero[2]; ///< affine: the signed byte; hybrid: what a code 0 stands for
};

/// Rows 2g and 2g + 1 of `tile`. `scales`: of the block, behind its codes.
template <class S>
__device__ inline RowScales load_scales(const unsigned char* scales, int tile, int g) {
    RowScales out;
    if constexpr (S::kind == CodecKind::affine) {
        const unsigned char* at = scales + 16 * tile + 2 * g;
        const std::uint32_t scale = *reinterpret_cast<const std::uint16_t*>(at);
        const std::uint32_t zero = *reinterpret_cast<const std::uint16_t*>(at + S::scale_bytes);
        out.scale[0] = __uint_as_float((scale << 20) & 0x0ff00000);
        out.scale[1] = __uint_as_float((scale << 12) & 0x0ff00000);
        out.zero[0] = static_cast<float>(static_cast<std::int8_t>(zero));
        out.zero[1] = static_cast<float>(second_signed_byte(zero));
    } else {
        const unsigned char* at = scales + 32 * tile + 4 * g;
        const float2 scale = __half22float2(*reinterpret_cast<const __half2*>(at));
        out.scale[0] = scale.x;
        out.scale[1] = scale.y;
        out.zero[0] = out.zero[1] = 0.0f;
        if constexpr (S::kind == CodecKind::hybrid) {
            const float2 zero =
                __half22float2(*reinterpret_cast<const __half2*>(at + S::scale_bytes));
            const float points[2] = {zero.x, zero.y};
            constexpr float kLevelZero = 1 << (S::bits - 1);
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                // The sign bit marks an asymmetric group, also of a scale of 0.
                const bool marked = (__float_as_uint(out.scale[row]) >> 31) != 0;
                out.zero[row] = marked ? points[row] : -kLevelZero * out.scale[row];
                out.scale[row] = fabsf(out.scale[row]);
            }
        }
    }
    return out;
}

/// What a column's sums are scaled by.
struct ColumnScale {
    float scale;
    float add;
    float weight; ///< affine: w; hybrid: scale * 2^n * sum
};

/// `onto` plus a group's share.
template <class S>
__device__ inline float add_group(float sum, const RowScales& rows, int row,
                                  const ColumnScale& column, float onto) {
    if constexpr (S::kind == CodecKind::affine) sum = fmaf(rows.zero[row], column.weight, sum);
    if constexpr (S::kind == CodecKind::hybrid) onto = fmaf(rows.zero[row], column.weight, onto);
    return fmaf(rows.scale[row], fmaf(sum, column.scale, column.add), onto);
}

/// The column's scale where the other side's sum of this group is `sum` and counts `scale` each, for codes left at
/// bit n; factor: 2^n.
template <class S>
__device__ inline ColumnScale column_scale(float sum, float scale, float factor) {
    if constexpr (S::kind == CodecKind::affine) {
        const float weight = sum * (0.125f * factor);
        return {scale, -fmaf(middle_eighths(S::bits), weight, kMagic) * scale, weight};
    } else if constexpr (S::kind == CodecKind::symmetric) {
        constexpr float kBias = S::codec.bias();
        return {scale, -fmaf(kBias * factor, sum, kMagic) * scale, 0.0f};
    } else {
        return {scale, -kMagic * scale, sum * scale * factor};
    }
}

} // namespace innerkv::cuda
