// SPDX-License-Identifier: Apache-2.0
// Presets, sizes and what is refused; the tables of docs/format.md.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>

#include <gtest/gtest.h>

#include "codecs.h"
#include "innerkv/error.h"

namespace innerkv::test {
namespace {

TEST(Presets, NamesAreFoundAndUnique) {
    std::set<std::string_view> names;
    for (const Preset& preset : presets()) {
        EXPECT_TRUE(names.insert(preset.name).second) << preset.name;
        EXPECT_EQ(&find_preset(preset.name), &preset);
        EXPECT_FALSE(preset.summary.empty());
        EXPECT_EQ(preset.recent_tokens % kPageTokens, 0);
    }
    for (const char* name : {"base", "small", "hybrid", "k4v4", "k4v3", "k4v2", "k8v8", "f16"})
        EXPECT_TRUE(names.count(name)) << name;
}

TEST(Presets, UnknownNameListsWhatThereIs) {
    try {
        find_preset("tiny");
        FAIL() << "found";
    } catch (const InvalidArgument& error) {
        const std::string message = error.what();
        EXPECT_NE(message.find("'tiny'"), std::string::npos) << message;
        for (const Preset& preset : presets())
            EXPECT_NE(message.find(preset.name), std::string::npos) << message;
    }
}

TEST(LayerCodecs, MeanBitsPerValue) {
    EXPECT_EQ(mean_bits_per_value({}, 64), 0.0);
    const LayerCodecs layers[] = {{affine(3), affine(3)}, {affine(4), affine(2)}, {kF16, kF16}};
    EXPECT_EQ(mean_bits_per_value({layers, 2}, 128), 3.5);
    EXPECT_EQ(mean_bits_per_value(layers, 128), (3.5 + 3.5 + 16.0) / 3.0);
    EXPECT_EQ(mean_bits_per_value({layers, 1}, 80), 3.5 * 128 / 80); // padding counted
}

TEST(Codecs, KindsHaveNames) {
    const Codec codecs[] = {kF16, symmetric(3), asymmetric(3), hybrid(3), affine(3)};
    const char* names[] = {"f16", "symmetric", "asymmetric", "hybrid", "affine"};
    for (int i = 0; i < 5; ++i) EXPECT_EQ(kind_name(codecs[i].kind), names[i]);
}

TEST(Presets, BitsPerValueOfTheDesign) {
    const std::pair<const char*, double> expected[] = {
        {"base", 3.5}, {"small", 3.0}, {"hybrid", 3.25}, {"k4v4", 4.5},
        {"k4v3", 4.0}, {"k4v2", 3.5},  {"k8v8", 8.5},    {"f16", 16.0}};
    for (const auto& [name, bits] : expected)
        for (int head_dim : {64, 128, 192, 256}) // the others are padded
            EXPECT_EQ(find_preset(name).format(head_dim).bits_per_value(), bits) << name;
}

TEST(PageFormat, SizesFromTheSpecification) {
    for (Codec k : all_codecs())
        for (Codec v : all_codecs())
            for (int head_dim : kHeadDims) {
                const PageFormat format{k, v, head_dim};
                format.validate();
                const auto blocks = static_cast<std::size_t>((head_dim + 63) / 64);
                const auto side = [&](Codec codec) { // 32 * 64 codes, 64 scales, 64 zero-points
                    const bool one =
                        codec.kind == CodecKind::symmetric || codec.kind == CodecKind::affine;
                    const std::size_t arrays = one ? 1 : 2; // of fp16, or twice as many of bytes
                    return blocks * (32 * 64 * codec.bits / 8 + arrays * 64 * 2);
                };
                EXPECT_EQ(format.v_offset(), side(k));
                EXPECT_EQ(format.page_bytes(), side(k) + side(v));
                EXPECT_EQ(format.v_offset() % kPageAlignment, 0u);
                EXPECT_EQ(format.page_bytes() % kPageAlignment, 0u);
            }
    for (int head_dim : kHeadDims) {
        const PageFormat format{kF16, kF16, head_dim};
        format.validate();
        EXPECT_EQ(format.page_bytes(), std::size_t{32} * 2 * 2 * static_cast<unsigned>(head_dim));
        EXPECT_EQ(format.page_bytes() % kPageAlignment, 0u);
    }
}

TEST(PageFormat, HeadDimensionsRefused) {
    for (int head_dim = -64; head_dim <= 512; ++head_dim) {
        const bool supported =
            std::find(std::begin(kHeadDims), std::end(kHeadDims), head_dim) != std::end(kHeadDims);
        const PageFormat format{symmetric(3), symmetric(3), head_dim};
        if (supported)
            EXPECT_NO_THROW(format.validate()) << head_dim;
        else
            EXPECT_THROW(format.validate(), InvalidArgument) << head_dim;
    }
}

TEST(PageFormat, CodecsRefused) {
    for (int bits = 0; bits <= 16; ++bits) {
        const bool supported =
            std::find(std::begin(kBits), std::end(kBits), bits) != std::end(kBits);
        for (Codec codec : {symmetric(bits), asymmetric(bits), hybrid(bits)}) {
            const PageFormat as_k{codec, symmetric(3), 128};
            const PageFormat as_v{symmetric(3), codec, 128};
            if (supported) {
                EXPECT_NO_THROW(as_k.validate());
                EXPECT_NO_THROW(as_v.validate());
            } else {
                EXPECT_THROW(as_k.validate(), InvalidArgument) << bits;
                EXPECT_THROW(as_v.validate(), InvalidArgument) << bits;
            }
        }
    }
    EXPECT_THROW((PageFormat{kF16, symmetric(3), 128}.validate()), InvalidArgument);
    EXPECT_THROW((PageFormat{symmetric(3), kF16, 128}.validate()), InvalidArgument);
    EXPECT_THROW((PageFormat{Codec{CodecKind::f16, 8}, kF16, 128}.validate()), InvalidArgument);
}

/// A row of the table of docs/format.md: preset, then page bytes and bits per head dimension.
std::string table_row(const Preset& preset) {
    std::string row = "| `" + std::string(preset.name) + "` |";
    for (int head_dim : kHeadDims) {
        const PageFormat format = preset.format(head_dim);
        char cell[64];
        std::snprintf(cell, sizeof cell, " %zu (%.4g) |", format.page_bytes(),
                      format.bits_per_value());
        row += cell;
    }
    return row;
}

TEST(Documentation, TableOfPageSizes) {
    std::ifstream file(INNERKV_SOURCE_DIR "/docs/format.md");
    ASSERT_TRUE(file) << "docs/format.md is missing";
    std::stringstream text;
    text << file.rdbuf();
    for (const Preset& preset : presets())
        EXPECT_NE(text.str().find(table_row(preset) + "\n"), std::string::npos)
            << "docs/format.md lacks this row:\n"
            << table_row(preset);
}

} // namespace
} // namespace innerkv::test
