// SPDX-License-Identifier: Apache-2.0
#include "cache/calibrate.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <ranges>
#include <string>

#include "cache/norms.h"
#include "cache/rows.h"
#include "innerkv/codec.h"
#include "innerkv/error.h"
#include "transform/transform.h"

namespace innerkv {
namespace paging {
namespace {

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

/// Calls `visit` with every key, minus the centre.
template <typename Visit>
void for_each_key(const Sample& sample, const Channels& centre, Visit&& visit) {
    Channels row;
    for (int token = 0; token < sample.tokens; ++token) {
        sample.load(Side::k, token, row.data());
        for (int c = 0; c < sample.head_dim; ++c) row[c] -= centre[c];
        visit(row);
    }
}

/// max over tokens |K - centre|, 0 where it is a rounding error.
Channels magnitudes(const Sample& sample, const Channels& centre) {
    Channels largest{};
    for_each_key(sample, centre, [&](const Channels& row) {
        for (int c = 0; c < sample.head_dim; ++c)
            largest[c] = std::max(largest[c], std::abs(row[c]));
    });
    for (float& magnitude : largest)
        if (magnitude < kSmallestMagnitude) magnitude = 0.0f;
    return largest;
}

/// sqrt(largest), 1 where that is 0; false where it is to be dropped.
bool prefill_norm(const Sample& sample, const Channels& centre, float threshold, float* out) {
    const Channels largest = magnitudes(sample, centre);
    float most = 0.0f;
    float least = 0.0f;
    for (int c = 0; c < sample.head_dim; ++c) {
        out[c] = 1.0f;
        if (largest[c] == 0.0f) continue;
        out[c] = std::sqrt(largest[c]);
        most = std::max(most, out[c]);
        least = least == 0.0f ? out[c] : std::min(least, out[c]);
    }
    return most > 0.0f && most >= threshold * least;
}

/// Lower median of what is above 0; 0 where nothing is. At most kMaxTransformedDim values.
float median(const float* values, int count) {
    Channels sorted;
    float* const end =
        std::copy_if(values, values + count, sorted.data(), [](float v) { return v > 0.0f; });
    if (end == sorted.data()) return 0.0f;
    float* const middle = sorted.data() + (end - sorted.data() - 1) / 2;
    std::nth_element(sorted.data(), middle, end);
    return *middle;
}

/// By how much each channel's keys are larger than its queries, (sum K^2 / sum q^2)^(1/4); 0 where one
/// of the two is silent.
Channels imbalances(const Sample& sample, const Channels& centre, const float* query_power) {
    std::array<double, kMaxTransformedDim> power{};
    for_each_key(sample, centre, [&](const Channels& row) {
        for (int c = 0; c < sample.head_dim; ++c) power[c] += double{row[c]} * double{row[c]};
    });
    const double least = double{kSmallestMagnitude} * double{kSmallestMagnitude} * sample.tokens;
    Channels ratio{};
    for (int c = 0; c < sample.head_dim; ++c)
        if (power[c] >= least && query_power[c] > 0.0f)
            ratio[c] = static_cast<float>(std::sqrt(std::sqrt(power[c] / double{query_power[c]})));
    return ratio;
}

/// False where all norms are 1.
bool balanced_norm(const Sample& sample, const Channels& centre, const float* query_power,
                   float* out) {
    const Channels ratio = imbalances(sample, centre, query_power);
    const float middle = median(ratio.data(), sample.head_dim);
    bool any = false;
    for (int c = 0; c < sample.head_dim; ++c) {
        out[c] = ratio[c] > 0.0f ? shrunk(ratio[c] / middle) : 1.0f;
        any = any || out[c] != 1.0f;
    }
    return any;
}

/// False where all norms are 1.
bool outlier_norm(const Sample& sample, const Channels& centre, float* out) {
    Channels norms = magnitudes(sample, centre);
    const std::span<float> channels(norms.data(), static_cast<std::size_t>(sample.head_dim));
    norms_from_magnitudes(channels);
    std::ranges::copy(channels, out);
    return std::ranges::any_of(channels, [](float norm) { return norm != 1.0f; });
}

/// Writes the norm to `out`; false where it is to be dropped.
bool key_norm(const TransformPolicy& policy, const Sample& sample, const float* query_power,
              float* out) {
    Channels centre{};
    if (policy.centre) mean(sample, Side::k, centre.data());
    if (policy.norm == KeyNormPolicy::prefill)
        return prefill_norm(sample, centre, policy.norm_threshold, out);
    if (query_power) return balanced_norm(sample, centre, query_power, out);
    return outlier_norm(sample, centre, out);
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
        head.norm = place(norm_from_sequence(config.transform));
        head.value_centre = place(config.transform.value_centre);
        head.rotate = config.transform.rotate;
    }
    return transform;
}

void calibrate_head(const CacheConfig& config, std::span<const std::byte* const> pages,
                    std::size_t head_offset, const float* query_power, KeyTransform& head) {
    const Sample sample{pages, head_offset, config.format.head_dim,
                        config.transform.calibration_tokens};
    // The arrays are this calibration's own; KeyTransform shows them to readers as const.
    if (head.value_centre) mean(sample, Side::v, const_cast<float*>(head.value_centre));
    if (head.norm &&
        !key_norm(config.transform, sample, query_power, const_cast<float*>(head.norm)))
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

} // namespace paging

void norms_from_magnitudes(std::span<float> channels) {
    if (channels.size() > kMaxTransformedDim)
        throw InvalidArgument("norms of " + std::to_string(channels.size()) +
                              " channels; a head has up to 256");
    const float middle = paging::median(channels.data(), static_cast<int>(channels.size()));
    const float bound = middle > 0.0f ? paging::kOutlier * middle : kLargestF16;
    for (float& magnitude : channels) magnitude = std::clamp(magnitude / bound, 1.0f, kLargestF16);
}

} // namespace innerkv
