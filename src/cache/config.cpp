// SPDX-License-Identifier: Apache-2.0
// Checks of a config, and what it owns.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "cache/state.h"
#include "innerkv/error.h"
#include "transform/transform.h"

namespace innerkv {
namespace paging {
namespace {

/// Far beyond any memory, and small enough that sums and products of counts stay within 64 bits.
constexpr std::int64_t kMostTokens = std::int64_t{1} << 40;
constexpr std::int64_t kMostOfOthers = std::int64_t{1} << 24;
constexpr double kMostBytes = 0x1p62;

void check_range(const char* name, std::int64_t value, std::int64_t least,
                 std::int64_t most = kMostOfOthers) {
    if (value >= least && value <= most) return;
    throw InvalidArgument("cache config: " + std::string(name) + " is " + std::to_string(value) +
                          "; supported are " + std::to_string(least) + " to " +
                          std::to_string(most));
}

void check_pages(const char* name, std::int64_t value, std::int64_t least) {
    if (value >= least && value <= kMostOfOthers && value % kPageTokens == 0) return;
    throw InvalidArgument("cache config: " + std::string(name) + " is " + std::to_string(value) +
                          "; supported are multiples of 32, the tokens of a page, from " +
                          std::to_string(least) + " to " + std::to_string(kMostOfOthers));
}

void check_bytes(double bytes) {
    if (bytes <= kMostBytes) return;
    throw InvalidArgument("cache config: it asks for " + std::to_string(bytes) +
                          " bytes; supported are up to 2^62. Choose fewer layers, KV heads, tokens "
                          "or sequences");
}

void check_windows(const CacheConfig& config) {
    check_range("sink_tokens", config.sink_tokens, 0);
    check_pages("recent_tokens", config.recent_tokens, 0);
    if (config.sliding_window.empty()) return;
    if (config.sliding_window.size() != static_cast<std::size_t>(config.layers))
        throw InvalidArgument("cache config: sliding_window has " +
                              std::to_string(config.sliding_window.size()) + " entries for " +
                              std::to_string(config.layers) +
                              " layers; give one per layer (0: no window) or none at all");
    for (const int window : config.sliding_window) check_range("sliding_window", window, 0);
}

void check_layer_codecs(const CacheConfig& config) {
    const std::vector<LayerCodecs>& layers = config.layer_codecs;
    if (layers.empty()) return;
    if (layers.size() != static_cast<std::size_t>(config.layers))
        throw InvalidArgument("cache config: layer_codecs has " + std::to_string(layers.size()) +
                              " entries for " + std::to_string(config.layers) +
                              " layers; give one per layer, or none for format's in all of them");
    for (int layer = 0; layer < config.layers; ++layer) {
        const PageFormat format = config.layer_format(layer);
        const std::string where = "cache config: layer_codecs[" + std::to_string(layer) + "]: ";
        try {
            format.validate();
        } catch (const InvalidArgument& error) {
            throw InvalidArgument(where + error.what());
        }
        if (!format.quantized() || !config.format.quantized())
            throw InvalidArgument(where + "f16 beside quantized codecs, of another layer or of "
                                          "format; choose quantized ones for all of them");
    }
}

void check_policy(const CacheConfig& config) {
    const TransformPolicy& policy = config.transform;
    if (policy.centre) check_pages("transform.centre_epoch", policy.centre_epoch, kPageTokens);
    if (calibrates(config))
        check_range("transform.calibration_tokens", policy.calibration_tokens, 1);
    if (!std::isfinite(policy.norm_threshold))
        throw InvalidArgument("cache config: transform.norm_threshold is not finite");
    if (policy.norm == KeyNormPolicy::calibrated &&
        (policy.centre || policy.rotate || policy.value_centre))
        throw InvalidArgument("cache config: with calibrated transforms, centre, rotate and "
                              "value_centre are taken from `calibrated`; leave the policy's unset");
}

void check_array(const char* name, std::size_t index, const float* values, int head_dim,
                 bool is_norm) {
    if (!values) return;
    const auto supported = [is_norm](float value) {
        return is_norm ? value >= kSmallestNorm && value <= kLargestF16
                       : std::abs(value) <= kLargestF16;
    };
    const float* fault =
        std::find_if_not(values, values + head_dim, [&](float value) { return supported(value); });
    if (fault == values + head_dim) return;
    throw InvalidArgument("cache config: calibrated[" + std::to_string(index) + "]." + name + "[" +
                          std::to_string(fault - values) + "] is " + std::to_string(*fault) +
                          "; supported are " +
                          (is_norm ? "2^-24 to 65504" : "magnitudes up to 65504"));
}

void check_calibrated(const CacheConfig& config) {
    const bool wanted = config.transform.norm == KeyNormPolicy::calibrated;
    const std::size_t heads =
        static_cast<std::size_t>(config.layers) * static_cast<std::size_t>(config.kv_heads);
    if (config.calibrated.size() != (wanted ? heads : 0))
        throw InvalidArgument(
            "cache config: calibrated has " + std::to_string(config.calibrated.size()) +
            " transforms; the norm policy " +
            (wanted ? "calibrated needs layers * kv_heads = " + std::to_string(heads)
                    : std::string("is another, which needs none")));
    for (std::size_t i = 0; i < config.calibrated.size(); ++i) {
        const KeyTransform& head = config.calibrated[i];
        check_array("norm", i, head.norm, config.format.head_dim, true);
        check_array("centre", i, head.centre, config.format.head_dim, false);
        check_array("value_centre", i, head.value_centre, config.format.head_dim, false);
    }
}

void check_capacity(const CacheConfig& config) {
    const PoolCapacity capacity = pool_capacity(config);
    const std::int64_t most = std::numeric_limits<std::int32_t>::max();
    const std::int64_t quantized = std::accumulate(capacity.quantized_pages.begin(),
                                                   capacity.quantized_pages.end(), std::int64_t{0});
    if (std::max({quantized, capacity.f16_pages, capacity.centres}) > most)
        throw InvalidArgument("cache config: max_tokens = " + std::to_string(config.max_tokens) +
                              " and max_sequences = " + std::to_string(config.max_sequences) +
                              " need more than 2^31 page groups; choose smaller ones");
    const double layer_states = static_cast<double>(config.layers) * config.max_sequences;
    check_bytes(static_cast<double>(quantized + capacity.f16_pages + capacity.centres) *
                    static_cast<double>(f16_group_bytes(config)) +
                layer_states * static_cast<double>(layer_state_bytes(config)));
}

} // namespace

void validate_layout(const CacheConfig& config) {
    config.format.validate();
    check_range("layers", config.layers, 1);
    check_range("kv_heads", config.kv_heads, 1);
    check_layer_codecs(config);
    check_windows(config);
    check_policy(config);
}

void validate_config(const CacheConfig& config) {
    validate_layout(config);
    check_range("max_tokens", config.max_tokens, 1, kMostTokens);
    check_range("max_sequences", config.max_sequences, 1);
    check_range("max_append", config.max_append, 1);
    check_calibrated(config);
    check_capacity(config);
}

void validate_length(const CacheConfig& config, std::int64_t length) {
    if (length < 0 || length > kMostTokens)
        throw InvalidArgument("a sequence of " + std::to_string(length) +
                              " tokens; supported are 0 to " + std::to_string(kMostTokens));
    // As if all of it were fp16, and the last page of each run empty.
    const double pages = static_cast<double>(length) / kPageTokens + 3.0;
    check_bytes(pages * config.layers *
                static_cast<double>(f16_group_bytes(config) + layer_transform_bytes(config)));
}

std::vector<float> adopt_calibrated(CacheConfig& config) {
    const auto head_dim = static_cast<std::size_t>(config.format.head_dim);
    std::vector<float> values;
    values.reserve(3 * head_dim * config.calibrated.size());
    const auto adopt = [&](const float*& array) {
        if (!array) return;
        values.insert(values.end(), array, array + head_dim);
        array = values.data() + values.size() - head_dim;
    };
    for (KeyTransform& head : config.calibrated) {
        adopt(head.norm);
        adopt(head.centre);
        adopt(head.value_centre);
    }
    return values;
}

} // namespace paging

CacheConfig CacheConfig::from_preset(const Preset& preset, int layers, int kv_heads, int head_dim) {
    CacheConfig config;
    config.layers = layers;
    config.kv_heads = kv_heads;
    config.format = preset.format(head_dim);
    config.sink_tokens = preset.sink_tokens;
    config.recent_tokens = preset.recent_tokens;
    config.transform = TransformPolicy::from_preset(preset);
    return config;
}

PageFormat CacheConfig::layer_format(int layer) const {
    if (layer_codecs.empty()) return format;
    const LayerCodecs& codecs = layer_codecs[static_cast<std::size_t>(layer)];
    return {codecs.k, codecs.v, format.head_dim};
}

double CacheConfig::bits_per_value() const {
    return layer_codecs.empty() ? format.bits_per_value()
                                : mean_bits_per_value(layer_codecs, format.head_dim);
}

TransformPolicy TransformPolicy::from_preset(const Preset& preset) {
    TransformPolicy policy;
    policy.norm = preset.key_norm;
    policy.centre = policy.rotate = preset.rotate;
    return policy;
}

} // namespace innerkv
