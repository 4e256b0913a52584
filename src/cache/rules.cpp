// SPDX-License-Identifier: Apache-2.0
#include "cache/rules.h"

#include <algorithm>

namespace innerkv::paging {

std::int64_t LayerRule::peak_recent_tokens(int max_append) const {
    if (!quantizes && sliding_window == 0) return kUnbounded;
    if (!quantizes) return std::int64_t{sliding_window} - 1 + kPageTokens - 1 + max_append;
    const std::int64_t settled = std::int64_t{recent_tokens} + kPageTokens - 1;
    const std::int64_t uncalibrated = std::int64_t{calibration_tokens} + recent_tokens - 1;
    return std::max(settled, uncalibrated) + max_append;
}

std::int64_t LayerRule::peak_windowed_pages() const {
    return quantizes ? divide_up(std::int64_t{sliding_window} - 1 - recent_tokens, kPageTokens) : 0;
}

std::int64_t LayerRule::peak_epochs(std::int64_t pages) const {
    if (epoch_pages == 0) return 0;
    return divide_up(pages - 1, epoch_pages) + 1;
}

LayerRule layer_rule(const CacheConfig& config, int layer) {
    LayerRule rule;
    rule.sink_tokens = config.sink_tokens;
    rule.recent_tokens = config.recent_tokens;
    if (!config.sliding_window.empty())
        rule.sliding_window = config.sliding_window[static_cast<std::size_t>(layer)];
    // A page is quantized recent_tokens + 32 tokens after its first token and dropped
    // sliding_window + 31 tokens after it, whichever comes first.
    const bool outlives = rule.sliding_window == 0 || rule.sliding_window - 1 > rule.recent_tokens;
    rule.quantizes = config.format.quantized() && outlives;
    if (rule.quantizes && calibrates(config))
        rule.calibration_tokens = config.transform.calibration_tokens;
    rule.balances = rule.calibration_tokens > 0 && config.transform.norm == KeyNormPolicy::balanced;
    if (rule.quantizes && config.transform.centre)
        rule.epoch_pages = config.transform.centre_epoch / kPageTokens;
    return rule;
}

bool calibrates(const CacheConfig& config) {
    const TransformPolicy& policy = config.transform;
    return config.format.quantized() && (norm_from_sequence(policy) || policy.value_centre);
}

bool norm_from_sequence(const TransformPolicy& policy) {
    return policy.norm == KeyNormPolicy::prefill || policy.norm == KeyNormPolicy::balanced;
}

std::size_t query_power_bytes(const CacheConfig& config) {
    if (!config.format.quantized() || config.transform.norm != KeyNormPolicy::balanced) return 0;
    return sizeof(float) * static_cast<std::size_t>(config.kv_heads) *
           static_cast<std::size_t>(config.format.head_dim);
}

std::size_t layer_transform_bytes(const CacheConfig& config) {
    const TransformPolicy& policy = config.transform;
    const int arrays = (norm_from_sequence(policy) ? 1 : 0) + (policy.value_centre ? 1 : 0);
    return sizeof(float) * static_cast<std::size_t>(arrays) *
           static_cast<std::size_t>(config.kv_heads) *
           static_cast<std::size_t>(config.format.head_dim);
}

std::size_t quantized_group_bytes(const CacheConfig& config, int layer) {
    return static_cast<std::size_t>(config.kv_heads) * config.layer_format(layer).page_bytes();
}

std::size_t quantized_group_bytes(const CacheConfig& config) {
    return static_cast<std::size_t>(config.kv_heads) * config.format.page_bytes();
}

PageClasses::PageClasses(const CacheConfig& config) {
    for (int layer = 0; layer < config.layers; ++layer) {
        const std::size_t bytes = quantized_group_bytes(config, layer);
        const auto found = std::find(group_bytes.begin(), group_bytes.end(), bytes);
        of_layer.push_back(static_cast<std::size_t>(found - group_bytes.begin()));
        if (found == group_bytes.end()) group_bytes.push_back(bytes);
    }
}

std::size_t centre_group_bytes(const CacheConfig& config) {
    const std::size_t bytes = sizeof(std::uint16_t) * static_cast<std::size_t>(config.kv_heads) *
                              static_cast<std::size_t>(config.format.head_dim);
    return (bytes + kPageAlignment - 1) / kPageAlignment * kPageAlignment;
}

std::size_t f16_group_bytes(const CacheConfig& config) {
    return static_cast<std::size_t>(config.kv_heads) *
           f16_format(config.format.head_dim).page_bytes();
}

} // namespace innerkv::paging
