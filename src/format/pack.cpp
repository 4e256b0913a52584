// SPDX-License-Identifier: Apache-2.0
// Codes of four tiles into the words of a block and back, whole words at a time: four codes per
// operation, as a kernel does it. layout.cpp says the same code by code.
#include <cstring>

#include "format/layout.h"
#include "format/tile.h"

namespace innerkv {
namespace {

using Words = std::uint32_t[kTileRows];
using Tiles = Tile[kTilesPerBlock];

constexpr std::size_t kWordBytes = sizeof(Words);

/// The same byte in all four bytes of a word.
constexpr std::uint32_t bytes(std::uint32_t byte) { return byte * 0x01010101u; }

void write_words(std::byte* block, int word, const Words& words) {
    std::memcpy(block + static_cast<std::size_t>(word) * kWordBytes, words, kWordBytes);
}

void read_words(const std::byte* block, int word, Words& words) {
    std::memcpy(words, block + static_cast<std::size_t>(word) * kWordBytes, kWordBytes);
}

void pack_2_bits(const Tiles& tiles, std::byte* block) {
    for (int k = 0; k < kQuadsPerTile; ++k) {
        Words words;
        for (int r = 0; r < kTileRows; ++r)
            words[r] = tiles[0].quads[k][r] | tiles[1].quads[k][r] << 2 |
                       tiles[2].quads[k][r] << 4 | tiles[3].quads[k][r] << 6;
        write_words(block, k, words);
    }
}

void pack_3_bits(const Tiles& tiles, std::byte* block) {
    for (int k = 0; k < kQuadsPerTile; k += 2) {
        Words shared = {};
        for (int odd = 0; odd < 2; ++odd) {
            Words words;
            for (int r = 0; r < kTileRows; ++r) {
                const std::uint32_t split = tiles[3].quads[k + odd][r];
                words[r] = tiles[0].quads[k + odd][r] | tiles[1].quads[k + odd][r] << 3 |
                           (split >> 1 & bytes(3)) << 6;
                shared[r] |= (tiles[2].quads[k + odd][r] | (split & bytes(1)) << 3) << (4 * odd);
            }
            write_words(block, k / 2 * 3 + odd, words);
        }
        write_words(block, k / 2 * 3 + 2, shared);
    }
}

void pack_4_bits(const Tiles& tiles, std::byte* block) {
    for (int k = 0; k < kQuadsPerTile; ++k)
        for (int pair = 0; pair < 2; ++pair) {
            Words words;
            for (int r = 0; r < kTileRows; ++r)
                words[r] = tiles[2 * pair].quads[k][r] | tiles[2 * pair + 1].quads[k][r] << 4;
            write_words(block, 2 * k + pair, words);
        }
}

void pack_8_bits(const Tiles& tiles, std::byte* block) {
    for (int k = 0; k < kQuadsPerTile; ++k)
        for (int t = 0; t < kTilesPerBlock; ++t) write_words(block, 4 * k + t, tiles[t].quads[k]);
}

void expand_2_bits(const std::byte* block, Tiles& tiles) {
    for (int k = 0; k < kQuadsPerTile; ++k) {
        Words words;
        read_words(block, k, words);
        for (int t = 0; t < kTilesPerBlock; ++t)
            for (int r = 0; r < kTileRows; ++r)
                tiles[t].quads[k][r] = words[r] >> (2 * t) & bytes(3);
    }
}

void expand_3_bits(const std::byte* block, Tiles& tiles) {
    for (int k = 0; k < kQuadsPerTile; ++k) {
        const int odd = k % 2;
        Words words;
        Words shared;
        read_words(block, k / 2 * 3 + odd, words);
        read_words(block, k / 2 * 3 + 2, shared);
        for (int r = 0; r < kTileRows; ++r) {
            const std::uint32_t half = shared[r] >> (4 * odd);
            tiles[0].quads[k][r] = words[r] & bytes(7);
            tiles[1].quads[k][r] = words[r] >> 3 & bytes(7);
            tiles[2].quads[k][r] = half & bytes(7);
            tiles[3].quads[k][r] = (words[r] >> 5 & bytes(6)) | (half >> 3 & bytes(1));
        }
    }
}

void expand_4_bits(const std::byte* block, Tiles& tiles) {
    for (int k = 0; k < kQuadsPerTile; ++k)
        for (int t = 0; t < kTilesPerBlock; ++t) {
            Words words;
            read_words(block, 2 * k + t / 2, words);
            for (int r = 0; r < kTileRows; ++r)
                tiles[t].quads[k][r] = words[r] >> (4 * (t % 2)) & bytes(15);
        }
}

void expand_8_bits(const std::byte* block, Tiles& tiles) {
    for (int k = 0; k < kQuadsPerTile; ++k)
        for (int t = 0; t < kTilesPerBlock; ++t) read_words(block, 4 * k + t, tiles[t].quads[k]);
}

/// Sixteen parameters, two bytes or one each.
void write_parameters(Codec codec, const std::uint16_t (&values)[kTileRows], int tile,
                      std::byte* all) {
    std::byte* to = all + static_cast<std::size_t>(tile) * codec.scale_bytes() / kTilesPerBlock;
    if (codec.kind != CodecKind::affine)
        std::memcpy(to, values, sizeof values);
    else
        for (int r = 0; r < kTileRows; ++r) to[r] = static_cast<std::byte>(values[r]);
}

void read_parameters(Codec codec, const std::byte* all, int tile,
                     std::uint16_t (&values)[kTileRows]) {
    const std::byte* from =
        all + static_cast<std::size_t>(tile) * codec.scale_bytes() / kTilesPerBlock;
    if (codec.kind != CodecKind::affine)
        std::memcpy(values, from, sizeof values);
    else
        for (int r = 0; r < kTileRows; ++r) values[r] = std::to_integer<std::uint16_t>(from[r]);
}

} // namespace

void pack_block(Codec codec, const Tiles& tiles, std::byte* block) {
    switch (codec.bits) {
    case 2:
        pack_2_bits(tiles, block);
        break;
    case 3:
        pack_3_bits(tiles, block);
        break;
    case 4:
        pack_4_bits(tiles, block);
        break;
    default:
        pack_8_bits(tiles, block);
        break;
    }
    std::byte* scales = block + codec.code_bytes();
    for (int t = 0; t < kTilesPerBlock; ++t) {
        write_parameters(codec, tiles[t].scales, t, scales);
        if (codec.has_zero_points())
            write_parameters(codec, tiles[t].zero_points, t, scales + codec.scale_bytes());
    }
}

void expand_block(Codec codec, const std::byte* block, Tiles& tiles) {
    switch (codec.bits) {
    case 2:
        expand_2_bits(block, tiles);
        break;
    case 3:
        expand_3_bits(block, tiles);
        break;
    case 4:
        expand_4_bits(block, tiles);
        break;
    default:
        expand_8_bits(block, tiles);
        break;
    }
    const std::byte* scales = block + codec.code_bytes();
    for (int t = 0; t < kTilesPerBlock; ++t) {
        read_parameters(codec, scales, t, tiles[t].scales);
        if (codec.has_zero_points())
            read_parameters(codec, scales + codec.scale_bytes(), t, tiles[t].zero_points);
    }
}

} // namespace innerkv
