// SPDX-License-Identifier: Apache-2.0
// Quantizes sixteen groups at once. Every inner loop runs over the rows of a tile without branches.
#include "format/tile.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "format/affine.h"
#include "format/clones.h"
#include "format/layout.h"
#include "innerkv/codec.h"

namespace innerkv {
namespace {

using Row = float[kTileRows];
using Quads = std::uint32_t[kQuadsPerTile][kTileRows];

/// Adding 1.5 * 2^23 leaves a float no bits below 1, so the addition itself rounds to an integer, half
/// to even, and the integer stands in the low bits, in two's complement. std::nearbyint is a call into
/// libm on processors without SSE4.1, one element at a time.
constexpr float kRoundingShift = 12582912.0f;

constexpr std::int32_t kLargestF16Bits = std::bit_cast<std::int32_t>(kLargestF16);

/// min and max as the processor's instructions have them: no case for NaN.
float smaller(float a, float b) { return a < b ? a : b; }
float larger(float a, float b) { return a > b ? a : b; }

/// Codes and parameters of sixteen groups under one of the two codecs.
struct Groups {
    alignas(64) Quads quads;
    alignas(64) Row scales;
    alignas(64) Row zero_points;
};

/// The largest magnitude of each row as the bits of a float: integers order them as floats do, with
/// infinity and NaN on top.
bool largest_magnitudes(const TileValues& values, Row& largest) {
    std::int32_t bits[kTileRows] = {};
    for (int i = 0; i < kGroupSize; ++i)
        for (int r = 0; r < kTileRows; ++r) {
            const std::int32_t magnitude = std::bit_cast<std::int32_t>(values[i][r]) & 0x7fffffff;
            bits[r] = bits[r] > magnitude ? bits[r] : magnitude;
        }
    std::int32_t beyond = 0;
    for (int r = 0; r < kTileRows; ++r) {
        beyond |= bits[r] > kLargestF16Bits;
        largest[r] = std::bit_cast<float>(bits[r]);
    }
    return beyond == 0;
}

/// quads = round((value - zero_point) / scale) in low .. high, plus bias.
void compute_codes(const TileValues& values, float low, float high, float bias, Groups& groups) {
    alignas(64) Row divisors;
    for (int r = 0; r < kTileRows; ++r) // anything over infinity is level 0
        divisors[r] =
            groups.scales[r] == 0.0f ? std::numeric_limits<float>::infinity() : groups.scales[r];
    const float shift = kRoundingShift + bias; // even, as every bias is: ties stay ties
    for (int k = 0; k < kQuadsPerTile; ++k) {
        std::uint32_t words[kTileRows] = {};
        for (int j = 0; j < 4; ++j)
            for (int r = 0; r < kTileRows; ++r) {
                const float level = (values[4 * k + j][r] - groups.zero_points[r]) / divisors[r];
                const float clamped = smaller(larger(level, low), high);
                const auto code = std::bit_cast<std::uint32_t>(clamped + shift) & 0xff;
                words[r] |= code << (8 * j);
            }
        std::memcpy(groups.quads[k], words, sizeof words);
    }
}

void quantize_symmetric(Codec codec, const TileValues& values, const Row& largest, Groups& groups) {
    const auto levels = static_cast<float>(codec.bias() - 1);
    for (int r = 0; r < kTileRows; ++r) {
        groups.scales[r] = float_from_f16(f16_from_float(largest[r] / levels));
        groups.zero_points[r] = 0.0f;
    }
    compute_codes(values, -levels, levels, static_cast<float>(codec.bias()), groups);
}

void extremes(const TileValues& values, Row& smallest, Row& largest) {
    std::memcpy(smallest, values[0], sizeof smallest);
    std::memcpy(largest, values[0], sizeof largest);
    for (int i = 1; i < kGroupSize; ++i)
        for (int r = 0; r < kTileRows; ++r) {
            smallest[r] = smaller(smallest[r], values[i][r]);
            largest[r] = larger(largest[r], values[i][r]);
        }
}

void quantize_asymmetric(Codec codec, const TileValues& values, Groups& groups) {
    const auto levels = static_cast<float>((1 << codec.bits) - 1);
    alignas(64) Row smallest;
    alignas(64) Row largest;
    extremes(values, smallest, largest);
    for (int r = 0; r < kTileRows; ++r) {
        groups.zero_points[r] = float_from_f16(f16_from_float(smallest[r])) + 0.0f;
        const float range = larger(largest[r] - groups.zero_points[r], 0.0f);
        groups.scales[r] = float_from_f16(f16_from_float(range / levels));
    }
    compute_codes(values, 0.0f, levels, 0.0f, groups);
}

/// Values of quad k, byte j of every row.
void dequantize_byte(const Groups& groups, int k, int j, float bias, Row& values) {
    for (int r = 0; r < kTileRows; ++r) {
        const auto code = static_cast<std::int32_t>(groups.quads[k][r] >> (8 * j) & 0xff);
        values[r] = groups.scales[r] * (static_cast<float>(code) - bias) + groups.zero_points[r];
    }
}

void l1_errors(const TileValues& values, const Groups& groups, float bias, Row& errors) {
    alignas(64) TileValues terms;
    for (int i = 0; i < kGroupSize; ++i) {
        dequantize_byte(groups, i / 4, i % 4, bias, terms[i]);
        for (int r = 0; r < kTileRows; ++r) terms[i][r] = std::abs(values[i][r] - terms[i][r]);
    }
    for (int half = kGroupSize / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i)
            for (int r = 0; r < kTileRows; ++r) terms[i][r] += terms[i + half][r];
    std::memcpy(errors, terms[0], sizeof errors);
}

/// Replaces the groups whose asymmetric version is better; returns their marks.
void choose(Codec codec, const TileValues& values, const Groups& asymmetric, Groups& groups,
            std::uint16_t (&marks)[kTileRows]) {
    alignas(64) Row symmetric_errors;
    alignas(64) Row asymmetric_errors;
    l1_errors(values, groups, static_cast<float>(codec.bias()), symmetric_errors);
    l1_errors(values, asymmetric, 0.0f, asymmetric_errors);
    std::uint32_t masks[kTileRows];
    for (int r = 0; r < kTileRows; ++r) {
        masks[r] = asymmetric_errors[r] < symmetric_errors[r] ? ~0u : 0u;
        groups.scales[r] = masks[r] ? asymmetric.scales[r] : groups.scales[r];
        groups.zero_points[r] = masks[r] ? asymmetric.zero_points[r] : groups.zero_points[r];
        marks[r] = static_cast<std::uint16_t>(masks[r] & kSignBit);
    }
    for (int k = 0; k < kQuadsPerTile; ++k)
        for (int r = 0; r < kTileRows; ++r)
            groups.quads[k][r] =
                (asymmetric.quads[k][r] & masks[r]) | (groups.quads[k][r] & ~masks[r]);
}

/// A value of every row. A type of the compiler's, because it takes loops over rows for scalars where their
/// sums are carried from one element to the next.
using Vector [[gnu::vector_size(sizeof(Row))]] = float;

Vector load(const Row& row) {
    Vector result;
    std::memcpy(&result, row, sizeof result);
    return result;
}

/// Scales and zero-points that bytes hold, as those of round_affine in group.cpp. Numbers of 32 bits all:
/// the compiler takes loops over narrower ones apart.
struct AffineParameters {
    alignas(64) Row scales;
    alignas(64) Row zeros; ///< values of code 0
    alignas(64) std::uint32_t scale_bytes[kTileRows];
    alignas(64) Row steps; ///< what the zero-point byte holds
};

void round_parameters(int bits, const Row& scales, const Row& zeros, AffineParameters& out) {
    const auto levels = static_cast<float>((1 << bits) - 1);
    for (int r = 0; r < kTileRows; ++r) {
        const unsigned byte = scale_byte(scales[r]);
        const float scale = scale_from_byte(byte);
        const float divisor = scale == 0.0f ? std::numeric_limits<float>::infinity() : scale;
        const float steps =
            scale == 0.0f ? 0.0f : (zeros[r] / divisor + 0.5f * levels) * kZeroPointSteps;
        const float clamped = smaller(larger(steps, -128.0f), 127.0f);
        out.scale_bytes[r] = byte;
        out.steps[r] = clamped + kRoundingShift - kRoundingShift;
        out.scales[r] = scale;
        out.zeros[r] = affine_zero(bits, scale, out.steps[r] / kZeroPointSteps);
    }
}

/// The codes that compute_codes finds, as floats, an element of every row at a time.
class AffineCodes {
public:
    AffineCodes(int bits, const AffineParameters& parameters)
        : zeros_(load(parameters.zeros)), highest_(Vector{} + static_cast<float>((1 << bits) - 1)) {
        const Vector scales = load(parameters.scales);
        divisors_ = scales == 0.0f ? Vector{} + std::numeric_limits<float>::infinity() : scales;
    }

    Vector at(Vector values) const {
        const Vector level = (values - zeros_) / divisors_;
        const Vector above = level > 0.0f ? level : Vector{};
        const Vector clamped = above < highest_ ? above : highest_;
        return clamped + kRoundingShift - kRoundingShift;
    }

private:
    Vector zeros_;
    Vector highest_;
    Vector divisors_;
};

/// Least squares as refine_affine in group.cpp; `deviations` are the sums of what values differ from the
/// middles by.
void refine_affine(const TileValues& values, int bits, const AffineParameters& parameters,
                   const Row& middles, const Row& deviations, Row& scales, Row& zeros) {
    const AffineCodes codes_of(bits, parameters);
    const Vector middle = load(middles);
    Vector codes{};
    Vector squares{};
    Vector products{};
    for (int i = 0; i < kGroupSize; ++i) {
        const Vector value = load(values[i]);
        const Vector code = codes_of.at(value);
        codes += code;
        squares += code * code;
        products += code * (value - middle);
    }
    for (int r = 0; r < kTileRows; ++r) {
        const float mean_code = codes[r] / kGroupSize;
        const float mean = deviations[r] / kGroupSize;
        const float covariance = products[r] - codes[r] * mean;
        const float variance = squares[r] - codes[r] * mean_code;
        const bool fits = covariance > 0.0f && variance > 0.0f;
        scales[r] = fits ? larger(covariance / variance, shortest_affine_step(middles[r]))
                         : parameters.scales[r];
        zeros[r] = middles[r] + (mean - scales[r] * mean_code);
    }
}

void squared_errors(const TileValues& values, int bits, const AffineParameters& parameters,
                    Row& errors) {
    const AffineCodes codes_of(bits, parameters);
    const Vector scales = load(parameters.scales);
    const Vector zeros = load(parameters.zeros);
    Vector sums{};
    for (int i = 0; i < kGroupSize; ++i) {
        const Vector value = load(values[i]);
        const Vector error = value - (scales * codes_of.at(value) + zeros);
        sums += error * error;
    }
    std::memcpy(errors, &sums, sizeof errors);
}

/// Takes over the groups whose error is less than the least so far.
void keep_better(const AffineParameters& candidate, const Row& errors, Row& least,
                 AffineParameters& best) {
    for (int r = 0; r < kTileRows; ++r) {
        const bool better = errors[r] < least[r];
        best.scales[r] = better ? candidate.scales[r] : best.scales[r];
        best.zeros[r] = better ? candidate.zeros[r] : best.zeros[r];
        best.scale_bytes[r] = better ? candidate.scale_bytes[r] : best.scale_bytes[r];
        best.steps[r] = better ? candidate.steps[r] : best.steps[r];
        least[r] = smaller(errors[r], least[r]);
    }
}

void quantize_affine(int bits, const TileValues& values, Tile& tile) {
    alignas(64) Row smallest;
    alignas(64) Row largest;
    extremes(values, smallest, largest);
    alignas(64) Row middles;
    alignas(64) Row least;
    for (int r = 0; r < kTileRows; ++r) {
        middles[r] = 0.5f * smallest[r] + 0.5f * largest[r];
        least[r] = std::numeric_limits<float>::infinity();
    }
    Vector sums{};
    for (int i = 0; i < kGroupSize; ++i) sums += load(values[i]) - load(middles);
    alignas(64) Row deviations;
    std::memcpy(deviations, &sums, sizeof deviations);

    AffineParameters best{};
    for (const float range : kAffineRanges) {
        alignas(64) Row scales;
        alignas(64) Row zeros;
        for (int r = 0; r < kTileRows; ++r) {
            const float half = 0.5f * largest[r] - 0.5f * smallest[r];
            const AffineStart start = affine_start(bits, middles[r], half, range);
            scales[r] = start.scale;
            zeros[r] = start.zero;
        }
        AffineParameters candidate;
        round_parameters(bits, scales, zeros, candidate);
        refine_affine(values, bits, candidate, middles, deviations, scales, zeros);
        round_parameters(bits, scales, zeros, candidate);
        alignas(64) Row errors;
        squared_errors(values, bits, candidate, errors);
        keep_better(candidate, errors, least, best);
    }

    Groups groups;
    std::memcpy(groups.scales, best.scales, sizeof groups.scales);
    std::memcpy(groups.zero_points, best.zeros, sizeof groups.zero_points);
    compute_codes(values, 0.0f, static_cast<float>((1 << bits) - 1), 0.0f, groups);
    std::memcpy(tile.quads, groups.quads, sizeof tile.quads);
    for (int r = 0; r < kTileRows; ++r) {
        tile.scales[r] = static_cast<std::uint16_t>(best.scale_bytes[r]);
        tile.zero_points[r] = static_cast<std::uint8_t>(static_cast<std::int8_t>(best.steps[r]));
    }
}

/// Scales, and the values of code 0, of a tile as it is stored.
void affine_parameters(int bits, const Tile& tile, Row& scales, Row& zeros) {
    for (int r = 0; r < kTileRows; ++r) {
        const auto zero_point = static_cast<std::int8_t>(tile.zero_points[r]);
        scales[r] = scale_from_byte(tile.scales[r]);
        zeros[r] = affine_zero(bits, scales[r], static_cast<float>(zero_point) / kZeroPointSteps);
    }
}

} // namespace

INNERKV_CLONES
bool quantize_tile(Codec codec, const TileValues& values, Tile& tile) {
    alignas(64) Row largest;
    if (!largest_magnitudes(values, largest)) return false;
    if (codec.kind == CodecKind::affine) {
        quantize_affine(codec.bits, values, tile);
        return true;
    }
    Groups groups;
    std::uint16_t marks[kTileRows] = {};
    if (codec.kind == CodecKind::asymmetric) {
        quantize_asymmetric(codec, values, groups);
    } else {
        quantize_symmetric(codec, values, largest, groups);
    }
    if (codec.kind == CodecKind::hybrid) {
        Groups asymmetric;
        quantize_asymmetric(codec, values, asymmetric);
        choose(codec, values, asymmetric, groups, marks);
    }
    std::memcpy(tile.quads, groups.quads, sizeof tile.quads);
    for (int r = 0; r < kTileRows; ++r) {
        tile.scales[r] = f16_from_float(groups.scales[r]) | marks[r];
        tile.zero_points[r] = f16_from_float(groups.zero_points[r]);
    }
    return true;
}

void dequantize_tile(Codec codec, const Tile& tile, TileValues& values) {
    alignas(64) Row scales;
    alignas(64) Row offsets; // value = scale * code + offset; both terms are exact in fp32
    if (codec.kind == CodecKind::affine) affine_parameters(codec.bits, tile, scales, offsets);
    for (int r = 0; r < kTileRows && codec.kind != CodecKind::affine; ++r) {
        const bool marked = codec.kind == CodecKind::hybrid && (tile.scales[r] & kSignBit);
        const bool asymmetric = marked || codec.kind == CodecKind::asymmetric;
        scales[r] = float_from_f16(marked ? tile.scales[r] ^ kSignBit : tile.scales[r]);
        offsets[r] = asymmetric ? float_from_f16(tile.zero_points[r])
                                : -scales[r] * static_cast<float>(codec.bias());
    }
    for (int i = 0; i < kGroupSize; ++i)
        for (int r = 0; r < kTileRows; ++r) {
            const auto code =
                static_cast<std::int32_t>(tile.quads[i / 4][r] >> (8 * (i % 4)) & 0xff);
            values[i][r] = scales[r] * static_cast<float>(code) + offsets[r];
        }
}

} // namespace innerkv
