// SPDX-License-Identifier: Apache-2.0
// What a device cache keeps in device memory of each sequence and layer, and what launches get. Plain data.
#pragma once

#include <cstdint>

#include "cache/rules.h"
#include "innerkv/cuda_cache.h"

namespace innerkv::cuda {

/// Pages of a run lie in a ring, whose table has every page twice: so any number of pages in a row, up to the ring's,
/// is a part of the table.
struct Ring {
    std::byte* const* table; ///< [2 * pages], page groups
    std::int32_t pages;

    constexpr std::byte* const* from(std::int64_t index) const { return table + index % pages; }
};

/// One sequence in one layer. Grid pages and epochs are counted as LayerRule does.
struct SlotState {
    paging::LayerExtent extent;
    std::int64_t
        quantized_capacity;       ///< grid pages that have a place in `quantized`, and their epochs
    std::int64_t recent_capacity; ///< and in `recent`, where that is not a ring
    std::int32_t in_use;
    std::int32_t calibrated;
    std::int32_t has_queries;    ///< query_power[query_buffer] counts
    std::int32_t query_buffer;   ///< the other one is an append's
    std::int32_t had_queries;    ///< has_queries before the last append whose queries count
    std::int64_t queries_from;   ///< length before that append; -1: it cannot be undone
    std::byte* const* sink;      ///< [sink pages]
    Ring recent;                 ///< by grid page
    std::byte* const* quantized; ///< [grid page]
    std::byte* const* epochs;    ///< [epoch], [kv_heads, head_dim] fp16
    float* norm;                 ///< [kv_heads, head_dim] or null
    float* value_centre;         ///< likewise
    const float* centre;         ///< likewise; of calibrated policies
    std::int32_t* has_norm;      ///< [kv_heads]
    float* query_power[2];       ///< [kv_heads, head_dim] or null
};

enum class FaultKind : std::int32_t {
    none,
    value,
    pages,
    window, ///< no room in the ring of fp16 pages
    tokens, ///< `rows` of them, out of range
    lengths ///< told by verify(), which could not bring the layers back to one length
};

/// The first thing that an append refused; a slot with one takes no more.
struct Fault {
    FaultKind kind;
    std::int32_t layer;
    std::int64_t position; ///< of the token
    std::int32_t rows;     ///< 0: K, 1: V, 2: Q; or how many tokens an append brought
    std::int32_t head;
    std::int32_t channel;
    float value; ///< that was refused; of FaultKind::tokens: the append's max_tokens
};

/// Of all appends to one layer.
struct LayerParams {
    paging::LayerRule rule;
    PageFormat format;
    std::int32_t layer;
    std::int32_t kv_heads;
    std::int32_t rotate;
    KeyNormPolicy norm;
    float norm_threshold;
    std::int32_t centre;     ///< norms are taken from centred keys
    std::int64_t f16_stride; ///< bytes of a KV head's fp16 page
    SlotState* slots;        ///< [max_sequences]
    Sequence* sequences;     ///< [max_sequences]
    Fault* faults;           ///< [max_sequences], of all layers
    std::int32_t* arrivals;  ///< [max_sequences], 0 between launches
};

/// An append.
struct AppendParams {
    LayerParams layer;
    DeviceRows k;
    DeviceRows v;
    DeviceRows q;
    std::int32_t q_heads;
    std::int32_t max_tokens;
    const std::int32_t* tokens;
    std::int32_t
        page_blocks; ///< of threads, a KV head: for quantized pages, for rows of 32 tokens, for queries
    std::int32_t row_blocks;
    std::int32_t query_blocks;
};

} // namespace innerkv::cuda
