// SPDX-License-Identifier: Apache-2.0
// Like TurboQuant (arXiv 2504.19874), the variant for squared error: a row of a random rotation of the unit
// sphere has coordinates that are nearly normal, so one quantizer of that distribution serves them all.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <random>

#include "codecs.h"
#include "innerkv/codec.h"

namespace innerkv::runner::simulated {
namespace {

constexpr int kLargestHeadDim = 256;
constexpr std::uint32_t kSeed = 20250428;
constexpr int kMostIterations = 100000;

double density(double x) {
    return std::isinf(x) ? 0.0 : std::exp(-0.5 * x * x) / std::sqrt(2.0 * std::numbers::pi);
}

double distribution(double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); }

/// The mean of a standard normal variable between two bounds.
double centroid(double low, double high) {
    return (density(low) - density(high)) / (distribution(high) - distribution(low));
}

std::vector<float> random_signs() {
    std::mt19937 random(kSeed);
    std::vector<float> signs(kLargestHeadDim);
    for (float& sign : signs) {
        sign = (random() & 1u) != 0 ? 1.0f : -1.0f;
    }
    return signs;
}

class Turbo final : public Codec {
public:
    explicit Turbo(int bits) : bits_(bits), signs_(random_signs()) {
        for (const double level : normal_levels(bits)) {
            levels_.push_back(static_cast<float>(level));
        }
        for (std::size_t i = 0; i + 1 < levels_.size(); ++i) {
            bounds_.push_back(0.5f * (levels_[i] + levels_[i + 1]));
        }
    }

    void check(int /*head_dim*/) const override {}

    void round(std::span<float> rows, int head_dim) const override {
        const auto channels = static_cast<std::size_t>(head_dim);
        for (std::size_t first = 0; first < rows.size(); first += channels) {
            round_row(rows.subspan(first, channels));
        }
    }

    double bits(int head_dim) const override { return bits_ + 16.0 / head_dim; }

private:
    void round_row(std::span<float> row) const {
        double square = 0.0;
        for (const float value : row) {
            square += double{value} * double{value};
        }
        const auto dim = static_cast<int>(row.size());
        const auto norm = static_cast<float>(std::sqrt(square));
        const float stored = rounded_to_f16(std::min(norm, kLargestF16));
        if (stored == 0.0f) {
            std::fill(row.begin(), row.end(), 0.0f);
            return;
        }
        const float deviation = std::sqrt(static_cast<float>(dim));
        flip(row);
        hadamard(row, dim & -dim);
        for (float& value : row) {
            value = level(value / norm * deviation) * stored / deviation;
        }
        hadamard(row, dim & -dim);
        flip(row);
    }

    void flip(std::span<float> row) const {
        for (std::size_t i = 0; i < row.size(); ++i) {
            row[i] *= signs_[i];
        }
    }

    float level(float value) const {
        const auto bound = std::upper_bound(bounds_.begin(), bounds_.end(), std::abs(value));
        const float magnitude = levels_[static_cast<std::size_t>(bound - bounds_.begin())];
        return value < 0.0f ? -magnitude : magnitude;
    }

    int bits_;
    std::vector<float> signs_;  ///< [kLargestHeadDim]
    std::vector<float> levels_; ///< the positive ones
    std::vector<float> bounds_; ///< between them
};

} // namespace

std::vector<double> normal_levels(int bits) {
    std::vector<double> levels(std::size_t{1} << (bits - 1));
    for (std::size_t i = 0; i < levels.size(); ++i) {
        levels[i] = 4.0 * (static_cast<double>(i) + 0.5) / static_cast<double>(levels.size());
    }
    // Lloyd's iteration: a level is the mean of what is nearest to it.
    for (int iteration = 0; iteration < kMostIterations; ++iteration) {
        double moved = 0.0;
        double low = 0.0;
        for (std::size_t i = 0; i < levels.size(); ++i) {
            const double high = i + 1 < levels.size() ? 0.5 * (levels[i] + levels[i + 1])
                                                      : std::numeric_limits<double>::infinity();
            const double mean = centroid(low, high);
            moved = std::max(moved, std::abs(mean - levels[i]));
            levels[i] = mean;
            low = high;
        }
        if (moved < 1e-12) {
            break;
        }
    }
    return levels;
}

CodecPtr turbo_codec(int bits) { return std::make_shared<Turbo>(bits); }

} // namespace innerkv::runner::simulated
