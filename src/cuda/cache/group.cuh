// SPDX-License-Identifier: Apache-2.0
// Codecs, a group a thread: the operations of src/format/group.cpp in the same order, so that pages are the same
// bytes. Compiled without contraction of products and sums.
#pragma once

#include <cmath>
#include <cstdint>

#include "format/affine.h"
#include "format/layout.h"
#include "innerkv/codec.h"

namespace innerkv::cuda {

/// 32 values, `stride` apart.
struct GroupValues {
    const float* first;
    int stride;
    __device__ float operator[](int i) const { return first[i * stride]; }
};

/// Codes, byte j of quads[k] is that of element 4k + j; parameters as a page stores them.
struct GroupQuads {
    std::uint32_t quads[kQuadsPerTile];
    std::uint16_t scale;
    std::uint16_t zero_point;

    __device__ float code(int i) const {
        return static_cast<float>(quads[i / 4] >> (8 * (i % 4)) & 0xff);
    }
};

__device__ inline float round_to_f16(float value) { return float_from_f16(f16_from_float(value)); }

/// Codes of round((value - zero) / scale) within low .. high, plus bias; all of level 0 under a scale of 0.
__device__ inline void compute_codes(const GroupValues& values, float zero, float scale, float low,
                                     float high, int bias, GroupQuads& out) {
    const float divisor = scale == 0.0f ? std::numeric_limits<float>::infinity() : scale;
#pragma unroll
    for (int k = 0; k < kQuadsPerTile; ++k) {
        out.quads[k] = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float level = rintf((values[4 * k + j] - zero) / divisor);
            const auto code = static_cast<int>(fminf(fmaxf(level, low), high)) + bias;
            out.quads[k] |= static_cast<std::uint32_t>(code) << (8 * j);
        }
    }
}

struct Extremes {
    float smallest;
    float largest;
};
__device__ inline Extremes extremes(const GroupValues& values) {
    Extremes out{values[0], values[0]};
    for (int i = 1; i < kGroupSize; ++i) {
        out.smallest = fminf(out.smallest, values[i]);
        out.largest = fmaxf(out.largest, values[i]);
    }
    return out;
}

/// Codes and fp32 parameters, which fp16 holds.
struct Branch {
    GroupQuads group;
    float scale;
    float zero;
};

__device__ inline Branch quantize_symmetric(Codec codec, const GroupValues& values) {
    const auto levels = static_cast<float>(codec.bias() - 1);
    const Extremes range = extremes(values);
    Branch out;
    out.scale = round_to_f16(fmaxf(fabsf(range.smallest), fabsf(range.largest)) / levels);
    out.zero = 0.0f;
    compute_codes(values, 0.0f, out.scale, -levels, levels, codec.bias(), out.group);
    return out;
}

__device__ inline Branch quantize_asymmetric(Codec codec, const GroupValues& values) {
    const auto levels = static_cast<float>((1 << codec.bits) - 1);
    const Extremes range = extremes(values);
    Branch out;
    out.zero = round_to_f16(range.smallest) + 0.0f; // -0 is 0
    out.scale = round_to_f16(fmaxf(range.largest - out.zero, 0.0f) / levels);
    compute_codes(values, out.zero, out.scale, 0.0f, levels, 0, out.group);
    return out;
}

/// Added as a binary tree: i and i + 16 first.
__device__ inline float l1_error(const GroupValues& values, const Branch& branch, float bias) {
    float errors[kGroupSize];
#pragma unroll
    for (int i = 0; i < kGroupSize; ++i)
        errors[i] = fabsf(values[i] - (branch.scale * (branch.group.code(i) - bias) + branch.zero));
#pragma unroll
    for (int half = kGroupSize / 2; half > 0; half /= 2)
#pragma unroll
        for (int i = 0; i < half; ++i) errors[i] += errors[i + half];
    return errors[0];
}

__device__ inline GroupQuads stored(const Branch& branch, std::uint16_t mark) {
    GroupQuads out = branch.group;
    out.scale = static_cast<std::uint16_t>(f16_from_float(branch.scale) | mark);
    out.zero_point = f16_from_float(branch.zero);
    return out;
}

/// The codes under a scale and a value of code 0, both rounded first.
__device__ inline GroupQuads round_affine(int bits, const GroupValues& values, float scale,
                                          float zero) {
    const auto levels = static_cast<float>((1 << bits) - 1);
    GroupQuads out{};
    out.scale = scale_byte(scale);
    const float rounded = scale_from_byte(out.scale);
    if (rounded == 0.0f) return out;
    const float steps = (zero / rounded + 0.5f * levels) * kZeroPointSteps;
    const float zero_point = fminf(fmaxf(rintf(steps), -128.0f), 127.0f);
    out.zero_point = static_cast<std::uint8_t>(static_cast<int>(zero_point));
    compute_codes(values, affine_zero(bits, rounded, zero_point / kZeroPointSteps), rounded, 0.0f,
                  levels, 0, out);
    return out;
}

/// What a group of codes stands for.
struct AffineValues {
    float scale;
    float zero;
    __device__ AffineValues(int bits, const GroupQuads& group)
        : scale(scale_from_byte(group.scale)),
          zero(affine_zero(bits, scale,
                           static_cast<float>(static_cast<std::int8_t>(group.zero_point)) /
                               kZeroPointSteps)) {}
};

/// The scale and zero-point that fit best, by least squares, to codes as they are.
__device__ inline GroupQuads refine_affine(int bits, const GroupValues& values,
                                           const GroupQuads& group, float middle) {
    float codes = 0.0f;
    float squares = 0.0f;
    float sum = 0.0f;
    float products = 0.0f;
#pragma unroll
    for (int i = 0; i < kGroupSize; ++i) {
        const float code = group.code(i);
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
    const float slope = covariance > 0.0f && variance > 0.0f
                            ? fmaxf(covariance / variance, shortest_affine_step(middle))
                            : scale_from_byte(group.scale);
    return round_affine(bits, values, slope, middle + (mean - slope * mean_code));
}

__device__ inline float squared_error(int bits, const GroupValues& values,
                                      const GroupQuads& group) {
    const AffineValues affine(bits, group);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kGroupSize; ++i) {
        const float error = values[i] - (affine.scale * group.code(i) + affine.zero);
        sum += error * error;
    }
    return sum;
}

__device__ inline GroupQuads quantize_affine(int bits, const GroupValues& values) {
    constexpr float kRanges[] = {kAffineRanges[0], kAffineRanges[1], kAffineRanges[2],
                                 kAffineRanges[3], kAffineRanges[4]};
    static_assert(std::size(kAffineRanges) == std::size(kRanges));
    const Extremes range = extremes(values);
    const float middle = 0.5f * range.smallest + 0.5f * range.largest;
    const float half = 0.5f * range.largest - 0.5f * range.smallest;
    GroupQuads best{};
    float least = 0.0f;
#pragma unroll 1
    for (int n = 0; n < static_cast<int>(std::size(kRanges)); ++n) {
        const AffineStart start = affine_start(bits, middle, half, kRanges[n]);
        const GroupQuads first = round_affine(bits, values, start.scale, start.zero);
        const GroupQuads group = refine_affine(bits, values, first, middle);
        const float error = squared_error(bits, values, group);
        if (n > 0 && !(error < least)) continue;
        best = group;
        least = error;
    }
    return best;
}

/// Finite values within kLargestF16, as quantize_group (codec.h).
__device__ inline GroupQuads quantize(Codec codec, const GroupValues& values) {
    if (codec.kind == CodecKind::affine) return quantize_affine(codec.bits, values);
    if (codec.kind == CodecKind::asymmetric) return stored(quantize_asymmetric(codec, values), 0);
    const Branch symmetric = quantize_symmetric(codec, values);
    if (codec.kind == CodecKind::symmetric) return stored(symmetric, 0);
    const Branch asymmetric = quantize_asymmetric(codec, values);
    const bool better = l1_error(values, asymmetric, 0.0f) <
                        l1_error(values, symmetric, static_cast<float>(codec.bias()));
    return better ? stored(asymmetric, kSignBit) : stored(symmetric, 0);
}

} // namespace innerkv::cuda
