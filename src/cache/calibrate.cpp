// SPDX-License-Identifier: Apache-2.0
#include "cache/calibrate.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "cache/rows.h"
#include "innerkv/codec.h"
#include "transform/transform.h"

namespace innerkv::paging {
namespace {

/// Smaller magnitudes are rounding errors of the mean, not data: fp16's smallest number.
constexpr float kSmallestMagnitude = 0x1p-24f;

using Channels = std::array<float, kMaxTransformedDim>;

/// The calibration tokens of one KV head.
struct Sample {
    std::span<const std::byte* const> pages;
    std::size_t head_offset;
    int head_dim;
    int tokens;

    void load(Side side, int token, float* row) const {
        const std::byte* page = pages[static_cast<std::size_t>(token / kPageTokens)] + head_offset;
        load_row(page, side, head_dim, token % kPageTokens, row);
    }
};

void mean(const Sample& sample, Side side, float* out) {
    std::array<double, kMaxTransformedDim> sum{};
    Channels row;
    for (int token = 0; token < sample.tokens; ++token) {
        sample.load(side, token, row.data());
        for (int c = 0; c < sample.head_dim; ++c) sum[c] += row[c];
    }
    for (int c = 0; c < sample.head_dim; ++c) out[c] = static_cast<float>(sum[c] / sample.tokens);
}

/// Writes the norm to `out`; false where it is to be dropped.
bool key_norm(const Sample& sample, const float* centre, float threshold, float* out) {
    Channels largest{};
    Channels row;
    for (int token = 0; token < sample.tokens; ++token) {
        sample.load(Side::k, token, row.data());
        for (int c = 0; c < sample.head_dim; ++c)
            largest[c] = std::max(largest[c], std::abs(row[c] - (centre ? centre[c] : 0.0f)));
    }
    float most = 0.0f;
    float least = 0.0f;
    for (int c = 0; c < sample.head_dim; ++c) {
        out[c] = 1.0f;
        if (largest[c] < kSmallestMagnitude) continue;
        out[c] = std::sqrt(largest[c]);
        most = std::max(most, out[c]);
        least = least == 0.0f ? out[c] : std::min(least, out[c]);
    }
    return most > 0.0f && most >= threshold * least;
}

} // namespace

std::shared_ptr<LayerTransform> make_layer_transform(const CacheConfig& config) {
    auto transform = std::make_shared<LayerTransform>();
    transform->values.resize(layer_transform_bytes(config) / sizeof(float));
    transform->heads.resize(static_cast<std::size_t>(config.kv_heads));
    const float* next = transform->values.data();
    const auto place = [&](bool wanted) {
        const float* array = wanted ? next : nullptr;
        if (wanted) next += config.format.head_dim;
        return array;
    };
    for (KeyTransform& head : transform->heads) {
        head.norm = place(config.transform.norm == KeyNormPolicy::prefill);
        head.value_centre = place(config.transform.value_centre);
        head.rotate = config.transform.rotate;
    }
    return transform;
}

void calibrate_head(const CacheConfig& config, std::span<const std::byte* const> pages,
                    std::size_t head_offset, KeyTransform& head) {
    const Sample sample{pages, head_offset, config.format.head_dim,
                        config.transform.calibration_tokens};
    // The arrays are this calibration's own; KeyTransform shows them to readers as const.
    if (head.value_centre) mean(sample, Side::v, const_cast<float*>(head.value_centre));
    if (!head.norm) return;
    Channels centre;
    if (config.transform.centre) mean(sample, Side::k, centre.data());
    if (!key_norm(sample, config.transform.centre ? centre.data() : nullptr,
                  config.transform.norm_threshold, const_cast<float*>(head.norm)))
        head.norm = nullptr;
}

void key_centre(int head_dim, int tokens, std::span<const std::byte* const> pages,
                std::size_t head_offset, std::byte* out) {
    Channels centre;
    mean({pages, head_offset, head_dim, tokens}, Side::k, centre.data());
    for (int c = 0; c < head_dim; ++c) {
        const std::uint16_t bits = f16_from_float(centre[static_cast<std::size_t>(c)]);
        std::memcpy(out + sizeof bits * static_cast<std::size_t>(c), &bits, sizeof bits);
    }
}

} // namespace innerkv::paging
