// SPDX-License-Identifier: Apache-2.0
// The windows' arithmetic of one layer: which pages are quantized or dropped at which length. Positions
// and counts only.
//
// Pages behind the sink lie on a grid: grid page i holds tokens sink_tokens + 32 i ... + 31. All rules
// look at `length`, the tokens that are there when an append starts, so they do not depend on how the
// tokens came.
#pragma once

#include <cstdint>
#include <limits>

#include "innerkv/cache.h"

namespace innerkv::paging {

inline constexpr std::int64_t kUnbounded = std::numeric_limits<std::int64_t>::max() / 2;

/// Epochs [first, last).
struct EpochRange {
    std::int64_t first = 0;
    std::int64_t last = 0;
    std::int64_t count() const { return last - first; }
};

struct LayerRule {
    int sink_tokens = 0;
    int recent_tokens = 0;
    int sliding_window = 0; ///< 0: none
    /// False for f16 formats, and where a sliding window drops pages before they would be quantized.
    bool quantizes = false;
    /// Tokens behind the sink that norm and value centres are taken from; 0: nothing to calibrate.
    int calibration_tokens = 0;
    bool balances = false; ///< queries of those tokens count too
    /// Grid pages that share a centre of keys; 0: none have one.
    int epoch_pages = 0;

    /// The grid page that a token behind the sink is in.
    std::int64_t grid_page(std::int64_t token) const { return (token - sink_tokens) / kPageTokens; }
    std::int64_t sink_pages(std::int64_t length) const;
    std::int64_t grid_pages(std::int64_t length) const;
    /// Norm and value centres can be computed.
    bool calibration_ready(std::int64_t length) const;
    /// Grid pages that lie before the recent window; they are quantized once the calibration is there.
    std::int64_t settled_pages(std::int64_t length) const;
    /// Sink and grid pages that no query at position `length` or later sees.
    std::int64_t sink_pages_outside(std::int64_t length) const;
    std::int64_t grid_pages_outside(std::int64_t length) const;

    /// Most tokens in the recent window when no append brings more than max_append; kUnbounded where
    /// nothing is ever quantized or dropped.
    std::int64_t peak_recent_tokens(int max_append) const;
    /// Most quantized pages a sequence keeps between appends; only with a sliding window.
    std::int64_t peak_windowed_pages() const;

    /// Epochs that have a centre while grid pages first .. last - 1 are quantized: those that one of the
    /// pages is in, and the one that the next page goes on with.
    EpochRange epochs(std::int64_t first, std::int64_t last) const;
    /// Most epochs that so many pages in a row have a part in.
    std::int64_t peak_epochs(std::int64_t pages) const;
};

LayerRule layer_rule(const CacheConfig& config, int layer);

/// Norm or value centres are to be taken from each sequence's first tokens.
bool calibrates(const CacheConfig& config);

/// The key norm is.
bool norm_from_sequence(const TransformPolicy& policy);

/// Bytes of the norms and value centres that one sequence has in one layer.
std::size_t layer_transform_bytes(const CacheConfig& config);
/// Of the queries' sums of squares that it has there until the norm is taken; 0: none are kept.
std::size_t query_power_bytes(const CacheConfig& config);

/// Bytes of a page group: [kv_heads] pages.
std::size_t quantized_group_bytes(const CacheConfig& config);
std::size_t f16_group_bytes(const CacheConfig& config);
/// Of one epoch's centres: [kv_heads, head_dim] fp16, filled up to 64 bytes.
std::size_t centre_group_bytes(const CacheConfig& config);

constexpr PageFormat f16_format(int head_dim) { return {kF16, kF16, head_dim}; }
/// Of a KV head's row in an fp16 page, and of its centre.
constexpr std::size_t f16_row_bytes(int head_dim) {
    return sizeof(std::uint16_t) * static_cast<std::size_t>(head_dim);
}

constexpr std::int64_t divide_up(std::int64_t value, std::int64_t divisor) {
    return (value + divisor - 1) / divisor;
}

} // namespace innerkv::paging
