// SPDX-License-Identifier: Apache-2.0
// fp16 conversion against the definition of the format, in double precision.
#include <bit>
#include <cmath>

#include <gtest/gtest.h>

#include "codecs.h"

namespace innerkv::test {
namespace {

/// Value of a finite fp16, from sign, exponent and fraction.
double value_of(unsigned bits) {
    const int exponent = static_cast<int>(bits >> 10 & 31);
    const int fraction = static_cast<int>(bits & 1023);
    const double magnitude =
        exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    return bits & 0x8000 ? -magnitude : magnitude;
}

TEST(F16, ToFloatEveryValue) {
    for (unsigned bits = 0; bits < 65536; ++bits) {
        const float value = float_from_f16(static_cast<std::uint16_t>(bits));
        EXPECT_EQ(std::signbit(value), bits >= 0x8000u);
        if ((bits & 0x7fff) == 0x7c00)
            EXPECT_TRUE(std::isinf(value));
        else if ((bits & 0x7fff) > 0x7c00)
            EXPECT_TRUE(std::isnan(value));
        else
            EXPECT_EQ(value, value_of(bits)) << bits;
    }
}

TEST(F16, FromFloatKeepsEveryFiniteValue) {
    for (unsigned bits = 0; bits < 0x7c00; ++bits) {
        EXPECT_EQ(f16_from_float(static_cast<float>(value_of(bits))), bits);
        EXPECT_EQ(f16_from_float(static_cast<float>(value_of(bits | 0x8000))), bits | 0x8000);
    }
}

TEST(F16, FromFloatRoundsToNearestEven) {
    for (unsigned lower = 0; lower < 0x7c00; ++lower) {
        const unsigned upper = lower + 1; // infinity stands where 65536 would be
        const double next = upper == 0x7c00 ? 65536.0 : value_of(upper);
        const auto middle = static_cast<float>((value_of(lower) + next) / 2);
        EXPECT_EQ(f16_from_float(middle), lower % 2 == 0 ? lower : upper) << lower;
        EXPECT_EQ(f16_from_float(std::nextafter(middle, 0.0f)), lower) << lower;
        EXPECT_EQ(f16_from_float(std::nextafter(middle, kInfinity)), upper) << lower;
        EXPECT_EQ(f16_from_float(-middle), (lower % 2 == 0 ? lower : upper) | 0x8000) << lower;
    }
}

TEST(F16, FromFloatBeyondTheRange) {
    EXPECT_EQ(f16_from_float(1e30f), 0x7c00);
    EXPECT_EQ(f16_from_float(-1e30f), 0xfc00);
    EXPECT_EQ(f16_from_float(kInfinity), 0x7c00);
    EXPECT_EQ(f16_from_float(1e-30f), 0);
    EXPECT_EQ(f16_from_float(-0.0f), 0x8000);
    EXPECT_EQ(f16_from_float(std::numeric_limits<float>::denorm_min()), 0);
    // Any payload, also one in the low bits alone, which fp16 has no room for.
    for (std::uint32_t bits : {0x7f800001u, 0x7fc00000u, 0x7fffffffu, 0xff800001u})
        EXPECT_TRUE(std::isnan(float_from_f16(f16_from_float(std::bit_cast<float>(bits)))));
}

} // namespace
} // namespace innerkv::test
