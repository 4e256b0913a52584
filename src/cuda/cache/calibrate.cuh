// SPDX-License-Identifier: Apache-2.0
// Norms, value centres and key centres of one KV head, a channel a thread: the operations of src/cache/calibrate.cpp
// in the same order. TransformPolicy (innerkv/cache.h) has the formulas. Compiled without contraction.
#pragma once

#include "cache/norms.h"
#include "cuda/cache/page.cuh"

namespace innerkv::cuda {

using paging::kOutlier;
using paging::kSmallestMagnitude;
using paging::shrunk;

/// The first tokens of a run of fp16 pages, of one KV head and one of its channels.
struct ChannelSample {
    std::byte* const* pages;
    std::int64_t head_offset;
    int head_dim;
    int tokens;
    int channel;

    __device__ float at(bool keys, int token) const {
        const auto* page =
            reinterpret_cast<const std::uint16_t*>(pages[token / kPageTokens] + head_offset);
        const int row = token % kPageTokens + (keys ? 0 : kPageTokens);
        return float_from_f16(page[row * head_dim + channel]);
    }
    __device__ float mean(bool keys) const {
        double sum = 0.0;
        for (int token = 0; token < tokens; ++token) sum += at(keys, token);
        return static_cast<float>(sum / tokens);
    }
};

struct CalibrationShared {
    float values[kMostDim];
    float result;
    int count;
};

/// The lower median of what is above 0 among the channels' values; 0 where nothing is. All threads call it.
__device__ inline float median(CalibrationShared& shared, float value, int channel, int head_dim) {
    __syncthreads();
    if (channel < head_dim) shared.values[channel] = value;
    if (channel == 0) {
        shared.result = 0.0f;
        shared.count = 0;
    }
    __syncthreads();
    const bool counts = channel < head_dim && value > 0.0f;
    if (counts) atomicAdd(&shared.count, 1);
    int rank = 0;
    for (int other = 0; other < head_dim && counts; ++other) {
        const float candidate = shared.values[other];
        if (candidate > 0.0f && (candidate < value || (candidate == value && other < channel)))
            ++rank;
    }
    __syncthreads();
    if (counts && rank == (shared.count - 1) / 2) shared.result = value;
    __syncthreads();
    return shared.result;
}

/// The largest of the channels' values; all threads call it.
__device__ inline float largest_of(CalibrationShared& shared, float value, int channel) {
    __syncthreads();
    shared.values[channel] = value;
    __syncthreads();
    for (int half = kMostDim / 2; half > 0; half /= 2) {
        if (channel < half)
            shared.values[channel] = fmaxf(shared.values[channel], shared.values[channel + half]);
        __syncthreads();
    }
    return shared.values[0];
}

/// max over tokens |K - centre|, 0 where it is a rounding error.
__device__ inline float magnitude(const ChannelSample& sample, float centre) {
    float largest = 0.0f;
    for (int token = 0; token < sample.tokens; ++token)
        largest = fmaxf(largest, fabsf(sample.at(true, token) - centre));
    return largest < kSmallestMagnitude ? 0.0f : largest;
}

/// sqrt(largest), 1 where that is 0; `kept`: false where the norm is to be dropped.
__device__ inline float prefill_norm(CalibrationShared& shared, const ChannelSample& sample,
                                     float centre, float threshold, bool exists, bool& kept) {
    const float largest = exists ? magnitude(sample, centre) : 0.0f;
    const float norm = largest == 0.0f ? 1.0f : sqrtf(largest);
    constexpr float kHuge = 3e38f;
    const float most = largest_of(shared, largest == 0.0f ? 0.0f : norm, sample.channel);
    const float least = -largest_of(shared, largest == 0.0f ? -kHuge : -norm, sample.channel);
    kept = most > 0.0f && most >= threshold * least;
    return norm;
}

/// (sum K^2 / sum q^2)^(1/4); 0 where one of the two is silent.
__device__ inline float imbalance(const ChannelSample& sample, float centre, float query_power) {
    double power = 0.0;
    for (int token = 0; token < sample.tokens; ++token) {
        const double key = sample.at(true, token) - centre;
        power += key * key;
    }
    const double least = double{kSmallestMagnitude} * double{kSmallestMagnitude} * sample.tokens;
    if (!(power >= least && query_power > 0.0f)) return 0.0f;
    return static_cast<float>(sqrt(sqrt(power / double{query_power})));
}

__device__ inline float balanced_norm(CalibrationShared& shared, const ChannelSample& sample,
                                      float centre, float query_power, bool exists, bool& kept) {
    const float ratio = exists ? imbalance(sample, centre, query_power) : 0.0f;
    const float middle = median(shared, ratio, sample.channel, sample.head_dim);
    const float norm = ratio > 0.0f ? shrunk(ratio / middle) : 1.0f;
    kept = __syncthreads_or(exists && norm != 1.0f) != 0;
    return norm;
}

/// Without queries: outliers come down to the bound (norms_from_magnitudes).
__device__ inline float outlier_norm(CalibrationShared& shared, const ChannelSample& sample,
                                     float centre, bool exists, bool& kept) {
    const float largest = exists ? magnitude(sample, centre) : 0.0f;
    const float middle = median(shared, largest, sample.channel, sample.head_dim);
    const float bound = middle > 0.0f ? kOutlier * middle : kLargestF16;
    const float norm = fminf(fmaxf(largest / bound, 1.0f), kLargestF16);
    kept = __syncthreads_or(exists && norm != 1.0f) != 0;
    return norm;
}

/// Of one KV head of a slot, from the calibration tokens, into the slot's arrays. All threads call it.
__device__ inline void calibrate_head(CalibrationShared& shared, const LayerParams& layer,
                                      const SlotState& slot, const ChannelSample& sample,
                                      int head) {
    const bool exists = sample.channel < sample.head_dim;
    const int at = head * sample.head_dim + sample.channel;
    if (slot.value_centre != nullptr && exists) slot.value_centre[at] = sample.mean(false);
    if (slot.norm == nullptr) return;
    const float centre = layer.centre != 0 && exists ? sample.mean(true) : 0.0f;
    bool kept = true;
    float norm = 1.0f;
    if (layer.norm == KeyNormPolicy::prefill)
        norm = prefill_norm(shared, sample, centre, layer.norm_threshold, exists, kept);
    else if (slot.has_queries != 0)
        norm = balanced_norm(shared, sample, centre,
                             exists ? slot.query_power[slot.query_buffer][at] : 0.0f, exists, kept);
    else
        norm = outlier_norm(shared, sample, centre, exists, kept);
    if (exists) slot.norm[at] = kept ? norm : 1.0f;
    if (sample.channel == 0) slot.has_norm[head] = kept ? 1 : 0;
}

} // namespace innerkv::cuda
