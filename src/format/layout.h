// SPDX-License-Identifier: Apache-2.0
// Where the codes, scales and zero-points of a block lie (format.h has the specification). Moves bits;
// knows nothing of what they mean.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "innerkv/format.h"

namespace innerkv {

static_assert(std::endian::native == std::endian::little, "pages are little-endian");

/// Of an fp16 scale: marks the asymmetric groups of a hybrid codec.
inline constexpr std::uint16_t kSignBit = 0x8000;

constexpr bool has_supported_bits(Codec codec) {
    if (codec.bits == 8) return codec.kind != CodecKind::affine;
    return codec.bits == 2 || codec.bits == 3 || codec.bits == 4;
}

std::uint8_t read_code(Codec codec, const std::byte* block, int tile, int row, int inner);
void write_code(Codec codec, std::byte* block, int tile, int row, int inner, std::uint8_t code);

/// Bits of the scale and the zero-point of a group, fp16 or, of an affine codec, a byte; zero-points only
/// where the codec has them.
std::uint16_t read_scale(Codec codec, const std::byte* block, int tile, int row);
std::uint16_t read_zero_point(Codec codec, const std::byte* block, int tile, int row);
void write_scale(Codec codec, std::byte* block, int tile, int row, std::uint16_t scale);
void write_zero_point(Codec codec, std::byte* block, int tile, int row, std::uint16_t zero_point);

} // namespace innerkv
