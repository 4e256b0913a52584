// SPDX-License-Identifier: Apache-2.0
#include "transform/transform.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <random>
#include <vector>

namespace innerkv {
namespace {

/// Norm, centre and value centre with storage.
struct OwnedTransform {
    OwnedTransform(int head_dim, std::mt19937& random) {
        std::uniform_real_distribution<float> positive(0.2f, 5.0f);
        std::uniform_real_distribution<float> any(-3.0f, 3.0f);
        for (int c = 0; c < head_dim; ++c) {
            norm.push_back(positive(random));
            centre.push_back(any(random));
            value_centre.push_back(any(random));
        }
    }
    /// Bits of `steps`: norm, centre, value centre, rotation.
    KeyTransform with(int steps) const {
        return {(steps & 1) != 0 ? norm.data() : nullptr,
                (steps & 2) != 0 ? centre.data() : nullptr,
                (steps & 4) != 0 ? value_centre.data() : nullptr, (steps & 8) != 0};
    }
    std::vector<float> norm, centre, value_centre;
};

std::vector<float> random_row(int size, std::mt19937& random, float range = 8.0f) {
    std::uniform_real_distribution<float> value(-range, range);
    std::vector<float> row(static_cast<std::size_t>(size));
    for (float& x : row) x = value(random);
    return row;
}

double dot(const std::vector<float>& a, const std::vector<float>& b) {
    double sum = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i)
        sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    return sum;
}

class Transform : public testing::TestWithParam<int> {
protected:
    int head_dim() const { return GetParam(); }
    int padded_dim() const { return transformed_dim(GetParam()); }
    std::vector<float> padded() const {
        return std::vector<float>(static_cast<std::size_t>(padded_dim()), NAN);
    }
    std::mt19937 random_{7};
};

TEST_P(Transform, HadamardIsTheSylvesterMatrixOnTheLargestPowerOfTwoBlocks) {
    const int block = padded_dim() == 192 ? 64 : padded_dim();
    const std::vector<float> in = random_row(padded_dim(), random_);
    std::vector<float> out = in;
    hadamard(out.data(), padded_dim());
    for (int r = 0; r < padded_dim(); ++r) {
        const int start = r / block * block;
        double expected = 0.0;
        for (int c = 0; c < block; ++c) {
            const auto bits = static_cast<unsigned>((r - start) & c);
            const double value = static_cast<double>(in[static_cast<std::size_t>(start + c)]);
            expected += std::popcount(bits) % 2 == 0 ? value : -value;
        }
        EXPECT_NEAR(static_cast<double>(out[static_cast<std::size_t>(r)]),
                    expected / std::sqrt(static_cast<double>(block)), 1e-4);
    }
}

TEST_P(Transform, EveryCombinationOfStepsIsUndone) {
    const OwnedTransform owned(head_dim(), random_);
    for (int steps = 0; steps < 16; ++steps) {
        const KeyTransform transform = owned.with(steps);
        const std::vector<float> row = random_row(head_dim(), random_);
        std::vector<float> transformed = padded();
        std::vector<float> back(row.size(), NAN);
        transform_key_row(transform, head_dim(), row.data(), transformed.data());
        inverse_transform_key_row(transform, head_dim(), transformed.data(), back.data());
        for (std::size_t c = 0; c < row.size(); ++c) EXPECT_NEAR(back[c], row[c], 1e-4f);
        transformed = padded();
        transform_value_row(transform, head_dim(), row.data(), transformed.data());
        inverse_transform_value_row(transform, head_dim(), transformed.data(), back.data());
        for (std::size_t c = 0; c < row.size(); ++c) EXPECT_NEAR(back[c], row[c], 1e-4f);
    }
}

TEST_P(Transform, LogitsAreKept) {
    const OwnedTransform owned(head_dim(), random_);
    for (int steps = 0; steps < 16; ++steps) {
        const KeyTransform transform = owned.with(steps);
        const std::vector<float> key = random_row(head_dim(), random_);
        const std::vector<float> query = random_row(head_dim(), random_);
        std::vector<float> key_row = padded();
        std::vector<float> query_row = padded();
        transform_key_row(transform, head_dim(), key.data(), key_row.data());
        transform_query_row(transform, head_dim(), query.data(), query_row.data());
        const double centre =
            static_cast<double>(key_centre_logit(transform, head_dim(), query.data()));
        EXPECT_NEAR(dot(query_row, key_row) + centre, dot(query, key), 2e-2) << steps;
    }
}

TEST_P(Transform, CentreIsSubtractedBeforeTheNormDivides) {
    std::vector<float> norm(static_cast<std::size_t>(head_dim()), 4.0f);
    std::vector<float> centre(norm.size(), 2.0f);
    const KeyTransform transform{norm.data(), centre.data(), nullptr, false};
    const std::vector<float> row(norm.size(), 10.0f);
    std::vector<float> out = padded();
    transform_key_row(transform, head_dim(), row.data(), out.data());
    for (int c = 0; c < padded_dim(); ++c)
        EXPECT_EQ(out[static_cast<std::size_t>(c)], c < head_dim() ? 2.0f : 0.0f);
}

TEST_P(Transform, WhatLeavesFp16Saturates) {
    const std::vector<float> norm(static_cast<std::size_t>(head_dim()), 1e-3f);
    const std::vector<float> centre(norm.size(), -60000.0f);
    for (const bool rotate : {false, true}) {
        const KeyTransform transform{norm.data(), centre.data(), centre.data(), rotate};
        const std::vector<float> row(norm.size(), 65504.0f);
        std::vector<float> out = padded();
        transform_key_row(transform, head_dim(), row.data(), out.data());
        EXPECT_EQ(out[0], kLargestF16);
        for (const float value : out) EXPECT_LE(std::abs(value), kLargestF16);
        transform_value_row(transform, head_dim(), row.data(), out.data());
        EXPECT_EQ(out[0], kLargestF16);
    }
}

INSTANTIATE_TEST_SUITE_P(HeadDims, Transform, testing::ValuesIn(kHeadDims));

} // namespace
} // namespace innerkv
