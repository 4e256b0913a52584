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

struct LayerRule {
    int sink_tokens = 0;
    int recent_tokens = 0;
    int sliding_window = 0; ///< 0: none
    /// False for f16 formats, and where a sliding window drops pages before they would be quantized.
    bool quantizes = false;
    /// Tokens behind the sink that norm and centres are taken from; 0: nothing to calibrate.
    int calibration_tokens = 0;

    std::int64_t sink_pages(std::int64_t length) const;
    std::int64_t grid_pages(std::int64_t length) const;
    /// Norm and centres can be computed.
    bool calibration_ready(std::int64_t length) const;
    /// Grid pages that lie before the recent window; they are quantized once norm and centres are there.
    std::int64_t settled_pages(std::int64_t length) const;
    /// Sink and grid pages that no query at position `length` or later sees.
    std::int64_t sink_pages_outside(std::int64_t length) const;
    std::int64_t grid_pages_outside(std::int64_t length) const;

    /// Most tokens in the recent window when no append brings more than max_append; kUnbounded where
    /// nothing is ever quantized or dropped.
    std::int64_t peak_recent_tokens(int max_append) const;
    /// Most quantized pages a sequence keeps between appends; only with a sliding window.
    std::int64_t peak_windowed_pages() const;
};

LayerRule layer_rule(const CacheConfig& config, int layer);

/// Norm or centres are to be taken from each sequence.
bool calibrates(const CacheConfig& config);

/// Bytes of the norms and centres that one sequence has in one layer.
std::size_t layer_transform_bytes(const CacheConfig& config);

/// Bytes of a page group: [kv_heads] pages.
std::size_t quantized_group_bytes(const CacheConfig& config);
std::size_t f16_group_bytes(const CacheConfig& config);

constexpr PageFormat f16_format(int head_dim) { return {kF16, kF16, head_dim}; }

constexpr std::int64_t divide_up(std::int64_t value, std::int64_t divisor) {
    return (value + divisor - 1) / divisor;
}

} // namespace innerkv::paging
