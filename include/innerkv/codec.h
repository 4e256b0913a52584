// SPDX-License-Identifier: Apache-2.0
// Codecs: quantize and dequantize a group or a page. Plain C++; the specification in code that every
// kernel is tested against.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "innerkv/format.h"

namespace innerkv {

/// The largest magnitude that fp16 and codecs hold.
inline constexpr float kLargestF16 = 65504.0f;

namespace detail {
/// condition ? a : b by masks: compilers turn it into no branch, and do not sink what a and b need
/// under one (which floating-point traps would else forbid them to undo).
constexpr std::uint32_t select(bool condition, std::uint32_t a, std::uint32_t b) {
    const std::uint32_t mask = 0u - static_cast<std::uint32_t>(condition);
    return (a & mask) | (b & ~mask);
}
} // namespace detail

/// IEEE binary16, round to nearest even; magnitudes from 65520 become infinity, NaN stays NaN. Free of
/// branches, so that loops over rows vectorize; right with denormals flushed to zero, too.
constexpr std::uint16_t f16_from_float(float value) {
    constexpr std::uint32_t kInfinity = 0x7f800000;
    constexpr std::uint32_t kOverflow = 0x477ff000;       // 65520
    constexpr std::uint32_t kSmallestNormal = 0x38800000; // 2^-14
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t magnitude = bits & 0x7fffffff;
    const std::uint32_t normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;
    // A unit in the last place of 0.5 is the smallest fp16 denormal: the addition rounds.
    const std::uint32_t denormal =
        std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
    std::uint32_t result = detail::select(magnitude < kSmallestNormal, denormal, normal);
    result = detail::select(magnitude >= kOverflow, 0x7c00, result);
    result = detail::select(magnitude > kInfinity, 0x7e00, result);
    return static_cast<std::uint16_t>(result | ((bits >> 16) & 0x8000));
}

constexpr float float_from_f16(std::uint16_t bits) {
    const std::uint32_t magnitude = (bits & 0x7fffu) << 13;
    const std::uint32_t normal = magnitude + (112u << 23);
    const std::uint32_t special = magnitude + (224u << 23);
    const auto denormal = std::bit_cast<std::uint32_t>(
        std::bit_cast<float>(magnitude + (113u << 23)) - std::bit_cast<float>(113u << 23));
    std::uint32_t result = detail::select(magnitude < (1u << 23), denormal, normal);
    result = detail::select(magnitude >= (31u << 23), special, result);
    return std::bit_cast<float>(result | ((bits & 0x8000u) << 16));
}

/// One group of 32 as a codec sees it.
struct QuantizedGroup {
    std::uint8_t codes[kGroupSize]; ///< unsigned, see format.h
    std::uint16_t scale;      ///< fp16; its sign bit marks an asymmetric group of a hybrid codec;
                              ///< of an affine codec a byte, as format.h has it
    std::uint16_t zero_point; ///< fp16; 0 unless the group is asymmetric; affine: a signed byte
};

/// The same with fp32 scale and zero-point. A value is scale * code + zero_point in asymmetric groups (and affine
/// ones, whose zero-point is the value of code 0), scale * (code - 2^(bits - 1)) in others.
struct UnroundedGroup {
    std::uint8_t codes[kGroupSize];
    float scale;
    float zero_point; ///< 0 unless the group is asymmetric
    bool asymmetric;
};

struct QuantizeOptions {
    /// Bits of the asymmetric branch of a hybrid codec; 0 means the codec's own. The InnerQ authors'
    /// accuracy code uses bits - 1, their CUDA code bits.
    int hybrid_asymmetric_bits = 0;
};

/// Quantizes `values` (InnerQ, arXiv 2602.23200, section 4).
///
///     symmetric     s = max|x| / (2^(b-1) - 1)      level = x / s in -(2^(b-1) - 1) .. 2^(b-1) - 1
///     asymmetric    z = min, s = (max - z) / (2^b - 1)      code = (x - z) / s in 0 .. 2^b - 1
///     hybrid        the one whose L1 error is smaller, symmetric on ties
///
/// in fp32; z and s are rounded to fp16 as soon as they are known (s not below 0), then the levels are
/// computed, rounded half to even and clamped; all are 0 where s = 0. The 32 errors are added as a
/// binary tree, i and i + 16 first, then i and i + 8, ...: as vector registers and warps do it, so
/// that every backend takes the same branch of a hybrid codec.
///
/// |x - x'| <= max(s / 2, L * 2^-25) with L = 2^(b-1) - 1 (symmetric) or 2^b - 1, up to fp32 rounding;
/// asymmetric groups whose minimum is not a number of fp16: plus the rounding error of z. The second
/// term is for scales among the denormals of fp16, whose rounding no level makes up for. A symmetric
/// group of scale 0 or above L * 2^-24 that is dequantized and quantized again gives the same bytes,
/// unless it leaves the range of fp16 on the way (dequantize_group).
///
/// An affine codec has no closed form: five shares of the group's range (1, 0.93, ... 0.72) about its middle
/// give a scale each, rounded to its byte, and a zero-point; codes are rounded under them, scale and
/// zero-point fitted to the codes by least squares, rounded, codes rounded again. The smallest sum of
/// squared errors wins, the first of equals. Sums run over elements in order. On Gaussian groups that leaves
/// 0.62 (4 bits), 0.45 (3) and 0.22 (2) of the symmetric codec's squared error at the same bytes; a single
/// group may do worse, one of 20 at 4 bits.
///
/// Throws InvalidArgument on NaN, infinity, magnitudes above 65504 and unsupported codecs.
QuantizedGroup quantize_group(Codec codec, std::span<const float, kGroupSize> values,
                              const QuantizeOptions& options = {});

/// The same without rounding s and z: the arithmetic of the InnerQ authors' accuracy code, to compare
/// with vectors made by it. Pages cannot hold such groups.
UnroundedGroup quantize_group_unrounded(Codec codec, std::span<const float, kGroupSize> values,
                                        const QuantizeOptions& options = {});

/// A stored group with its scale and zero-point as numbers. Throws InvalidArgument on unsupported codecs.
UnroundedGroup group_as_numbers(Codec codec, const QuantizedGroup& group);

/// The rounding of the scale may carry magnitudes up to 64 beyond 65504: clamp before storing as fp16.
/// Throws InvalidArgument on unsupported codecs.
void dequantize_group(Codec codec, const QuantizedGroup& group,
                      std::span<float, kGroupSize> values);

/// Quantizes 32 tokens into a page. `k` and `v` are [32][head_dim] with the given row strides in
/// elements; `page` has format.page_bytes() bytes, of any alignment. Each group is what quantize_group
/// makes of it. Throws InvalidArgument on unsupported formats, and on values that are not finite or
/// beyond 65504; the page's bytes are then unspecified.
void quantize_page(const PageFormat& format, const float* k, std::ptrdiff_t k_stride,
                   const float* v, std::ptrdiff_t v_stride, std::byte* page);

/// Inverse: writes [32][head_dim] rows of K and V. Reads any bytes.
void dequantize_page(const PageFormat& format, const std::byte* page, float* k,
                     std::ptrdiff_t k_stride, float* v, std::ptrdiff_t v_stride);

/// Reads or writes one group's codes, scale and zero-point at its place in a block, leaving the rest of
/// the block as it is. Codes are below 2^bits.
void store_group(Codec codec, std::byte* block, int tile, int row, const QuantizedGroup& group);
QuantizedGroup load_group(Codec codec, const std::byte* block, int tile, int row);

} // namespace innerkv
