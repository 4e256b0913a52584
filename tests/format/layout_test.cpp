// SPDX-License-Identifier: Apache-2.0
// The bits of a block against a second implementation, written from the specification in format.h.
#include <algorithm>
#include <cstring>

#include <gtest/gtest.h>

#include "codecs.h"

namespace innerkv::test {
namespace {

using Block = std::vector<std::byte>;

/// Word and bit, inside a byte, of bit `bit` of a code of quad k in tile t.
struct Place {
    int word;
    int bit;
};

Place place_of_bit(int bits, int k, int t, int bit) {
    switch (bits) {
    case 8:
        return {4 * k + t, bit};
    case 4:
        return {2 * k + t / 2, 4 * (t % 2) + bit};
    case 2:
        return {k, 2 * t + bit};
    default:
        break;
    }
    const int p = k / 2;
    const int a = 3 * p;
    const int b = 3 * p + 1;
    const int c = 3 * p + 2;
    const int e = k % 2 == 0 ? a : b;
    const int o = k % 2 == 0 ? 0 : 4;
    if (t == 0) return {e, bit};
    if (t == 1) return {e, 3 + bit};
    if (t == 2) return {c, o + bit};
    return bit == 0 ? Place{c, o + 3} : Place{e, 6 + bit - 1};
}

void set_code(Block& block, int bits, int tile, int row, int inner, unsigned code) {
    for (int bit = 0; bit < bits; ++bit) {
        const Place place = place_of_bit(bits, inner / 4, tile, bit);
        const int offset = (16 * place.word + row) * 4 + inner % 4;
        std::byte& byte = block[static_cast<std::size_t>(offset)];
        byte &= ~(std::byte{1} << place.bit);
        byte |= std::byte(code >> bit & 1) << place.bit;
    }
}

void set_half(Block& block, std::size_t offset, int element, std::uint16_t value) {
    offset += 2 * static_cast<std::size_t>(element);
    block[offset] = static_cast<std::byte>(value & 0xff);
    block[offset + 1] = static_cast<std::byte>(value >> 8);
}

Block random_block(Codec codec, std::mt19937& random) {
    Block block(codec.block_bytes());
    for (std::byte& byte : block) byte = static_cast<std::byte>(random());
    return block;
}

TEST(Layout, EveryBitOfABlockBelongsToOneCode) {
    for (int bits : kBits) {
        std::vector<int> owners(static_cast<std::size_t>(2048 * bits));
        for (int tile = 0; tile < 4; ++tile)
            for (int row = 0; row < 16; ++row)
                for (int inner = 0; inner < 32; ++inner)
                    for (int bit = 0; bit < bits; ++bit) {
                        const Place place = place_of_bit(bits, inner / 4, tile, bit);
                        const int offset = (16 * place.word + row) * 4 + inner % 4;
                        ++owners.at(static_cast<std::size_t>(8 * offset + place.bit));
                    }
        EXPECT_EQ(std::count(owners.begin(), owners.end(), 1), 2048 * bits);
    }
}

/// Every code passes through every position: element i of the n-th group holds n + 37 i.
TEST(Layout, EveryCodeAtEveryPosition) {
    std::mt19937 random(1);
    for (Codec codec : all_codecs()) {
        SCOPED_TRACE(name_of(codec));
        const unsigned levels = 1u << codec.bits;
        Block block = random_block(codec, random);
        for (int tile = 0; tile < kTilesPerBlock; ++tile)
            for (int row = 0; row < kTileRows; ++row)
                for (unsigned n = 0; n < levels; ++n) {
                    QuantizedGroup group{};
                    const bool bytes = codec.kind == CodecKind::affine;
                    const unsigned mask = bytes ? 0xff : 0xffff;
                    group.scale = static_cast<std::uint16_t>(random() & mask);
                    group.zero_point =
                        codec.has_zero_points() ? static_cast<std::uint16_t>(random() & mask) : 0;
                    Block expected = block;
                    for (int i = 0; i < kGroupSize; ++i) {
                        const unsigned code = (n + 37u * static_cast<unsigned>(i)) % levels;
                        group.codes[i] = static_cast<std::uint8_t>(code);
                        set_code(expected, codec.bits, tile, row, i, code);
                    }
                    const std::size_t scales = std::size_t{256} * codec.bits;
                    if (bytes) {
                        const auto at = scales + static_cast<std::size_t>(16 * tile + row);
                        expected[at] = static_cast<std::byte>(group.scale);
                        expected[at + 64] = static_cast<std::byte>(group.zero_point);
                    } else {
                        set_half(expected, scales, 16 * tile + row, group.scale);
                        if (codec.kind != CodecKind::symmetric)
                            set_half(expected, scales + 128, 16 * tile + row, group.zero_point);
                    }

                    store_group(codec, block.data(), tile, row, group);
                    ASSERT_EQ(block, expected) << tile << ' ' << row << ' ' << n;
                    const QuantizedGroup loaded = load_group(codec, block.data(), tile, row);
                    ASSERT_EQ(std::memcmp(&loaded, &group, sizeof group), 0);
                }
    }
}

/// The sequence that docs/format.md counts: three words of 3-bit codes become eight quads in 13
/// operations, each quad at bit 0 or bit 3.
TEST(Layout, ThirteenOperationsExpandThreeWords) {
    std::mt19937 random(4);
    const Codec codec = symmetric(3);
    const Block block = random_block(codec, random);
    const auto word = [&](int w, int row) {
        std::uint32_t value;
        std::memcpy(&value, block.data() + (16 * w + row) * 4, sizeof value);
        return value;
    };
    for (int p = 0; p < kQuadsPerTile / 2; ++p)
        for (int row = 0; row < kTileRows; ++row) {
            const std::uint32_t a = word(3 * p, row);
            const std::uint32_t b = word(3 * p + 1, row);
            const std::uint32_t c = word(3 * p + 2, row);
            const std::uint32_t d = c >> 4; // shared
            const auto select = [](std::uint32_t mask, std::uint32_t x, std::uint32_t y) {
                return (x & mask) | (y & ~mask); // one vpternlogd or LOP3
            };
            const std::uint32_t low = 0x07070707;
            const std::uint32_t high = 0x38383838;
            const std::uint32_t upper = 0x30303030;
            const std::uint32_t quads[2][kTilesPerBlock] = {
                {a & low, a & high, c & low, select(upper, a >> 2, c) & high},
                {b & low, b & high, d & low, select(upper, b >> 2, d) & high}};
            const int position[] = {0, 3, 0, 3};
            for (int t = 0; t < kTilesPerBlock; ++t) {
                const QuantizedGroup group = load_group(codec, block.data(), t, row);
                for (int i = 0; i < 8; ++i) {
                    const std::uint32_t byte = quads[i / 4][t] >> (8 * (i % 4)) & 0xff;
                    ASSERT_EQ(byte, unsigned{group.codes[8 * p + i]} << position[t]);
                }
            }
        }
}

/// Any bytes are a page: reading one by whole words gives what reading it group by group gives.
TEST(Layout, RandomBytesReadAlikeByPageAndByGroup) {
    std::mt19937 random(2);
    for (Codec codec : all_codecs()) {
        SCOPED_TRACE(name_of(codec));
        const PageFormat format{codec, codec, 64};
        Block page = random_block(codec, random);
        const Block v_block = random_block(codec, random);
        page.insert(page.end(), v_block.begin(), v_block.end());
        std::vector<float> k(32 * 64);
        std::vector<float> v(32 * 64);
        dequantize_page(format, page.data(), k.data(), 64, v.data(), 64);
        for (int tile = 0; tile < kTilesPerBlock; ++tile)
            for (int row = 0; row < kTileRows; ++row) {
                Group k_group;
                Group v_group;
                dequantize_group(codec, load_group(codec, page.data(), tile, row), k_group);
                dequantize_group(codec, load_group(codec, v_block.data(), tile, row), v_group);
                for (int i = 0; i < kGroupSize; ++i) {
                    const int k_token = tile % 2 * 16 + row;
                    const int k_channel = tile / 2 * 32 + i;
                    const float from_k = k[static_cast<std::size_t>(k_token * 64 + k_channel)];
                    const float from_v = v[static_cast<std::size_t>(i * 64 + tile * 16 + row)];
                    const auto index = static_cast<std::size_t>(i);
                    if (std::isfinite(k_group[index])) {
                        ASSERT_EQ(from_k, k_group[index]);
                    } else {
                        ASSERT_FALSE(std::isfinite(from_k));
                    }
                    if (std::isfinite(v_group[index])) {
                        ASSERT_EQ(from_v, v_group[index]);
                    } else {
                        ASSERT_FALSE(std::isfinite(from_v));
                    }
                }
            }
    }
}

} // namespace
} // namespace innerkv::test
