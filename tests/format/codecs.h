// SPDX-License-Identifier: Apache-2.0
// What the format tests iterate over: every codec, and values that are hard on codecs.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "innerkv/codec.h"
#include "innerkv/format.h"

namespace innerkv::test {

inline constexpr int kBits[] = {2, 3, 4, 8};
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kLargestF16 = 65504.0f;
inline constexpr float kSmallestF16 = 0x1p-24f; // denormal

inline std::vector<Codec> all_codecs() {
    std::vector<Codec> codecs;
    for (int bits : kBits) {
        codecs.push_back(symmetric(bits));
        codecs.push_back(asymmetric(bits));
        codecs.push_back(hybrid(bits));
        if (bits < 8) codecs.push_back(affine(bits));
    }
    return codecs;
}

inline std::string name_of(Codec codec) {
    const char* kinds[] = {"f16", "symmetric", "asymmetric", "hybrid", "affine"};
    return kinds[static_cast<int>(codec.kind)] + std::to_string(codec.bits);
}

using Group = std::array<float, kGroupSize>;

/// Distributions that a group is drawn from.
enum class Draw {
    normal,
    offset,     ///< mean well away from 0: the asymmetric branch of a hybrid codec wins
    outlier,    ///< one large element
    f16_values, ///< exact in fp16
    denormal,   ///< scale or all values below the normal numbers of fp16
    vanishing,  ///< scale rounds to 0
    largest,    ///< up to the largest finite fp16, both signs
    constant,
    rippled, ///< almost constant: a spread far below the mean
    zero,
    mixed_magnitude ///< exponents spread over all of fp16
};

inline constexpr Draw kDraws[] = {Draw::normal,     Draw::offset,         Draw::outlier,
                                  Draw::f16_values, Draw::denormal,       Draw::vanishing,
                                  Draw::largest,    Draw::constant,       Draw::rippled,
                                  Draw::zero,       Draw::mixed_magnitude};

inline Group draw_group(Draw draw, std::mt19937& random) {
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
    Group group{};
    const float common = normal(random);
    for (float& value : group) {
        switch (draw) {
        case Draw::normal:
        case Draw::outlier:
            value = normal(random);
            break;
        case Draw::offset:
            value = 6.0f + normal(random);
            break;
        case Draw::f16_values:
            value = float_from_f16(f16_from_float(normal(random)));
            break;
        case Draw::denormal:
            value = uniform(random) * 40.0f * kSmallestF16;
            break;
        case Draw::vanishing:
            value = uniform(random) * 0.5f * kSmallestF16;
            break;
        case Draw::largest:
            value = uniform(random) > 0.0f ? kLargestF16 : -kLargestF16;
            break;
        case Draw::constant:
            value = common;
            break;
        case Draw::rippled:
            value = common + 1e-4f * uniform(random);
            break;
        case Draw::zero:
            value = uniform(random) > 0.0f ? 0.0f : -0.0f;
            break;
        case Draw::mixed_magnitude:
            value = std::ldexp(uniform(random), static_cast<int>(20.0f * uniform(random)) - 5);
            break;
        }
    }
    if (draw == Draw::outlier) group[random() % kGroupSize] = 100.0f * common;
    return group;
}

} // namespace innerkv::test
