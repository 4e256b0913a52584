// SPDX-License-Identifier: Apache-2.0
// Functions that are compiled for several register widths give the same bits in all of them.
#include <algorithm>
#include <array>
#include <cstring>
#include <random>

#include <gtest/gtest.h>

#include "codecs.h"
#include "format/tile.h"

namespace innerkv {

bool baseline_quantize_tile(Codec codec, const TileValues& values, Tile& tile);
bool avx2_quantize_tile(Codec codec, const TileValues& values, Tile& tile);
bool avx512_quantize_tile(Codec codec, const TileValues& values, Tile& tile);
void baseline_hadamard(float* row, int padded_dim);
void avx2_hadamard(float* row, int padded_dim);
void avx512_hadamard(float* row, int padded_dim);

namespace test {
namespace {

bool has_avx2() { return __builtin_cpu_supports("avx2"); }
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

/// Gaussian values, scaled from row to row down to nothing, and rows of ties.
void fill(std::mt19937& random, TileValues& values) {
    std::normal_distribution<float> normal;
    std::uniform_int_distribution<int> exponents(-24, 12);
    std::uniform_int_distribution<int> kinds(0, 3);
    for (int row = 0; row < kTileRows; ++row) {
        const float scale = std::ldexp(1.0f, exponents(random));
        const int kind = kinds(random);
        for (auto& inner : values) {
            const float value = normal(random);
            inner[row] = kind == 0   ? std::round(4.0f * value) * scale
                         : kind == 1 ? (value + 3.0f) * scale
                                     : value * scale;
        }
    }
}

TEST(Clones, QuantizeTheSameBits) {
    std::mt19937 random(1);
    TileValues values;
    for (int draw = 0; draw < 300; ++draw) {
        fill(random, values);
        for (const Codec codec : all_codecs()) {
            SCOPED_TRACE(name_of(codec));
            Tile expected{};
            Tile tile{};
            ASSERT_TRUE(baseline_quantize_tile(codec, values, expected));
            if (has_avx2()) {
                ASSERT_TRUE(avx2_quantize_tile(codec, values, tile));
                ASSERT_EQ(std::memcmp(&tile, &expected, sizeof tile), 0) << "avx2";
            }
            if (has_avx512()) {
                ASSERT_TRUE(avx512_quantize_tile(codec, values, tile));
                ASSERT_EQ(std::memcmp(&tile, &expected, sizeof tile), 0) << "avx512";
            }
        }
    }
}

TEST(Clones, RotateToTheSameBits) {
    std::mt19937 random(2);
    std::normal_distribution<float> normal;
    for (const int dim : {64, 128, 192, 256}) {
        for (int draw = 0; draw < 100; ++draw) {
            float row[256];
            for (float& value : row) value = normal(random);
            const auto rotated = [&](void (*hadamard)(float*, int)) {
                std::array<float, 256> copy;
                std::copy_n(row, 256, copy.begin());
                hadamard(copy.data(), dim);
                return copy;
            };
            const auto expected = rotated(baseline_hadamard);
            if (has_avx2()) {
                EXPECT_EQ(rotated(avx2_hadamard), expected) << dim;
            }
            if (has_avx512()) {
                EXPECT_EQ(rotated(avx512_hadamard), expected) << dim;
            }
        }
    }
}

} // namespace
} // namespace test
} // namespace innerkv
