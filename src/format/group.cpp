// SPDX-License-Identifier: Apache-2.0
// Codecs, one group at a time: the specification in code. tile.cpp does the same to whole tiles, faster.
#include <algorithm>
#include <cmath>
#include <string>

#include "format/affine.h"
#include "format/layout.h"
#include "innerkv/codec.h"
#include "innerkv/error.h"

namespace innerkv {
namespace {

using Values = std::span<const float, kGroupSize>;

float identity(float value) { return value; }

float round_to_f16(float value) { return float_from_f16(f16_from_float(value)); }

/// fp16 or fp32 scales and zero-points: round_to_f16 or identity.
using Rounding = float (*)(float);

void check(Codec codec, const QuantizeOptions& options) {
    if (!codec.quantized() || !has_supported_bits(codec))
        throw InvalidArgument("a codec of " + std::to_string(codec.bits) +
                              " bits cannot quantize a group; supported are symmetric, asymmetric, "
                              "hybrid and affine codecs of 2, 3, 4 and (but affine) 8 bits");
    const int bits = options.hybrid_asymmetric_bits;
    if (bits < 0 || bits > codec.bits)
        throw InvalidArgument("hybrid_asymmetric_bits is " + std::to_string(bits) +
                              "; it must be 1 to the codec's " + std::to_string(codec.bits) +
                              ", or 0 for the codec's own");
}

void check(Values values) {
    for (int i = 0; i < kGroupSize; ++i)
        if (!(std::abs(values[i]) <= kLargestF16))
            throw InvalidArgument("element " + std::to_string(i) + " of a group is " +
                                  std::to_string(values[i]) +
                                  "; only finite values up to 65504 can be quantized");
}

/// round(value / scale), half to even, in low .. high; 0 where the scale is 0.
int level(float value, float scale, int low, int high) {
    if (scale == 0.0f) return 0;
    const float rounded = std::nearbyint(value / scale);
    return static_cast<int>(std::clamp(rounded, static_cast<float>(low), static_cast<float>(high)));
}

UnroundedGroup quantize_symmetric(Codec codec, Values values, Rounding round) {
    const int levels = codec.bias() - 1;
    float largest = 0.0f;
    for (float value : values) largest = std::max(largest, std::abs(value));
    UnroundedGroup group{};
    group.scale = round(largest / static_cast<float>(levels));
    for (int i = 0; i < kGroupSize; ++i)
        group.codes[i] = static_cast<std::uint8_t>(level(values[i], group.scale, -levels, levels) +
                                                   codec.bias());
    return group;
}

UnroundedGroup quantize_asymmetric(int bits, Values values, Rounding round) {
    const int levels = (1 << bits) - 1;
    const auto [smallest, largest] = std::minmax_element(values.begin(), values.end());
    UnroundedGroup group{};
    group.asymmetric = true;
    group.zero_point = round(*smallest) + 0.0f;                      // -0 becomes 0
    const float range = std::max(0.0f, *largest - group.zero_point); // 0, not -0
    group.scale = round(range / static_cast<float>(levels));
    for (int i = 0; i < kGroupSize; ++i)
        group.codes[i] =
            static_cast<std::uint8_t>(level(values[i] - group.zero_point, group.scale, 0, levels));
    return group;
}

float dequantize(Codec codec, const UnroundedGroup& group, int i) {
    if (group.asymmetric)
        return group.scale * static_cast<float>(group.codes[i]) + group.zero_point;
    return group.scale * static_cast<float>(group.codes[i] - codec.bias());
}

float l1_error(Codec codec, const UnroundedGroup& group, Values values) {
    float errors[kGroupSize];
    for (int i = 0; i < kGroupSize; ++i)
        errors[i] = std::abs(values[i] - dequantize(codec, group, i));
    for (int half = kGroupSize / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) errors[i] += errors[i + half];
    return errors[0];
}

UnroundedGroup quantize(Codec codec, Values values, const QuantizeOptions& options,
                        Rounding round) {
    check(codec, options);
    check(values);
    if (codec.kind == CodecKind::symmetric) return quantize_symmetric(codec, values, round);
    if (codec.kind == CodecKind::asymmetric) return quantize_asymmetric(codec.bits, values, round);
    const int own_bits = codec.bits;
    const int asymmetric_bits =
        options.hybrid_asymmetric_bits ? options.hybrid_asymmetric_bits : own_bits;
    const UnroundedGroup symmetric = quantize_symmetric(codec, values, round);
    const UnroundedGroup asymmetric = quantize_asymmetric(asymmetric_bits, values, round);
    const bool asymmetric_is_better =
        l1_error(codec, asymmetric, values) < l1_error(codec, symmetric, values);
    return asymmetric_is_better ? asymmetric : symmetric;
}

struct AffineGroup {
    std::uint8_t codes[kGroupSize];
    std::uint8_t scale;
    std::int8_t zero_point;
};

/// The codes under a scale and a value of code 0, both rounded first.
AffineGroup round_affine(int bits, Values values, float scale, float zero) {
    const int levels = (1 << bits) - 1;
    AffineGroup group{};
    group.scale = scale_byte(scale);
    const float rounded = scale_from_byte(group.scale);
    if (rounded == 0.0f) return group;
    const float steps = (zero / rounded + 0.5f * static_cast<float>(levels)) * kZeroPointSteps;
    group.zero_point = static_cast<std::int8_t>(std::clamp(std::nearbyint(steps), -128.0f, 127.0f));
    const float rounded_zero =
        affine_zero(bits, rounded, static_cast<float>(group.zero_point) / kZeroPointSteps);
    for (int i = 0; i < kGroupSize; ++i)
        group.codes[i] =
            static_cast<std::uint8_t>(level(values[i] - rounded_zero, rounded, 0, levels));
    return group;
}

/// The scale and zero that fit best, by least squares, to codes as they are.
AffineGroup refine_affine(int bits, Values values, const AffineGroup& group, float middle) {
    float codes = 0.0f;
    float squares = 0.0f;
    float sum = 0.0f;
    float products = 0.0f;
    for (int i = 0; i < kGroupSize; ++i) {
        const auto code = static_cast<float>(group.codes[i]);
        const float value = values[i] - middle;
        codes += code;
        squares += code * code;
        sum += value;
        products += code * value;
    }
    const float mean_code = codes / kGroupSize;
    const float mean = sum / kGroupSize;
    const float covariance = products - codes * mean;
    const float variance = squares - codes * mean_code;
    // Codes that are all the same have a zero-point that fits, and no scale.
    const float slope = covariance > 0.0f && variance > 0.0f
                            ? std::max(covariance / variance, shortest_affine_step(middle))
                            : scale_from_byte(group.scale);
    return round_affine(bits, values, slope, middle + (mean - slope * mean_code));
}

float affine_value(int bits, const AffineGroup& group, int i) {
    const float scale = scale_from_byte(group.scale);
    return scale * static_cast<float>(group.codes[i]) +
           affine_zero(bits, scale, static_cast<float>(group.zero_point) / kZeroPointSteps);
}

float squared_error(int bits, const AffineGroup& group, Values values) {
    float sum = 0.0f;
    for (int i = 0; i < kGroupSize; ++i) {
        const float error = values[i] - affine_value(bits, group, i);
        sum += error * error;
    }
    return sum;
}

QuantizedGroup quantize_affine(int bits, Values values) {
    const auto [smallest, largest] = std::minmax_element(values.begin(), values.end());
    const float middle = 0.5f * *smallest + 0.5f * *largest;
    const float half = 0.5f * *largest - 0.5f * *smallest;
    AffineGroup best{};
    float least = 0.0f;
    for (std::size_t n = 0; n < std::size(kAffineRanges); ++n) {
        const AffineStart start = affine_start(bits, middle, half, kAffineRanges[n]);
        const AffineGroup first = round_affine(bits, values, start.scale, start.zero);
        const AffineGroup group = refine_affine(bits, values, first, middle);
        const float error = squared_error(bits, group, values);
        if (n > 0 && !(error < least)) continue;
        best = group;
        least = error;
    }
    QuantizedGroup result{};
    std::copy(std::begin(best.codes), std::end(best.codes), result.codes);
    result.scale = best.scale;
    result.zero_point = static_cast<std::uint8_t>(best.zero_point);
    return result;
}

} // namespace

UnroundedGroup quantize_group_unrounded(Codec codec, Values values,
                                        const QuantizeOptions& options) {
    if (codec.kind == CodecKind::affine)
        throw InvalidArgument("an affine codec has no form with fp32 scales; supported are "
                              "symmetric, asymmetric and hybrid codecs");
    return quantize(codec, values, options, identity);
}

QuantizedGroup quantize_group(Codec codec, Values values, const QuantizeOptions& options) {
    if (codec.kind == CodecKind::affine) {
        check(codec, options);
        check(values);
        return quantize_affine(codec.bits, values);
    }
    const UnroundedGroup group = quantize(codec, values, options, round_to_f16);
    QuantizedGroup result{};
    std::copy(std::begin(group.codes), std::end(group.codes), result.codes);
    result.scale = f16_from_float(group.scale);
    result.zero_point = f16_from_float(group.zero_point);
    if (codec.kind == CodecKind::hybrid && group.asymmetric) result.scale |= kSignBit;
    return result;
}

UnroundedGroup group_as_numbers(Codec codec, const QuantizedGroup& group) {
    check(codec, {});
    UnroundedGroup numbers{};
    std::copy(std::begin(group.codes), std::end(group.codes), numbers.codes);
    if (codec.kind == CodecKind::affine) {
        const auto zero_point = static_cast<std::int8_t>(group.zero_point & 0xff);
        numbers.asymmetric = true;
        numbers.scale = scale_from_byte(group.scale & 0xffu);
        numbers.zero_point = affine_zero(codec.bits, numbers.scale,
                                         static_cast<float>(zero_point) / kZeroPointSteps);
        return numbers;
    }
    const bool marked = codec.kind == CodecKind::hybrid && (group.scale & kSignBit);
    numbers.asymmetric = marked || codec.kind == CodecKind::asymmetric;
    numbers.scale = float_from_f16(marked ? group.scale ^ kSignBit : group.scale);
    numbers.zero_point = float_from_f16(group.zero_point);
    return numbers;
}

void dequantize_group(Codec codec, const QuantizedGroup& group,
                      std::span<float, kGroupSize> values) {
    const UnroundedGroup numbers = group_as_numbers(codec, group);
    for (int i = 0; i < kGroupSize; ++i) values[i] = dequantize(codec, numbers, i);
}

void store_group(Codec codec, std::byte* block, int tile, int row, const QuantizedGroup& group) {
    for (int i = 0; i < kGroupSize; ++i) write_code(codec, block, tile, row, i, group.codes[i]);
    write_scale(codec, block, tile, row, group.scale);
    if (codec.has_zero_points()) write_zero_point(codec, block, tile, row, group.zero_point);
}

QuantizedGroup load_group(Codec codec, const std::byte* block, int tile, int row) {
    QuantizedGroup group{};
    for (int i = 0; i < kGroupSize; ++i) group.codes[i] = read_code(codec, block, tile, row, i);
    group.scale = read_scale(codec, block, tile, row);
    if (codec.has_zero_points()) group.zero_point = read_zero_point(codec, block, tile, row);
    return group;
}

} // namespace innerkv
