// SPDX-License-Identifier: Apache-2.0
// Whole pages: which tokens and channels stand in which tile, padding, the f16 page.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#include "format/tile.h"
#include "innerkv/codec.h"
#include "innerkv/error.h"

namespace innerkv {
namespace {

/// First token and first channel of a tile, and how many of its channels there are: the rest is padding.
struct TilePlace {
    int token;
    int channel;
    int channels;
};

TilePlace k_place(int head_dim, int block, int tile) {
    const int channel = block * kBlockChannels + tile / 2 * kGroupSize;
    return {tile % 2 * kTileRows, channel, std::clamp(head_dim - channel, 0, kGroupSize)};
}

TilePlace v_place(int head_dim, int block, int tile) {
    const int channel = block * kBlockChannels + tile * kTileRows;
    return {0, channel, std::clamp(head_dim - channel, 0, kTileRows)};
}

/// K: rows are tokens, inner elements are channels.
void gather_k(TilePlace place, const float* k, std::ptrdiff_t stride, TileValues& values) {
    for (int row = 0; row < kTileRows; ++row) {
        const float* token = k + (place.token + row) * stride + place.channel;
        for (int i = 0; i < place.channels; ++i) values[i][row] = token[i];
    }
    for (int i = place.channels; i < kGroupSize; ++i) std::fill_n(values[i], kTileRows, 0.0f);
}

void scatter_k(TilePlace place, const TileValues& values, float* k, std::ptrdiff_t stride) {
    for (int row = 0; row < kTileRows; ++row) {
        float* token = k + (place.token + row) * stride + place.channel;
        for (int i = 0; i < place.channels; ++i) token[i] = values[i][row];
    }
}

/// V: rows are channels, inner elements are tokens.
void gather_v(TilePlace place, const float* v, std::ptrdiff_t stride, TileValues& values) {
    for (int token = 0; token < kPageTokens; ++token) {
        std::copy_n(v + token * stride + place.channel, place.channels, values[token]);
        std::fill_n(values[token] + place.channels, kTileRows - place.channels, 0.0f);
    }
}

void scatter_v(TilePlace place, const TileValues& values, float* v, std::ptrdiff_t stride) {
    for (int token = 0; token < kPageTokens; ++token)
        std::copy_n(values[token], place.channels, v + token * stride + place.channel);
}

/// What differs between K and V.
struct Side {
    const char* name;
    TilePlace (*place)(int head_dim, int block, int tile);
    void (*gather)(TilePlace, const float*, std::ptrdiff_t, TileValues&);
    void (*scatter)(TilePlace, const TileValues&, float*, std::ptrdiff_t);
};

constexpr Side kKeys{"K", k_place, gather_k, scatter_k};
constexpr Side kValues{"V", v_place, gather_v, scatter_v};

bool is_storable(float value) { return std::abs(value) <= kLargestF16; }

[[noreturn]] void refuse(const char* side, int head_dim, const float* rows, std::ptrdiff_t stride) {
    std::string place;
    for (int token = kPageTokens - 1; token >= 0; --token)
        for (int channel = head_dim - 1; channel >= 0; --channel)
            if (const float value = rows[token * stride + channel]; !is_storable(value))
                place = "token " + std::to_string(token) + ", channel " + std::to_string(channel) +
                        " is " + std::to_string(value);
    throw InvalidArgument(std::string(side) + " of a page: " + place +
                          "; only finite values up to 65504 can be stored");
}

void quantize_side(const Side& side, Codec codec, const PageFormat& format, const float* rows,
                   std::ptrdiff_t stride, std::byte* out) {
    Tile tiles[kTilesPerBlock];
    alignas(64) TileValues values;
    for (int block = 0; block < format.blocks(); ++block, out += codec.block_bytes()) {
        for (int tile = 0; tile < kTilesPerBlock; ++tile) {
            side.gather(side.place(format.head_dim, block, tile), rows, stride, values);
            if (!quantize_tile(codec, values, tiles[tile]))
                refuse(side.name, format.head_dim, rows, stride);
        }
        pack_block(codec, tiles, out);
    }
}

void dequantize_side(const Side& side, Codec codec, const PageFormat& format, const std::byte* in,
                     float* rows, std::ptrdiff_t stride) {
    Tile tiles[kTilesPerBlock];
    alignas(64) TileValues values;
    for (int block = 0; block < format.blocks(); ++block, in += codec.block_bytes()) {
        expand_block(codec, in, tiles);
        for (int tile = 0; tile < kTilesPerBlock; ++tile) {
            dequantize_tile(codec, tiles[tile], values);
            side.scatter(side.place(format.head_dim, block, tile), values, rows, stride);
        }
    }
}

void store_f16_side(const char* name, int head_dim, const float* rows, std::ptrdiff_t stride,
                    std::byte* out) {
    std::int32_t largest = 0; // magnitude, as bits; NaN and infinity are on top
    for (int token = 0; token < kPageTokens; ++token) {
        const float* row = rows + token * stride;
        for (int channel = 0; channel < head_dim; ++channel) {
            const std::int32_t magnitude = std::bit_cast<std::int32_t>(row[channel]) & 0x7fffffff;
            largest = largest > magnitude ? largest : magnitude;
            const std::uint16_t bits = f16_from_float(row[channel]);
            std::memcpy(out + sizeof bits * static_cast<std::size_t>(channel), &bits, sizeof bits);
        }
        out += sizeof(std::uint16_t) * static_cast<std::size_t>(head_dim);
    }
    if (largest > std::bit_cast<std::int32_t>(kLargestF16)) refuse(name, head_dim, rows, stride);
}

void load_f16_side(int head_dim, const std::byte* in, float* rows, std::ptrdiff_t stride) {
    for (int token = 0; token < kPageTokens; ++token)
        for (int channel = 0; channel < head_dim; ++channel) {
            std::uint16_t bits;
            std::memcpy(&bits, in, sizeof bits);
            in += sizeof bits;
            rows[token * stride + channel] = float_from_f16(bits);
        }
}

} // namespace

void quantize_page(const PageFormat& format, const float* k, std::ptrdiff_t k_stride,
                   const float* v, std::ptrdiff_t v_stride, std::byte* page) {
    format.validate();
    std::byte* v_side = page + format.v_offset();
    if (format.quantized()) {
        quantize_side(kKeys, format.k, format, k, k_stride, page);
        quantize_side(kValues, format.v, format, v, v_stride, v_side);
    } else {
        store_f16_side(kKeys.name, format.head_dim, k, k_stride, page);
        store_f16_side(kValues.name, format.head_dim, v, v_stride, v_side);
    }
}

void dequantize_page(const PageFormat& format, const std::byte* page, float* k,
                     std::ptrdiff_t k_stride, float* v, std::ptrdiff_t v_stride) {
    format.validate();
    const std::byte* v_side = page + format.v_offset();
    if (format.quantized()) {
        dequantize_side(kKeys, format.k, format, page, k, k_stride);
        dequantize_side(kValues, format.v, format, v_side, v, v_stride);
    } else {
        load_f16_side(format.head_dim, page, k, k_stride);
        load_f16_side(format.head_dim, v_side, v, v_stride);
    }
}

} // namespace innerkv
