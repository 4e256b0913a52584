// SPDX-License-Identifier: Apache-2.0
// KIVI (arXiv 2402.02750).
#include <algorithm>
#include <cmath>
#include <string>

#include "codecs.h"
#include "innerkv/codec.h"
#include "innerkv/error.h"

namespace innerkv::runner::simulated {
namespace {

constexpr int kGroup = 32;

/// 32 values, `stride` elements apart: the minimum and the step are fp16, codes are computed under both.
void round_group(float* values, std::size_t stride, int bits) {
    float minimum = values[0];
    float maximum = values[0];
    for (std::size_t i = 1; i < kGroup; ++i) {
        minimum = std::min(minimum, values[i * stride]);
        maximum = std::max(maximum, values[i * stride]);
    }
    const auto highest = static_cast<float>((1 << bits) - 1);
    const float zero = rounded_to_f16(minimum);
    const float scale = rounded_to_f16((maximum - minimum) / highest);
    for (std::size_t i = 0; i < kGroup; ++i) {
        float& value = values[i * stride];
        const float code =
            scale > 0.0f ? std::nearbyint(std::clamp((value - zero) / scale, 0.0f, highest)) : 0.0f;
        value = code * scale + zero;
    }
}

class Keys final : public Codec {
public:
    explicit Keys(int bits) : bits_(bits) {}

    void check(int /*head_dim*/) const override {}

    void round(std::span<float> rows, int head_dim) const override {
        const auto channels = static_cast<std::size_t>(head_dim);
        for (std::size_t first = 0; first < rows.size(); first += kGroup * channels) {
            for (std::size_t channel = 0; channel < channels; ++channel) {
                round_group(&rows[first + channel], channels, bits_);
            }
        }
    }

    double bits(int /*head_dim*/) const override { return bits_ + 32.0 / kGroup; }

private:
    int bits_;
};

class Values final : public Codec {
public:
    explicit Values(int bits) : bits_(bits) {}

    void check(int head_dim) const override {
        if (head_dim % kGroup != 0) {
            throw InvalidArgument("KIVI's values have groups of " + std::to_string(kGroup) +
                                  " channels; a head dimension of " + std::to_string(head_dim) +
                                  " is not a multiple of that");
        }
    }

    void round(std::span<float> rows, int /*head_dim*/) const override {
        for (std::size_t first = 0; first < rows.size(); first += kGroup) {
            round_group(&rows[first], 1, bits_);
        }
    }

    double bits(int /*head_dim*/) const override { return bits_ + 32.0 / kGroup; }

private:
    int bits_;
};

} // namespace

CodecPtr kivi_keys(int bits) { return std::make_shared<Keys>(bits); }

CodecPtr kivi_values(int bits) { return std::make_shared<Values>(bits); }

} // namespace innerkv::runner::simulated
