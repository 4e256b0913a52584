// SPDX-License-Identifier: Apache-2.0
// What a quantized page of one KV head may hold, given its rows: transformed rows in double precision
// and how far each element may be from them under a codec.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "innerkv/format.h"
#include "model.h"

namespace innerkv::test {

struct ExpectedSide {
    std::vector<double> values; ///< [32, padded_dim], transformed
    std::vector<double> bounds; ///< [32, padded_dim]
};

struct ExpectedPage {
    ExpectedSide k;
    ExpectedSide v;
};

/// Of 32 tokens from `first` on.
ExpectedPage expected_page(const PageFormat& format, const ModelTransform& transform,
                           const std::vector<ModelToken>& tokens, std::int64_t first, int head);

/// How far rows of a side may be from what was quantized once dequantized and rotated back: [32, head_dim].
/// A key's norm is still to be multiplied.
std::vector<double> row_bounds(const PageFormat& format, bool rotated, const ExpectedSide& side);

double from_f16(std::uint16_t bits);

} // namespace innerkv::test
