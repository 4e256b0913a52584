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

/// How far K rows may be from the originals once dequantized and transformed back: [32, head_dim].
std::vector<double> key_row_bounds(const PageFormat& format, const ModelTransform& transform,
                                   const ExpectedPage& page);

double from_f16(std::uint16_t bits);

} // namespace innerkv::test
