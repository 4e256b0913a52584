// SPDX-License-Identifier: Apache-2.0
// Where the codes, scales and zero-points of a block lie (format.h has the specification). Moves bits;
// knows nothing of what they mean.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "innerkv/codec.h"
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

/// Of an affine codec: five bits of exponent, three of mantissa. From a scale of 0 or more, by way of
/// fp16, half to even; saturates.
inline std::uint8_t scale_byte(float scale) {
    constexpr unsigned kLargest = 0xf7;
    const unsigned half = f16_from_float(scale) & 0x7fffu; // -0 is 0
    const unsigned byte = (half + 63 + ((half >> 7) & 1)) >> 7;
    return static_cast<std::uint8_t>(byte < kLargest ? byte : kLargest);
}

inline float scale_from_byte(unsigned byte) {
    return float_from_f16(static_cast<std::uint16_t>(byte << 7));
}

/// Steps that a zero-point byte may hold, and its unit in them.
inline constexpr float kZeroPointSteps = 8.0f;

/// Shares of a group's range that the search for an affine scale begins with.
inline constexpr float kAffineRanges[] = {1.0f, 0.93f, 0.86f, 0.79f, 0.72f};

/// The shortest step with which a zero-point still reaches a group whose middle is `middle`: 127 eighths,
/// less a 16th for a scale rounded down and half a step for codes that are not evenly used.
constexpr float shortest_affine_step(float middle) {
    constexpr float kReach = 115.0f / kZeroPointSteps;
    return (middle < 0.0f ? -middle : middle) / kReach;
}

/// Scale and value of code 0 that spread the codes over `range` of a group's half-width about its middle.
struct AffineStart {
    float scale;
    float zero;
};
constexpr AffineStart affine_start(int bits, float middle, float half, float range) {
    const auto levels = static_cast<float>((1 << bits) - 1);
    const float shortest = shortest_affine_step(middle);
    const float spread = 2.0f * half * range / levels;
    const float scale = spread < shortest ? shortest : spread;
    return {scale, middle - 0.5f * levels * scale};
}

} // namespace innerkv
