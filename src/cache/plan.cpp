// SPDX-License-Identifier: Apache-2.0
// Bytes before anything is allocated: sizes of the pools, and of one sequence.
#include "innerkv/plan.h"

#include <algorithm>

#include "cache/rules.h"
#include "cache/state.h"

namespace innerkv {
namespace paging {
namespace {

/// Pages of all sequences together, in one layer, when their tokens are max_tokens in all: each may
/// leave its last page partly empty, and its last sink page where the sink ends inside a page.
std::int64_t f16_pages_for_all_tokens(const CacheConfig& config) {
    const int partial = config.sink_tokens % kPageTokens == 0 ? 1 : 2;
    return config.max_tokens / kPageTokens + std::int64_t{partial} * config.max_sequences;
}

std::int64_t f16_pages_of_layer(const CacheConfig& config, const LayerRule& rule) {
    const std::int64_t all = f16_pages_for_all_tokens(config);
    const std::int64_t recent = rule.peak_recent_tokens(config.max_append);
    if (config.exact_prefill || recent >= kUnbounded) return all;
    const std::int64_t one = rule.sink_pages(config.sink_tokens) + divide_up(recent, kPageTokens);
    return std::min(all, one * config.max_sequences);
}

std::int64_t quantized_pages_of_layer(const CacheConfig& config, const LayerRule& rule) {
    // Windows cost each sequence tokens, so one long sequence has the most pages.
    const std::int64_t all = rule.settled_pages(config.max_tokens);
    if (rule.sliding_window == 0) return all;
    return std::min(all, rule.peak_windowed_pages() * config.max_sequences);
}

/// An append to a layer with a sliding window takes new quantized pages before it gives old ones back.
std::int64_t quantized_pages_in_flight(const CacheConfig& config, const LayerRule& rule) {
    if (!rule.quantizes || rule.sliding_window == 0) return 0;
    const std::int64_t appended = divide_up(config.max_append, kPageTokens);
    return std::min(rule.peak_windowed_pages(), appended) * config.max_sequences;
}

/// A sequence's last epoch may have just begun.
std::int64_t centres_of_layer(const CacheConfig& config, const LayerRule& rule) {
    if (rule.epoch_pages == 0) return 0;
    const std::int64_t all =
        rule.settled_pages(config.max_tokens) / rule.epoch_pages + config.max_sequences;
    if (rule.sliding_window == 0) return all;
    return std::min(all, rule.peak_epochs(rule.peak_windowed_pages()) * config.max_sequences);
}

/// Likewise for new epochs, also of pages that are dropped at once.
std::int64_t centres_in_flight(const CacheConfig& config, const LayerRule& rule) {
    if (rule.epoch_pages == 0 || rule.sliding_window == 0) return 0;
    return rule.peak_epochs(divide_up(config.max_append, kPageTokens)) * config.max_sequences;
}

} // namespace

PoolCapacity pool_capacity(const CacheConfig& config) {
    const PageClasses classes(config);
    PoolCapacity capacity;
    capacity.quantized_pages.resize(classes.group_bytes.size());
    std::vector<std::int64_t> in_flight(classes.group_bytes.size());
    std::int64_t new_centres = 0;
    for (int layer = 0; layer < config.layers; ++layer) {
        const LayerRule rule = layer_rule(config, layer);
        const std::size_t page_class = classes.of_layer[static_cast<std::size_t>(layer)];
        capacity.quantized_pages[page_class] += quantized_pages_of_layer(config, rule);
        capacity.f16_pages += f16_pages_of_layer(config, rule);
        capacity.centres += centres_of_layer(config, rule);
        in_flight[page_class] =
            std::max(in_flight[page_class], quantized_pages_in_flight(config, rule));
        new_centres = std::max(new_centres, centres_in_flight(config, rule));
    }
    for (std::size_t i = 0; i < in_flight.size(); ++i) capacity.quantized_pages[i] += in_flight[i];
    capacity.centres += new_centres;
    // Likewise for fp16 pages: those of the new rows, and a copy of a shared page that is half full.
    capacity.f16_pages +=
        (divide_up(config.max_append, kPageTokens) + 1) * std::int64_t{config.max_sequences};
    return capacity;
}

} // namespace paging

CachePlan plan_cache(const CacheConfig& config) {
    paging::validate_config(config);
    const paging::PoolCapacity capacity = paging::pool_capacity(config);
    // Per group: an entry in a page table, a reference count and a place in the list of free ones.
    const std::size_t table_entry =
        sizeof(void*) + sizeof(paging::PageId) + 2 * sizeof(std::uint32_t);
    const std::size_t layer_states =
        static_cast<std::size_t>(config.layers) * static_cast<std::size_t>(config.max_sequences);
    CachePlan plan;
    plan.other_bytes = layer_states * paging::layer_state_bytes(config);
    const auto add_pool = [&](std::size_t& bytes, std::size_t group_bytes, std::int64_t groups) {
        const auto count = static_cast<std::size_t>(groups);
        const paging::ChunkShape shape(group_bytes, groups);
        bytes += count * group_bytes;
        plan.other_bytes += count * table_entry + shape.count * shape.bytes - count * group_bytes;
    };
    const paging::PageClasses classes(config);
    for (std::size_t i = 0; i < classes.group_bytes.size(); ++i)
        add_pool(plan.quantized_bytes, classes.group_bytes[i], capacity.quantized_pages[i]);
    add_pool(plan.f16_bytes, paging::f16_group_bytes(config), capacity.f16_pages);
    add_pool(plan.centre_bytes, paging::centre_group_bytes(config), capacity.centres);
    return plan;
}

std::size_t sequence_bytes(const CacheConfig& config, std::int64_t length) {
    paging::validate_layout(config);
    paging::validate_length(config, length);
    // The last append found all tokens but its own.
    const std::int64_t settled_at = std::max<std::int64_t>(0, length - 1);
    std::size_t bytes = 0;
    for (int layer = 0; layer < config.layers; ++layer) {
        const paging::LayerRule rule = paging::layer_rule(config, layer);
        const bool settles = rule.calibration_tokens == 0 || rule.calibration_ready(settled_at);
        const std::int64_t settled = settles ? rule.settled_pages(settled_at) : 0;
        const std::int64_t outside = settles ? rule.grid_pages_outside(settled_at) : 0;
        const std::int64_t sink_outside = settles ? rule.sink_pages_outside(settled_at) : 0;
        const std::int64_t recent_from = std::max(outside, settled);
        const std::int64_t f16 =
            rule.sink_pages(length) - sink_outside + rule.grid_pages(length) - recent_from;
        bytes +=
            static_cast<std::size_t>(recent_from - outside) *
                paging::quantized_group_bytes(config, layer) +
            static_cast<std::size_t>(f16) * paging::f16_group_bytes(config) +
            static_cast<std::size_t>(rule.epochs(outside, recent_from).count()) *
                paging::centre_group_bytes(config) +
            (settles && rule.calibration_tokens > 0 ? paging::layer_transform_bytes(config) : 0);
    }
    return bytes;
}

std::size_t f16_sequence_bytes(const CacheConfig& config, std::int64_t length) {
    paging::validate_layout(config);
    paging::validate_length(config, length);
    std::int64_t tokens = 0;
    for (int layer = 0; layer < config.layers; ++layer) {
        const int window = paging::layer_rule(config, layer).sliding_window;
        tokens += window == 0 ? length : std::min<std::int64_t>(length, window);
    }
    return static_cast<std::size_t>(tokens) * static_cast<std::size_t>(config.kv_heads) *
           static_cast<std::size_t>(config.format.head_dim) * 2 * sizeof(std::uint16_t);
}

} // namespace innerkv
