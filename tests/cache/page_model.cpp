// SPDX-License-Identifier: Apache-2.0
#include "page_model.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "innerkv/codec.h"

namespace innerkv::test {
namespace {

constexpr double kLargest = 65504.0;
/// For fp32 arithmetic in transforms and fp16 rounding of scales, relative to a group's largest value.
constexpr double kSlack = 1e-3;

/// Orthonormal Hadamard matrix, block by block; tests of the transform check it against its definition.
void rotate(std::vector<double>& row) {
    const std::size_t block = row.size() & (~row.size() + 1);
    for (std::size_t half = 1; half < block; half *= 2) {
        for (std::size_t i = 0; i < row.size(); ++i) {
            if ((i & half) != 0) continue;
            const double low = row[i];
            const double high = row[i + half];
            row[i] = low + high;
            row[i + half] = low - high;
        }
    }
    for (double& value : row) value /= std::sqrt(static_cast<double>(block));
}

/// Half the distance between levels that the codec's definition gives a group, whatever branch. The
/// group's elements lie `stride` apart.
double half_step(Codec codec, const double* group, std::size_t stride) {
    double low = group[0];
    double high = group[0];
    for (std::size_t i = 1; i < kGroupSize; ++i) {
        low = std::min(low, group[i * stride]);
        high = std::max(high, group[i * stride]);
    }
    const double largest = std::max(std::abs(low), std::abs(high));
    const double symmetric = largest / ((1 << (codec.bits - 1)) - 1);
    const double asymmetric = (high - low) / ((1 << codec.bits) - 1);
    const double step =
        codec.kind == CodecKind::symmetric    ? symmetric
        : codec.kind == CodecKind::asymmetric ? asymmetric
        // Its sum of squared errors is no more than the whole range's: sqrt(32) steps.
        : codec.kind == CodecKind::affine ? 6 * std::max(asymmetric, largest / 14)
                                          : std::max(symmetric, asymmetric);
    return step / 2 + kSlack * largest + 1e-6;
}

ExpectedSide bounded(std::vector<double> values) {
    ExpectedSide side;
    side.bounds.resize(values.size());
    side.values = std::move(values);
    return side;
}

} // namespace

double from_f16(std::uint16_t bits) { return static_cast<double>(float_from_f16(bits)); }

ExpectedPage expected_page(const PageFormat& format, const ModelTransform& transform,
                           const std::vector<ModelToken>& tokens, std::int64_t first, int head) {
    const auto dim = static_cast<std::size_t>(format.head_dim);
    const auto padded = static_cast<std::size_t>(format.padded_dim());
    std::vector<double> k(kPageTokens * padded);
    std::vector<double> v(kPageTokens * padded);
    for (std::size_t t = 0; t < kPageTokens; ++t) {
        const ModelToken& token = tokens[static_cast<std::size_t>(first) + t];
        const std::size_t at = static_cast<std::size_t>(head) * dim;
        std::vector<double> row(padded, 0.0);
        std::vector<double> value_row(padded, 0.0);
        for (std::size_t c = 0; c < dim; ++c) {
            row[c] = from_f16(token.k[at + c]);
            if (!transform.centre.empty()) row[c] -= transform.centre[c];
            if (!transform.norm.empty()) row[c] /= transform.norm[c];
            double value = from_f16(token.v[at + c]);
            if (!transform.value_centre.empty()) value -= transform.value_centre[c];
            value_row[c] = value;
        }
        if (transform.rotate) {
            rotate(row);
            rotate(value_row);
        }
        for (std::size_t c = 0; c < padded; ++c) {
            k[t * padded + c] = std::clamp(row[c], -kLargest, kLargest);
            v[t * padded + c] = std::clamp(value_row[c], -kLargest, kLargest);
        }
    }
    ExpectedPage page{bounded(std::move(k)), bounded(std::move(v))};
    // K groups: 32 channels of a token. V groups: 32 tokens of a channel.
    for (std::size_t at = 0; at < page.k.values.size(); at += kGroupSize)
        std::fill_n(page.k.bounds.begin() + static_cast<std::ptrdiff_t>(at), kGroupSize,
                    half_step(format.k, page.k.values.data() + at, 1));
    for (std::size_t c = 0; c < padded; ++c) {
        const double bound = half_step(format.v, page.v.values.data() + c, padded);
        for (std::size_t t = 0; t < kPageTokens; ++t) page.v.bounds[t * padded + c] = bound;
    }
    return page;
}

std::vector<double> row_bounds(const PageFormat& format, bool rotated, const ExpectedSide& side) {
    const auto dim = static_cast<std::size_t>(format.head_dim);
    const auto padded = static_cast<std::size_t>(format.padded_dim());
    const std::size_t block = padded & (~padded + 1);
    std::vector<double> bounds;
    for (std::size_t t = 0; t < kPageTokens; ++t) {
        const double* row = side.bounds.data() + t * padded;
        for (std::size_t c = 0; c < dim; ++c) {
            bounds.push_back(row[c]);
            if (!rotated) continue;
            const double* first = row + c / block * block;
            bounds.back() =
                std::accumulate(first, first + block, 0.0) / std::sqrt(static_cast<double>(block));
        }
    }
    return bounds;
}

} // namespace innerkv::test
