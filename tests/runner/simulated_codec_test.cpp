// SPDX-License-Identifier: Apache-2.0
// Codecs of simulated caches: ggml's against ggml itself, the others by hand and by what is known of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <random>

#include "ggml.h"
#include "innerkv/codec.h"
#include "innerkv/error.h"
#include "runner/simulated/codecs.h"

namespace innerkv::runner::simulated::test {
namespace {

using Row = std::vector<float>;

ggml_type ggml_type_of(std::string_view name) {
    int type = 0;
    while (type < GGML_TYPE_COUNT && (!ggml_type_name(static_cast<ggml_type>(type)) ||
                                      name != ggml_type_name(static_cast<ggml_type>(type)))) {
        ++type;
    }
    return static_cast<ggml_type>(type);
}

/// What ggml itself stores and gives back.
Row through_ggml(ggml_type type, const Row& row) {
    const auto count = static_cast<std::int64_t>(row.size());
    std::vector<std::byte> stored(ggml_row_size(type, count));
    ggml_quantize_chunk(type, row.data(), stored.data(), 0, 1, count, nullptr);
    Row back(row.size());
    ggml_get_type_traits(type)->to_float(stored.data(), back.data(), count);
    return back;
}

Row rounded(const Codec& codec, Row rows, int head_dim) {
    codec.round(rows, head_dim);
    return rows;
}

Row random_row(std::size_t count, float deviation, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0f, deviation);
    Row row(count);
    std::generate(row.begin(), row.end(), [&] { return normal(random); });
    return row;
}

/// Rows that take every path: spread, outliers of either sign, ties of the largest magnitude, constants,
/// zeros, values whose scale is a denormal of fp16 or nothing at all.
std::vector<Row> difficult_rows() {
    std::vector<Row> rows;
    for (const float deviation : {1.0f, 1e-3f, 300.0f, 1e-6f, 1e-12f, 1e-41f}) {
        for (unsigned seed = 0; seed < 50; ++seed) {
            rows.push_back(random_row(256, deviation, seed));
            rows.push_back(rows.back());
            rows.back()[seed] *= 40.0f;
        }
    }
    Row tie(256, 0.25f);
    tie[3] = -2.0f;
    tie[9] = 2.0f;
    rows.push_back(tie);
    std::swap(tie[3], tie[9]);
    rows.push_back(tie);
    rows.emplace_back(256, -1.5f);
    rows.emplace_back(256, 0.0f);
    Row steps(256);
    std::iota(steps.begin(), steps.end(), -128.0f); // codes half way between levels
    rows.push_back(steps);
    return rows;
}

class BlockTest : public testing::TestWithParam<BlockType> {};

TEST_P(BlockTest, SameBitsAsGgml) {
    const ggml_type type = ggml_type_of(GetParam().name);
    ASSERT_LT(type, GGML_TYPE_COUNT);
    const CodecPtr codec = block_codec(GetParam());
    for (const Row& row : difficult_rows()) {
        // magnitudes as keys and values have them: fp16 at most
        const Row expected = through_ggml(type, row);
        const Row actual = rounded(*codec, row, 64);
        for (std::size_t i = 0; i < row.size(); ++i) {
            ASSERT_EQ(actual[i], expected[i]) << "element " << i << " of " << row[i];
        }
    }
}

TEST_P(BlockTest, BitsAreThoseOfGgmlsBlocks) {
    const ggml_type type = ggml_type_of(GetParam().name);
    EXPECT_EQ(block_codec(GetParam())->bits(128), 8.0 * static_cast<double>(ggml_type_size(type)) /
                                                      static_cast<double>(ggml_blck_size(type)));
}

INSTANTIATE_TEST_SUITE_P(Types, BlockTest, testing::ValuesIn(block_types()),
                         [](const auto& test) { return std::string(test.param.name); });

/// H[i][j] = (-1)^(bits that i and j share) / sqrt(n), in blocks.
Row hadamard_product(const Row& row, std::size_t block) {
    Row out(row.size());
    for (std::size_t i = 0; i < row.size(); ++i) {
        double sum = 0.0;
        for (std::size_t j = i / block * block; j < i / block * block + block; ++j) {
            const bool negative = std::popcount((i % block) & (j % block)) % 2 == 1;
            sum += negative ? -double{row[j]} : double{row[j]};
        }
        out[i] = static_cast<float>(sum / std::sqrt(static_cast<double>(block)));
    }
    return out;
}

TEST(RotatedTest, MatrixQuantizationMatrix) {
    const BlockType q8 = block_types().front();
    const ggml_type type = ggml_type_of(q8.name);
    for (const auto& [head_dim, largest, block] : {std::tuple{64, true, 64u},
                                                   {128, true, 128u},
                                                   {192, true, 64u},
                                                   {256, true, 256u},
                                                   {128, false, 64u},
                                                   {256, false, 64u}}) {
        Row row = random_row(static_cast<std::size_t>(head_dim), 1.0f, 5);
        row[7] = 30.0f;
        const Row expected =
            hadamard_product(through_ggml(type, hadamard_product(row, block)), block);
        const Row actual = rounded(*rotated(block_codec(q8), largest), row, head_dim);
        double largest_error = 0.0;
        for (std::size_t i = 0; i < row.size(); ++i) {
            largest_error =
                std::max(largest_error, std::abs(double{actual[i]} - double{expected[i]}));
        }
        // A last bit of the rotation may move a code or two by a step of at most 30 / 127 / 8.
        EXPECT_LT(largest_error, 0.012) << head_dim << " in blocks of " << block;
    }
}

TEST(InterleavedTest, BlocksHoldPairs) {
    constexpr std::size_t kDim = 64;
    const BlockType q4 = block_types().back();
    const Row row = random_row(kDim, 1.0f, 9);
    Row woven(kDim);
    for (std::size_t i = 0; i < kDim; ++i) {
        woven[i] = row[i / 2 + (i % 2) * kDim / 2];
    }
    const Row expected = through_ggml(ggml_type_of(q4.name), woven);
    const Row actual = rounded(*interleaved(block_codec(q4)), row, kDim);
    for (std::size_t i = 0; i < kDim; ++i) {
        EXPECT_EQ(actual[i / 2 + (i % 2) * kDim / 2], expected[i]);
    }
    EXPECT_NE(actual, rounded(*block_codec(q4), row, kDim));
}

/// 32 tokens of 2 channels: 0 .. 3 in one, -100 .. 200 in the other.
TEST(KiviTest, KeysHaveAScaleAChannel) {
    Row rows;
    for (int token = 0; token < 32; ++token) {
        const float value = token == 0 ? 0.0f : token == 1 ? 3.0f : 1.375f;
        rows.insert(rows.end(), {value, token == 2 ? 140.0f : 100.0f * value - 100.0f});
    }
    const Row result = rounded(*kivi_keys(2), rows, 2);
    // scale 1 and 100
    EXPECT_EQ((Row{result[0], result[2], result[4], result[6]}), (Row{0.0f, 3.0f, 1.0f, 1.0f}));
    EXPECT_EQ((Row{result[1], result[3], result[5], result[7]}),
              (Row{-100.0f, 200.0f, 100.0f, 0.0f}));
    // 15 steps of 0.2 rounded to fp16 (0x3266 = 0.199951171875)
    const Row finer = rounded(*kivi_keys(4), rows, 2);
    EXPECT_EQ(finer[2], 15 * 0.199951171875f);
    EXPECT_EQ(finer[4], 7 * 0.199951171875f);
}

TEST(KiviTest, ValuesHaveAScalePerGroupOfChannels) {
    Row row(64, 1.375f);
    row[0] = 0.0f;
    row[1] = 3.0f;
    row[32] = -100.0f;
    row[33] = 200.0f;
    row[34] = 151.0f;
    const Row result = rounded(*kivi_values(2), row, 64);
    EXPECT_EQ((Row{result[0], result[1], result[2]}), (Row{0.0f, 3.0f, 1.0f}));
    EXPECT_EQ((Row{result[32], result[33], result[34], result[35]}),
              (Row{-100.0f, 200.0f, 200.0f, 0.0f}));
}

TEST(KiviTest, ConstantGroupsStay) {
    const Row row(64, 0.375f);
    EXPECT_EQ(rounded(*kivi_values(2), row, 64), row);
    EXPECT_EQ(rounded(*kivi_keys(2), row, 2), row);
}

TEST(KiviTest, BitsHoldScaleAndMinimum) {
    EXPECT_EQ(kivi_keys(2)->bits(64), 3.0);
    EXPECT_EQ(kivi_values(4)->bits(128), 5.0);
    EXPECT_THROW(kivi_values(2)->check(80), InvalidArgument);
}

/// J. Max, Quantizing for minimum distortion, 1960, table I.
TEST(TurboTest, LevelsOfMax) {
    const std::vector<double> three = normal_levels(3);
    const std::vector<double> four = normal_levels(4);
    const double max_three[] = {0.2451, 0.7560, 1.344, 2.152};
    const double max_four[] = {0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733};
    ASSERT_EQ(three.size(), std::size(max_three));
    ASSERT_EQ(four.size(), std::size(max_four));
    for (std::size_t i = 0; i < three.size(); ++i) {
        EXPECT_NEAR(three[i], max_three[i], 6e-4);
    }
    for (std::size_t i = 0; i < four.size(); ++i) {
        EXPECT_NEAR(four[i], max_four[i], 6e-4);
    }
}

/// One channel alone becomes 64 coordinates of the same magnitude, 1 deviation: the level nearest to 1 is
/// left of it.
TEST(TurboTest, OneChannel) {
    const auto max_level = std::pair{3, 0.7560f};
    for (const auto& [bits, level] : {max_level, std::pair{4, 0.9424f}}) {
        Row row(64, 0.0f);
        row[21] = -2.0f;
        const Row result = rounded(*turbo_codec(bits), row, 64);
        EXPECT_NEAR(result[21], -2.0f * level, 2e-3);
        row[21] = 0.0f;
        Row others = result;
        others[21] = 0.0f;
        for (std::size_t i = 0; i < row.size(); ++i) {
            EXPECT_NEAR(others[i], 0.0f, 1e-5);
        }
    }
}

/// Max's table has the squared error of a normal variable: 0.03454 at 3 bits, 0.009497 at 4.
TEST(TurboTest, SquaredErrorOfAnyDistribution) {
    constexpr std::size_t kRows = 400;
    for (const auto& [bits, error] : {std::pair{3, 0.03454}, std::pair{4, 0.009497}}) {
        Row rows = random_row(128 * kRows, 1.0f, 11);
        for (std::size_t i = 0; i < rows.size(); i += 128) {
            rows[i + 5] *= 10.0f; // an outlier channel
            rows[i + 77] += 8.0f;
        }
        const Row result = rounded(*turbo_codec(bits), rows, 128);
        double wrong = 0.0;
        double all = 0.0;
        for (std::size_t i = 0; i < rows.size(); ++i) {
            wrong += std::pow(double{rows[i]} - double{result[i]}, 2);
            all += std::pow(double{rows[i]}, 2);
        }
        EXPECT_NEAR(wrong / all, error, 0.1 * error) << bits << " bits";
    }
}

TEST(TurboTest, NormsScaleAndCost) {
    const CodecPtr codec = turbo_codec(3);
    const Row row = random_row(64, 1.0f, 4);
    Row doubled = row;
    for (float& value : doubled) {
        value *= 2.0f;
    }
    const Row result = rounded(*codec, row, 64);
    const Row doubled_result = rounded(*codec, doubled, 64);
    for (std::size_t i = 0; i < row.size(); ++i) {
        EXPECT_EQ(doubled_result[i], 2.0f * result[i]);
    }
    EXPECT_EQ(rounded(*codec, Row(64, 0.0f), 64), Row(64, 0.0f));
    EXPECT_EQ(codec->bits(64), 3.25);
    EXPECT_EQ(codec->bits(128), 3.125);
}

} // namespace
} // namespace innerkv::runner::simulated::test
