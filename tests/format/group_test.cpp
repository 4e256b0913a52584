// SPDX-License-Identifier: Apache-2.0
// Codecs on single groups: definition, bounds, edges of fp16, what is refused.
#include <algorithm>
#include <cstring>
#include <numeric>

#include <gtest/gtest.h>

#include "codecs.h"
#include "innerkv/error.h"

namespace innerkv::test {
namespace {

constexpr int kGroupsPerDraw = 500;

int levels_of(Codec codec, bool asymmetric) {
    return asymmetric ? (1 << codec.bits) - 1 : (1 << (codec.bits - 1)) - 1;
}

bool is_asymmetric(Codec codec, const QuantizedGroup& group) {
    return codec.kind == CodecKind::asymmetric ||
           (codec.kind == CodecKind::hybrid && group.scale & 0x8000);
}

float scale_of(Codec codec, const QuantizedGroup& group) {
    return float_from_f16(codec.kind == CodecKind::hybrid ? group.scale & 0x7fff : group.scale);
}

Group dequantized(Codec codec, const QuantizedGroup& group) {
    Group values;
    dequantize_group(codec, group, values);
    return values;
}

double l1_distance(const Group& a, const Group& b) {
    double sum = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += std::abs(double{a[i]} - double{b[i]});
    return sum;
}

bool same(const QuantizedGroup& a, const QuantizedGroup& b) {
    return std::memcmp(&a, &b, sizeof a) == 0;
}

template <class Check>
void for_each_drawn_group(Check check) {
    std::mt19937 random(7);
    for (Draw draw : kDraws)
        for (int n = 0; n < kGroupsPerDraw; ++n) {
            const Group group = draw_group(draw, random);
            for (Codec codec : all_codecs()) {
                SCOPED_TRACE(name_of(codec) + ", draw " + std::to_string(static_cast<int>(draw)));
                check(codec, group);
                if (testing::Test::HasFailure()) return;
            }
        }
}

TEST(Group, AsNumbersByTheTablesOfFormat) {
    QuantizedGroup group{};
    group.codes[5] = 3;
    const auto expect = [&](Codec codec, unsigned scale, unsigned zero_point,
                            UnroundedGroup numbers) {
        SCOPED_TRACE(name_of(codec));
        group.scale = static_cast<std::uint16_t>(scale);
        group.zero_point = static_cast<std::uint16_t>(zero_point);
        const UnroundedGroup actual = group_as_numbers(codec, group);
        EXPECT_EQ(actual.codes[5], 3);
        EXPECT_EQ(actual.scale, numbers.scale);
        EXPECT_EQ(actual.zero_point, numbers.zero_point);
        EXPECT_EQ(actual.asymmetric, numbers.asymmetric);
    };
    expect(symmetric(3), 0x3e00, 0, {{}, 1.5f, 0.0f, false});
    expect(asymmetric(3), 0x3e00, 0xc000, {{}, 1.5f, -2.0f, true});
    expect(hybrid(3), 0x3e00, 0, {{}, 1.5f, 0.0f, false});
    expect(hybrid(3), 0xbe00, 0xc000, {{}, 1.5f, -2.0f, true});
    // A scale of 2^0 * (1 + 4/8); zero-points of 4 and -4 eighths of a step from the middle of codes 0 to 7.
    expect(affine(3), 0x7c, 0x04, {{}, 1.5f, 1.5f * (0.5f - 3.5f), true});
    expect(affine(3), 0x7c, 0xfc, {{}, 1.5f, 1.5f * (-0.5f - 3.5f), true});
    EXPECT_THROW(group_as_numbers(symmetric(5), group), InvalidArgument);
}

/// Scale 1: levels are the values themselves, ties go to the even one.
TEST(Group, SymmetricByHand) {
    Group group{};
    const float values[] = {7.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 6.49f, 6.51f, -7.0f};
    const int expected[] = {7, 0, 2, 2, 0, -2, -2, 6, 7, -7};
    std::copy(std::begin(values), std::end(values), group.begin());
    const QuantizedGroup quantized = quantize_group(symmetric(4), group);
    EXPECT_EQ(quantized.scale, 0x3c00);
    EXPECT_EQ(quantized.zero_point, 0);
    for (int i = 0; i < kGroupSize; ++i)
        EXPECT_EQ(quantized.codes[i], 8 + (i < 10 ? expected[i] : 0)) << i;
}

TEST(Group, AsymmetricByHand) {
    Group group;
    group.fill(10.0f);
    const float values[] = {10.0f, 13.0f, 10.5f, 11.5f, 12.5f, 11.0f, 11.49f, 12.51f};
    const int expected[] = {0, 3, 0, 2, 2, 1, 1, 3};
    std::copy(std::begin(values), std::end(values), group.begin());
    for (Codec codec : {asymmetric(2), hybrid(2)}) {
        const QuantizedGroup quantized = quantize_group(codec, group);
        EXPECT_EQ(quantized.scale, codec == hybrid(2) ? 0xbc00 : 0x3c00);
        EXPECT_EQ(quantized.zero_point, f16_from_float(10.0f));
        for (int i = 0; i < 8; ++i) EXPECT_EQ(quantized.codes[i], expected[i]) << i;
        EXPECT_EQ(dequantized(codec, quantized)[1], 13.0f);
    }
}

/// 7 * 0.1 is stored with a scale of 0.09998: seven steps of it are 0.6998.
TEST(Group, LevelsAreComputedWithTheRoundedScale) {
    Group group{};
    group[0] = 0.7f;
    group[1] = 0.04999f; // 0.4999 of the exact scale, 0.50002 of the rounded one
    const QuantizedGroup quantized = quantize_group(symmetric(4), group);
    EXPECT_EQ(quantized.scale, f16_from_float(0.1f));
    EXPECT_EQ(quantized.codes[0], 8 + 7);
    EXPECT_EQ(quantized.codes[1], 8 + 1);
    EXPECT_EQ(quantize_group_unrounded(symmetric(4), group).codes[1], 8);
}

TEST(Group, ErrorIsWithinTheBound) {
    for_each_drawn_group([](Codec codec, const Group& group) {
        if (codec.kind == CodecKind::affine) return; // clips: tests of its own
        const QuantizedGroup quantized = quantize_group(codec, group);
        const bool asymmetric = is_asymmetric(codec, quantized);
        const int levels = levels_of(codec, asymmetric);
        const float smallest = *std::min_element(group.begin(), group.end());
        const float zero_error =
            asymmetric ? std::abs(smallest - float_from_f16(quantized.zero_point)) : 0.0f;
        const float bound =
            std::max(scale_of(codec, quantized) / 2.0f, static_cast<float>(levels) * 0x1p-25f) +
            zero_error;
        const Group values = dequantized(codec, quantized);
        for (std::size_t i = 0; i < group.size(); ++i) {
            // Divisions and sums in fp32 add a few units in the last place of the operands.
            const float slack = 0x1p-21f * (bound + std::abs(group[i]));
            ASSERT_LE(std::abs(values[i] - group[i]), bound + slack) << group[i];
        }
    });
}

TEST(Group, ScalesAndCodesOfTheDefinition) {
    for_each_drawn_group([](Codec codec, const Group& group) {
        if (codec.kind == CodecKind::affine) return;
        const QuantizedGroup quantized = quantize_group(codec, group);
        const bool asymmetric = is_asymmetric(codec, quantized);
        const int levels = levels_of(codec, asymmetric);
        const auto [smallest, largest] = std::minmax_element(group.begin(), group.end());
        const float zero = float_from_f16(quantized.zero_point);
        const float range = asymmetric ? std::max(*largest - zero, 0.0f)
                                       : std::max(std::abs(*smallest), std::abs(*largest));
        ASSERT_EQ(scale_of(codec, quantized),
                  float_from_f16(f16_from_float(range / static_cast<float>(levels))));
        ASSERT_EQ(zero, asymmetric ? float_from_f16(f16_from_float(*smallest)) : 0.0f);
        const int bias = asymmetric ? 0 : codec.bias();
        for (int code : quantized.codes) {
            ASSERT_LE(code - bias, levels);
            ASSERT_GE(code - bias, asymmetric ? 0 : -levels);
        }
    });
}

TEST(Group, HybridTakesTheBranchWithTheSmallerError) {
    int asymmetric_groups = 0;
    for_each_drawn_group([&](Codec codec, const Group& group) {
        if (codec.kind != CodecKind::hybrid) return;
        const Codec with_zero_point = asymmetric(codec.bits);
        const QuantizedGroup chosen = quantize_group(codec, group);
        QuantizedGroup as_symmetric = quantize_group(symmetric(codec.bits), group);
        QuantizedGroup as_asymmetric = quantize_group(with_zero_point, group);
        const double difference =
            l1_distance(group, dequantized(with_zero_point, as_asymmetric)) -
            l1_distance(group, dequantized(symmetric(codec.bits), as_symmetric));
        as_asymmetric.scale |= 0x8000;
        const bool took_asymmetric = is_asymmetric(codec, chosen);
        asymmetric_groups += took_asymmetric;
        ASSERT_TRUE(same(chosen, took_asymmetric ? as_asymmetric : as_symmetric));
        float magnitude = 0.0f;
        for (float value : group) magnitude += std::abs(value);
        if (std::abs(difference) > 1e-6 * magnitude) {
            ASSERT_EQ(took_asymmetric, difference < 0.0);
        }
    });
    EXPECT_GT(asymmetric_groups, kGroupsPerDraw);
}

TEST(Group, HybridTieIsSymmetric) {
    Group group{}; // both branches are exact
    group[3] = 1.0f;
    group[4] = -1.0f;
    EXPECT_EQ(quantize_group(hybrid(2), group).scale, 0x3c00);
    group.fill(0.0f);
    EXPECT_EQ(quantize_group(hybrid(2), group).scale, 0);
}

TEST(Group, HybridBranchOfFewerBits) {
    Group group;
    for (std::size_t i = 0; i < group.size(); ++i) group[i] = i % 2 == 0 ? 4.0f : 5.0f;
    const QuantizedGroup quantized =
        quantize_group(hybrid(2), group, {.hybrid_asymmetric_bits = 1});
    EXPECT_EQ(quantized.scale, 0xbc00);
    for (std::size_t i = 0; i < group.size(); ++i) EXPECT_EQ(quantized.codes[i], i % 2);
    EXPECT_THROW(quantize_group(hybrid(2), group, {.hybrid_asymmetric_bits = 3}), InvalidArgument);
    EXPECT_THROW(quantize_group(hybrid(2), group, {.hybrid_asymmetric_bits = -1}), InvalidArgument);
}

TEST(Group, ZeroGroupsAreZero) {
    for (Codec codec : all_codecs())
        for (float zero : {0.0f, -0.0f}) {
            Group group;
            group.fill(zero);
            const QuantizedGroup quantized = quantize_group(codec, group);
            EXPECT_EQ(quantized.scale, 0) << name_of(codec);
            EXPECT_EQ(quantized.zero_point, 0) << name_of(codec);
            for (std::uint8_t code : quantized.codes)
                EXPECT_EQ(code,
                          codec.kind == CodecKind::asymmetric || codec.kind == CodecKind::affine
                              ? 0
                              : codec.bias());
            for (float value : dequantized(codec, quantized)) EXPECT_EQ(value, 0.0f);
        }
}

/// A scale of half the smallest fp16 number rounds to 0, anything above to the smallest one.
TEST(Group, ScaleUnderflow) {
    for (int bits : kBits) {
        const auto levels = static_cast<float>(levels_of(symmetric(bits), false));
        Group group{};
        group[5] = -levels * kSmallestF16 / 2.0f;
        QuantizedGroup quantized = quantize_group(symmetric(bits), group);
        EXPECT_EQ(quantized.scale, 0);
        EXPECT_EQ(quantized.codes[5], symmetric(bits).bias());
        group[5] = -levels * kSmallestF16 * 0.51f;
        quantized = quantize_group(symmetric(bits), group);
        EXPECT_EQ(quantized.scale, 1);
        // A scale half as large as it should be would need twice the levels.
        group[5] = levels * kSmallestF16 * 1.49f;
        quantized = quantize_group(symmetric(bits), group);
        EXPECT_EQ(quantized.scale, 1);
        EXPECT_EQ(quantized.codes[5], symmetric(bits).bias() + static_cast<int>(levels));
    }
}

TEST(Group, LargestFiniteValues) {
    for (Codec codec : all_codecs()) {
        SCOPED_TRACE(name_of(codec));
        Group group;
        for (std::size_t i = 0; i < group.size(); ++i)
            group[i] = i % 2 == 0 ? kLargestF16 : -kLargestF16;
        const Group values = dequantized(codec, quantize_group(codec, group));
        for (std::size_t i = 0; i < group.size(); ++i)
            EXPECT_NEAR(values[i], group[i],
                        kLargestF16 / (codec.kind == CodecKind::affine ? 16.0f : 1000.0f));
    }
}

/// Scale 0 or well above the denormals, where the largest element keeps the largest level.
TEST(Group, QuantizingASymmetricGroupAgainChangesNothing) {
    for_each_drawn_group([](Codec codec, const Group& group) {
        if (codec.kind != CodecKind::symmetric) return;
        const QuantizedGroup once = quantize_group(codec, group);
        const float scale = scale_of(codec, once);
        const auto levels = static_cast<float>(levels_of(codec, false));
        const bool keeps_level = scale == 0.0f || scale > levels * kSmallestF16;
        if (!keeps_level || scale * levels > kLargestF16) return;
        ASSERT_TRUE(same(quantize_group(codec, dequantized(codec, once)), once));
    });
}

TEST(Group, NegativeSymmetricScale) {
    QuantizedGroup group{};
    std::iota(std::begin(group.codes), std::begin(group.codes) + 8, std::uint8_t{0});
    group.scale = f16_from_float(-0.5f);
    const Group values = dequantized(symmetric(3), group);
    for (std::size_t i = 0; i < 8; ++i)
        EXPECT_EQ(values[i], -0.5f * (static_cast<float>(i) - 4.0f));
}

/// Every scale byte that is finite with every zero-point and code, against the formula in double.
TEST(Group, AffineValuesByTheFormula) {
    for (int bits : {2, 3, 4})
        for (int scale = 0; scale < 0xf8; ++scale)
            for (int zero = -128; zero < 128; zero += 5) {
                QuantizedGroup group{};
                group.scale = static_cast<std::uint16_t>(scale);
                group.zero_point = static_cast<std::uint8_t>(zero);
                for (int i = 0; i < kGroupSize; ++i)
                    group.codes[i] = static_cast<std::uint8_t>(i % (1 << bits));
                const Group values = dequantized(affine(bits), group);
                const int exponent = scale >> 3;
                const double s = exponent ? std::ldexp(8 + (scale & 7), exponent - 18)
                                          : std::ldexp(scale & 7, -17);
                for (std::size_t i = 0; i < values.size(); ++i) {
                    const double steps = group.codes[i] - ((1 << bits) - 1) / 2.0 + zero / 8.0;
                    ASSERT_NEAR(values[i], s * steps, s * 1e-4) << scale << ' ' << zero;
                }
            }
}

double squared_distance(const Group& a, const Group& b) {
    double sum = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i)
        sum += (double{a[i]} - double{b[i]}) * (double{a[i]} - double{b[i]});
    return sum;
}

/// A group far from 0 keeps its offset, and one value its scale's precision.
TEST(Group, AffineOfOffsetsAndConstants) {
    for (int bits : {2, 3, 4})
        for (float offset : {-300.0f, -1.0f, 0.01f, 7.0f, 5000.0f}) {
            Group group;
            group.fill(offset);
            const Group values = dequantized(affine(bits), quantize_group(affine(bits), group));
            for (float value : values) EXPECT_NEAR(value, offset, std::abs(offset) / 200.0f);
        }
}

/// What clips does so because it errs less. Root mean squares, in steps of a group's plain range or, where
/// that is longer, the shortest step whose zero-point reaches it: half a step, a whole one beside an element
/// far from all others.
TEST(Group, AffineErrorIsWithinAStep) {
    std::mt19937 random(7);
    for (Draw draw : kDraws)
        for (int n = 0; n < kGroupsPerDraw; ++n) {
            const Group group = draw_group(draw, random);
            const bool even = draw != Draw::outlier && draw != Draw::mixed_magnitude;
            const auto [low, high] = std::minmax_element(group.begin(), group.end());
            const double middle = std::abs(double{*low} + double{*high}) / 2.0;
            for (int bits : {2, 3, 4}) {
                const double step =
                    std::max((double{*high} - double{*low}) / ((1 << bits) - 1), middle / 14.0) +
                    0x1p-14; // what a scale that rounds to 0 loses
                const double share = even ? 0.5 : 1.0;
                const Codec codec = affine(bits);
                ASSERT_LE(squared_distance(group, dequantized(codec, quantize_group(codec, group))),
                          kGroupSize * share * share * step * step)
                    << name_of(codec) << ", draw " << static_cast<int>(draw);
            }
        }
}

/// Of Gaussian groups: the squared error of an affine codec in that of the symmetric one of the same bytes.
struct AffineGain {
    int bits;
    double ratio;       ///< of the sums, as codec.h states it
    double worse_share; ///< most groups that may err more
};

TEST(Group, AffineBeatsSymmetricAtTheSameBytes) {
    constexpr int kGroups = 4000;
    std::mt19937 random(11);
    for (const AffineGain& gain : {AffineGain{2, 0.22, 0.0}, {3, 0.45, 0.005}, {4, 0.62, 0.06}}) {
        SCOPED_TRACE(gain.bits);
        double affine_sum = 0.0;
        double symmetric_sum = 0.0;
        int worse = 0;
        for (int n = 0; n < kGroups; ++n) {
            const Group group = draw_group(Draw::normal, random);
            const auto error = [&](Codec codec) {
                return squared_distance(group, dequantized(codec, quantize_group(codec, group)));
            };
            const double affine_error = error(affine(gain.bits));
            const double symmetric_error = error(symmetric(gain.bits));
            affine_sum += affine_error;
            symmetric_sum += symmetric_error;
            worse += affine_error > symmetric_error;
        }
        EXPECT_NEAR(affine_sum / symmetric_sum, gain.ratio, 0.015);
        EXPECT_LE(worse, gain.worse_share * kGroups);
    }
}

TEST(Group, RefusesWhatIsNotFiniteAtEveryPosition) {
    std::mt19937 random(3);
    const float beyond = std::nextafter(kLargestF16, kInfinity);
    for (Codec codec : all_codecs())
        for (std::size_t i = 0; i < kGroupSize; ++i)
            for (float bad : {kNan, -kNan, kInfinity, -kInfinity, beyond, -beyond}) {
                Group group = draw_group(Draw::normal, random);
                group[i] = bad;
                EXPECT_THROW(quantize_group(codec, group), InvalidArgument);
                EXPECT_THROW(quantize_group_unrounded(codec, group), InvalidArgument);
            }
}

TEST(Group, RefusesCodecsThatDoNotExist) {
    const Group group{};
    Group values;
    for (Codec codec : {kF16, symmetric(5), asymmetric(1), hybrid(16), affine(8)}) {
        EXPECT_THROW(quantize_group(codec, group), InvalidArgument);
        EXPECT_THROW(dequantize_group(codec, QuantizedGroup{}, values), InvalidArgument);
    }
}

} // namespace
} // namespace innerkv::test
