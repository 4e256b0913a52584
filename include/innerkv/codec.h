// SPDX-License-Identifier: Apache-2.0
// Codecs: quantize and dequantize a group or a page. Plain C++; the specification in code that every
// kernel is tested against.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "innerkv/format.h"

namespace innerkv {

/// IEEE binary16, round to nearest even; values beyond 65504 become infinity, NaN stays NaN.
std::uint16_t f16_from_float(float value);
float float_from_f16(std::uint16_t bits);

/// One group of 32 as a codec sees it.
struct QuantizedGroup {
    std::uint8_t codes[kGroupSize]; ///< unsigned, see format.h
    std::uint16_t scale;            ///< fp16; its sign bit marks an asymmetric group of a hybrid codec
    std::uint16_t zero_point;       ///< fp16; 0 unless the group is asymmetric
};

struct QuantizeOptions {
    /// Bits of the asymmetric branch of a hybrid codec; 0 means the codec's own. The InnerQ authors'
    /// accuracy code uses bits - 1.
    int hybrid_asymmetric_bits = 0;
    /// Round scales to fp16 before the codes are computed. Off only to compare with vectors that were
    /// made with fp32 scales.
    bool round_scale = true;
};

/// Quantizes `values` (32 of them). Rounding is half to even. Symmetric: s = max|x| / (2^(b-1) - 1);
/// asymmetric: z = min, s = (max - min) / (2^b - 1); hybrid: the one with the smaller L1 error
/// (InnerQ, arXiv 2602.23200, section 4). An all-zero group has scale 0.
/// Throws InvalidArgument on NaN, infinity or magnitudes above 65504.
QuantizedGroup quantize_group(Codec codec, std::span<const float, kGroupSize> values,
                              const QuantizeOptions& options = {});

void dequantize_group(Codec codec, const QuantizedGroup& group,
                      std::span<float, kGroupSize> values);

/// Quantizes 32 tokens into a page. `k` and `v` are [32][head_dim] with the given row strides in
/// elements; `page` has format.page_bytes() bytes. Throws InvalidArgument on values that are not
/// finite; the page's bytes are then unspecified.
void quantize_page(const PageFormat& format, const float* k, std::ptrdiff_t k_stride,
                   const float* v, std::ptrdiff_t v_stride, std::byte* page);

/// Inverse: writes [32][head_dim] rows of K and V.
void dequantize_page(const PageFormat& format, const std::byte* page, float* k,
                     std::ptrdiff_t k_stride, float* v, std::ptrdiff_t v_stride);

/// Reads or writes one group's codes, scale and zero-point at its place in a block.
void store_group(Codec codec, std::byte* block, int tile, int row, const QuantizedGroup& group);
QuantizedGroup load_group(Codec codec, const std::byte* block, int tile, int row);

} // namespace innerkv
