// SPDX-License-Identifier: Apache-2.0
// The windows' arithmetic of one layer: which pages are quantized or dropped at which length. Positions
// and counts only.
//
// Pages behind the sink lie on a grid: grid page i holds tokens sink_tokens + 32 i ... + 31. All rules
// look at `length`, the tokens that are there when an append starts, so they do not depend on how the
// tokens came.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "innerkv/cache.h"

namespace innerkv::paging {

inline constexpr std::int64_t kUnbounded = std::numeric_limits<std::int64_t>::max() / 2;

constexpr std::int64_t divide_up(std::int64_t value, std::int64_t divisor) {
    return (value + divisor - 1) / divisor;
}

/// Epochs [first, last).
struct EpochRange {
    std::int64_t first = 0;
    std::int64_t last = 0;
    constexpr std::int64_t count() const { return last - first; }
};

/// How far the runs of a sequence in one layer go.
struct LayerExtent {
    std::int64_t length = 0;
    std::int64_t dropped = 0;         ///< tokens 0 .. dropped - 1 have left a sliding window
    std::int64_t quantized_first = 0; ///< first token of the quantized run; on the grid
    std::int64_t recent_first = 0;    ///< and the one behind the run's pages

    constexpr std::int64_t quantized_pages() const {
        return (recent_first - quantized_first) / kPageTokens;
    }
};

/// What settling does to one sequence in one layer, in this order.
struct SettlePlan {
    std::int64_t drop_sink = 0; ///< pages that a sliding window has left behind
    std::int64_t drop_quantized = 0;
    std::int64_t drop_recent = 0;
    std::int64_t quantize = 0;     ///< oldest recent pages behind the dropped ones
    bool calibrate = false;        ///< norm and value centres are computed first
    EpochRange new_epochs;         ///< their centres too
    std::int64_t drop_centres = 0; ///< at last
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
    constexpr std::int64_t grid_page(std::int64_t token) const {
        return (token - sink_tokens) / kPageTokens;
    }
    constexpr std::int64_t sink_pages(std::int64_t length) const {
        return divide_up(std::min<std::int64_t>(length, sink_tokens), kPageTokens);
    }
    constexpr std::int64_t grid_pages(std::int64_t length) const {
        return divide_up(std::max<std::int64_t>(0, length - sink_tokens), kPageTokens);
    }
    /// Norm and value centres can be computed.
    constexpr bool calibration_ready(std::int64_t length) const {
        return length >= std::int64_t{sink_tokens} + calibration_tokens + recent_tokens;
    }
    /// Grid pages that lie before the recent window; they are quantized once the calibration is there.
    constexpr std::int64_t settled_pages(std::int64_t length) const {
        if (!quantizes) return 0;
        return std::max<std::int64_t>(0, (length - sink_tokens - recent_tokens) / kPageTokens);
    }
    /// Sink and grid pages that no query at position `length` or later sees.
    constexpr std::int64_t sink_pages_outside(std::int64_t length) const {
        // The query at position `length` sees positions from length - sliding_window + 1 on.
        const std::int64_t first_seen = length - sliding_window + 1;
        if (sliding_window == 0 || first_seen <= 0) return 0;
        if (first_seen >= sink_tokens) return sink_pages(sink_tokens);
        return first_seen / kPageTokens;
    }
    constexpr std::int64_t grid_pages_outside(std::int64_t length) const {
        if (sliding_window == 0) return 0;
        const std::int64_t first_seen = length - sliding_window + 1;
        return std::max<std::int64_t>(0, (first_seen - sink_tokens) / kPageTokens);
    }
    /// Pages of the sink that have left a sliding window.
    constexpr std::int64_t dropped_sink_pages(const LayerExtent& extent) const {
        return divide_up(std::min<std::int64_t>(extent.dropped, sink_tokens), kPageTokens);
    }

    /// Most tokens in the recent window when no append brings more than max_append; kUnbounded where
    /// nothing is ever quantized or dropped.
    std::int64_t peak_recent_tokens(int max_append) const;
    /// Most quantized pages a sequence keeps between appends; only with a sliding window.
    std::int64_t peak_windowed_pages() const;

    /// Epochs that have a centre while grid pages first .. last - 1 are quantized: those that one of the
    /// pages is in, and the one that the next page goes on with.
    constexpr EpochRange epochs(std::int64_t first, std::int64_t last) const {
        if (epoch_pages == 0) return {};
        return {first / epoch_pages, divide_up(last, epoch_pages)};
    }
    constexpr EpochRange epochs(const LayerExtent& extent) const {
        return epochs(grid_page(extent.quantized_first), grid_page(extent.recent_first));
    }
    /// Most epochs that so many pages in a row have a part in.
    std::int64_t peak_epochs(std::int64_t pages) const;
};

LayerRule layer_rule(const CacheConfig& config, int layer);

/// `calibrated`: norm and value centres are there.
constexpr SettlePlan plan_settle(const LayerRule& rule, const LayerExtent& extent,
                                 bool calibrated) {
    SettlePlan plan;
    if (rule.calibration_tokens > 0 && !calibrated) {
        // Until then a sliding window drops nothing either: calibration needs the first tokens.
        if (!rule.calibration_ready(extent.length)) return plan;
        plan.calibrate = true;
    }
    const std::int64_t quantized_first = rule.grid_page(extent.quantized_first);
    const std::int64_t recent_first = rule.grid_page(extent.recent_first);
    const std::int64_t outside = rule.grid_pages_outside(extent.length);
    plan.drop_sink = std::max<std::int64_t>(0, rule.sink_pages_outside(extent.length) -
                                                   rule.dropped_sink_pages(extent));
    plan.drop_quantized =
        std::clamp<std::int64_t>(outside - quantized_first, 0, extent.quantized_pages());
    plan.drop_recent = std::max<std::int64_t>(0, outside - recent_first);
    const std::int64_t first = recent_first + plan.drop_recent;
    plan.quantize = std::max<std::int64_t>(0, rule.settled_pages(extent.length) - first);
    const EpochRange before = rule.epochs(extent);
    const EpochRange after =
        rule.epochs(plan.drop_recent > 0 ? first : quantized_first + plan.drop_quantized,
                    first + plan.quantize);
    plan.drop_centres = std::min(after.first - before.first, before.count());
    plan.new_epochs = {std::max(before.last, after.first), after.last};
    return plan;
}

/// What is left when a plan of it has been carried out.
constexpr LayerExtent settled(const LayerRule& rule, LayerExtent extent, const SettlePlan& plan) {
    const std::int64_t sink_pages = rule.dropped_sink_pages(extent) + plan.drop_sink;
    extent.quantized_first += kPageTokens * plan.drop_quantized;
    if (plan.drop_recent > 0) {
        extent.recent_first += kPageTokens * plan.drop_recent;
        extent.quantized_first = extent.recent_first;
    }
    if (plan.drop_sink > 0)
        extent.dropped = std::min<std::int64_t>(rule.sink_tokens, kPageTokens * sink_pages);
    if (plan.drop_quantized + plan.drop_recent > 0) extent.dropped = extent.quantized_first;
    extent.recent_first += kPageTokens * plan.quantize;
    return extent;
}

/// Norm or value centres are to be taken from each sequence's first tokens.
bool calibrates(const CacheConfig& config);

/// The key norm is.
bool norm_from_sequence(const TransformPolicy& policy);

/// Bytes of the norms and value centres that one sequence has in one layer.
std::size_t layer_transform_bytes(const CacheConfig& config);
/// Of the queries' sums of squares that it has there until the norm is taken; 0: none are kept.
std::size_t query_power_bytes(const CacheConfig& config);

/// Bytes of a page group: [kv_heads] pages.
std::size_t quantized_group_bytes(const CacheConfig& config, int layer);
/// Where all layers have one format.
std::size_t quantized_group_bytes(const CacheConfig& config);
std::size_t f16_group_bytes(const CacheConfig& config);
/// Of one epoch's centres: [kv_heads, head_dim] fp16, filled up to 64 bytes.
std::size_t centre_group_bytes(const CacheConfig& config);

/// Layers whose quantized page groups are equally large share a pool.
struct PageClasses {
    explicit PageClasses(const CacheConfig& config);

    std::vector<std::size_t> group_bytes; ///< [classes], each once
    std::vector<std::size_t> of_layer;    ///< [layers]
};

constexpr PageFormat f16_format(int head_dim) { return {kF16, kF16, head_dim}; }
/// Of a KV head's row in an fp16 page, and of its centre.
constexpr std::size_t f16_row_bytes(int head_dim) {
    return sizeof(std::uint16_t) * static_cast<std::size_t>(head_dim);
}

} // namespace innerkv::paging
