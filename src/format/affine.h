// SPDX-License-Identifier: Apache-2.0
// The bytes and the search of affine codecs, for one group (group.cpp) and for a tile of them (tile.cpp).
#pragma once

#include <cstdint>

#include "innerkv/codec.h"

namespace innerkv {

/// Of an affine codec: five bits of exponent, three of mantissa. From a scale of 0 or more, by way of
/// fp16, half to even; saturates.
constexpr std::uint32_t scale_byte(float scale) {
    constexpr unsigned kLargest = 0xf7;
    const unsigned half = f16_from_float(scale) & 0x7fffu; // -0 is 0
    const unsigned byte = (half + 63 + ((half >> 7) & 1)) >> 7;
    return byte < kLargest ? byte : kLargest;
}

constexpr float scale_from_byte(unsigned byte) {
    return float_from_f16(static_cast<std::uint16_t>(byte << 7));
}

/// Steps that a zero-point byte may hold, and its unit in them.
inline constexpr float kZeroPointSteps = 8.0f;

/// What an affine codec adds to scale * code: the value of code 0, under a zero-point of so many steps.
constexpr float affine_zero(int bits, float scale, float steps) {
    return scale * (steps - 0.5f * static_cast<float>((1 << bits) - 1));
}

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
