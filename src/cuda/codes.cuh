// SPDX-License-Identifier: Apache-2.0
// Packed codes of a block (innerkv/format.h) to A operands of mma.m16n8k32. Where bytes lie in shared memory and
// how they are expanded; scales are in scales.cuh.
//
// Lane 4g + i takes quads 2i and 2i + 1 of rows 2g and 2g + 1 of all four tiles: with 8 bytes a word it has both
// rows, and the quads of a pair share their words.
#pragma once

#include <cstdint>

#include "innerkv/format.h"

namespace innerkv::cuda {

/// Of a codec: what kernels are compiled for.
template <CodecKind kind_, int bits_>
struct Side {
    static constexpr Codec codec{kind_, static_cast<std::uint8_t>(bits_)};
    static constexpr CodecKind kind = kind_;
    static constexpr int bits = bits_;
    static constexpr int code_bytes = static_cast<int>(codec.code_bytes());
    static constexpr int block_bytes = static_cast<int>(codec.block_bytes());
    static constexpr int scale_bytes = static_cast<int>(codec.scale_bytes());
    static_assert(block_bytes % 128 == 0);
};

/// Bit at which codes of tile t = 2 * high + low are left: position_high * high + position_low * low.
constexpr int position_high(int bits) { return bits == 2 ? 4 : 0; }
constexpr int position_low(int bits) { return bits == 2 ? 2 : bits == 3 ? 3 : bits == 4 ? 4 : 0; }
template <class S>
constexpr int position_of(int tile) {
    return position_high(S::bits) * (tile / 2) + position_low(S::bits) * (tile % 2);
}

/// Offset in shared memory of byte `offset` of a block's codes, for multiples of 16 and what follows them: lanes
/// 4g + i of different i would meet on the same banks, so pair i's 32-byte halves of words change places.
template <int bits>
__device__ constexpr int swizzled(int offset) {
    const int pair = offset / (64 * bits);
    return bits == 3 ? offset ^ (pair / 2 * 32) : offset ^ (pair * 32);
}

/// quad[q][tile][row]
struct QuadPair {
    std::uint32_t quad[2][4][2];
};

/// Word `word` of lane 4g + i's pair, rows 2g and 2g + 1. `codes`: of the block, in shared memory. Written so that
/// what depends on the lane is one address (two, where halves of words change places across words).
template <int bits>
__device__ inline uint2 load_word(const unsigned char* codes, int g, int i, int word) {
    int offset = 0;
    if constexpr (bits == 3)
        offset = ((192 * i + 8 * g) ^ (i / 2 * 32)) + 64 * word;
    else
        offset = 64 * bits * i + ((word % 2 * 64 + 8 * g) ^ (i * 32)) + word / 2 * 128;
    return *reinterpret_cast<const uint2*>(codes + offset);
}

__device__ inline std::uint32_t bits_of(uint2 word, int row) { return row == 0 ? word.x : word.y; }

/// mask ? a : b, bit by bit.
__device__ inline std::uint32_t choose(std::uint32_t mask, std::uint32_t a, std::uint32_t b) {
    return (a & mask) | (b & ~mask);
}

/// docs/format.md counts the operations: 13 for eight registers of 3-bit codes.
template <int bits>
__device__ inline QuadPair load_quads(const unsigned char* codes, int g, int i) {
    QuadPair out;
    if constexpr (bits == 3) {
        const uint2 first = load_word<3>(codes, g, i, 0);
        const uint2 second = load_word<3>(codes, g, i, 1);
        const uint2 third = load_word<3>(codes, g, i, 2);
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const std::uint32_t a = bits_of(first, row);
            const std::uint32_t b = bits_of(second, row);
            const std::uint32_t c = bits_of(third, row);
            const std::uint32_t d = c >> 4;
            out.quad[0][0][row] = a & 0x07070707;
            out.quad[1][0][row] = b & 0x07070707;
            out.quad[0][1][row] = a & 0x38383838;
            out.quad[1][1][row] = b & 0x38383838;
            out.quad[0][2][row] = c & 0x07070707;
            out.quad[1][2][row] = d & 0x07070707;
            out.quad[0][3][row] = choose(0x30303030, a >> 2, c) & 0x38383838;
            out.quad[1][3][row] = choose(0x30303030, b >> 2, d) & 0x38383838;
        }
    } else {
        constexpr int kTiles = 8 / bits; // in a word
        constexpr std::uint32_t kMask = bits == 2   ? 0x03030303
                                        : bits == 4 ? 0x0f0f0f0f
                                                    : 0xffffffff;
#pragma unroll
        for (int q = 0; q < 2; ++q)
#pragma unroll
            for (int word = 0; word < 4 / kTiles; ++word) {
                const uint2 packed = load_word<bits>(codes, g, i, q * (4 / kTiles) + word);
#pragma unroll
                for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
                    for (int row = 0; row < 2; ++row)
                        out.quad[q][word * kTiles + tile][row] =
                            bits_of(packed, row) & (kMask << (bits * tile % 32));
            }
    }
    return out;
}

} // namespace innerkv::cuda
