// SPDX-License-Identifier: Apache-2.0
// Codecs against vectors that the InnerQ authors' own code made; tests/data/golden/README.md has the
// schema.
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "codecs.h"

namespace innerkv::test {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

fs::path golden_folder() {
    if (const char* folder = std::getenv("INNERKV_GOLDEN")) return folder;
    return fs::path(INNERKV_SOURCE_DIR) / "tests/data/golden";
}

std::vector<fs::path> golden_files() {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(golden_folder()))
        if (entry.path().extension() == ".json") files.push_back(entry.path());
    return files;
}

/// One case, with its arrays as vectors. Group g consists of elements index(g, 0..31).
struct GoldenCase {
    explicit GoldenCase(const Json& json)
        : name(json.at("name")), mode(json.at("mode")),
          along_channels(json.at("axis") == "channel"), columns(json.at("shape").at(1)),
          input(json.at("input_f16_bits")), dequantized(json.at("dequantized")),
          scales(json.value("scales", std::vector<float>{})),
          zero_points(json.value("zero_points", std::vector<float>{})),
          codes(json.value("codes", std::vector<int>{})),
          symmetric_chosen(json.value("symmetric_chosen", std::vector<int>{})) {
        const int bits = json.at("bits");
        codec = mode == "symmetric"    ? symmetric(bits)
                : mode == "asymmetric" ? asymmetric(bits)
                                       : hybrid(bits);
        options.hybrid_asymmetric_bits = json.value("asymmetric_bits", 0);
        EXPECT_EQ(json.at("group"), kGroupSize);
    }

    std::size_t groups() const { return input.size() / kGroupSize; }
    std::size_t index(std::size_t group, std::size_t i) const {
        if (along_channels) return group * kGroupSize + i;
        return (group / columns * kGroupSize + i) * columns + group % columns;
    }
    Group values(std::size_t group) const {
        Group result;
        for (std::size_t i = 0; i < result.size(); ++i)
            result[i] = float_from_f16(input[index(group, i)]);
        return result;
    }

    std::string name;
    std::string mode;
    bool along_channels;
    std::size_t columns;
    std::vector<std::uint16_t> input;
    std::vector<float> dequantized;
    std::vector<float> scales;
    std::vector<float> zero_points;
    std::vector<int> codes;
    std::vector<int> symmetric_chosen;
    Codec codec;
    QuantizeOptions options;
};

template <class Check>
void for_each_case(Check check) {
    int cases = 0;
    for (const fs::path& file : golden_files()) {
        std::ifstream stream(file);
        for (const Json& json : Json::parse(stream)) {
            const GoldenCase golden(json);
            SCOPED_TRACE(file.filename().string() + ": " + golden.name);
            check(golden);
            ++cases;
        }
    }
    EXPECT_GE(cases, 6) << "in " << golden_folder();
}

/// How far x / s is from the nearest boundary between two levels.
float distance_to_boundary(float level) { return std::abs(level - std::floor(level) - 0.5f); }

TEST(Golden, Fp32ScalesAndCodes) {
    for_each_case([](const GoldenCase& golden) {
        if (golden.mode == "hybrid") return;
        ASSERT_EQ(golden.scales.size(), golden.groups());
        ASSERT_EQ(golden.codes.size(), golden.input.size());
        const bool asymmetric = golden.mode == "asymmetric";
        int differing = 0;
        for (std::size_t g = 0; g < golden.groups(); ++g) {
            const Group values = golden.values(g);
            const UnroundedGroup group =
                quantize_group_unrounded(golden.codec, values, golden.options);
            ASSERT_FLOAT_EQ(group.scale, golden.scales[g]);
            if (asymmetric) {
                ASSERT_EQ(group.zero_point, golden.zero_points[g]);
            }
            for (std::size_t i = 0; i < values.size(); ++i) {
                const int code = group.codes[i] - (asymmetric ? 0 : golden.codec.bias());
                const int expected = golden.codes[golden.index(g, i)];
                if (code == expected) continue;
                ++differing;
                ASSERT_EQ(std::abs(code - expected), 1);
                ASSERT_LT(distance_to_boundary((values[i] - group.zero_point) / group.scale),
                          0.002f);
            }
        }
        EXPECT_LE(differing, static_cast<int>(golden.input.size() / 1000));
    });
}

TEST(Golden, HybridBranches) {
    int checked = 0;
    for_each_case([&](const GoldenCase& golden) {
        if (golden.mode != "hybrid") return;
        ASSERT_EQ(golden.symmetric_chosen.size(), golden.groups());
        for (std::size_t g = 0; g < golden.groups(); ++g, ++checked) {
            const UnroundedGroup group =
                quantize_group_unrounded(golden.codec, golden.values(g), golden.options);
            ASSERT_EQ(!group.asymmetric, golden.symmetric_chosen[g] == 1) << "group " << g;
            for (std::size_t i = 0; i < kGroupSize; ++i) {
                const float level = static_cast<float>(
                    group.codes[i] - (group.asymmetric ? 0 : golden.codec.bias()));
                ASSERT_NEAR(group.scale * level + group.zero_point,
                            golden.dequantized[golden.index(g, i)], 1e-5f * group.scale);
            }
        }
    });
    EXPECT_GT(checked, 0);
}

/// Pages hold fp16 scales. Rounding one moves level n by n * s * 2^-11 (or n * 2^-25, where it is a
/// denormal), which may also carry an element that lies so close to a boundary over it.
TEST(Golden, Fp16ScalesStayWithinTheirRounding) {
    for_each_case([](const GoldenCase& golden) {
        for (std::size_t g = 0; g < golden.groups(); ++g) {
            const Group values = golden.values(g);
            const QuantizedGroup group = quantize_group(golden.codec, values, golden.options);
            const UnroundedGroup unrounded =
                quantize_group_unrounded(golden.codec, values, golden.options);
            const bool marked = golden.codec.kind == CodecKind::hybrid && group.scale & 0x8000;
            if (golden.mode == "hybrid") {
                ASSERT_EQ(marked, golden.symmetric_chosen[g] == 0);
            }
            const float step = std::max(unrounded.scale * 0x1p-11f, 0x1p-25f);
            Group result;
            dequantize_group(golden.codec, group, result);
            for (std::size_t i = 0; i < values.size(); ++i) {
                const float expected = golden.dequantized[golden.index(g, i)];
                const float level = (values[i] - unrounded.zero_point) / unrounded.scale;
                const float shift = (std::abs(level) + 1.0f) * step;
                const bool may_cross = distance_to_boundary(level) * unrounded.scale <= shift;
                const float bound = shift + (may_cross ? unrounded.scale : 0.0f);
                ASSERT_NEAR(result[i], expected, bound * 1.001f) << values[i];
            }
        }
    });
}

} // namespace
} // namespace innerkv::test
