// SPDX-License-Identifier: Apache-2.0
// One page of one KV head from fp16 to quantized: a block of threads, the operations of src/cache/settle.cpp and
// src/transform in the same order. Compiled without contraction of products and sums.
#pragma once

#include "cuda/cache/group.cuh"
#include "cuda/cache/state.h"

namespace innerkv::cuda {

inline constexpr int kPageThreads = 256;
inline constexpr int kMostDim = 256; ///< padded

/// In shared memory.
struct PageShared {
    float
        rows[kPageTokens]
            [kMostDim + 1]; ///< rows apart by an odd number: columns are free of bank conflicts too
    std::uint32_t quads[kMostDim / kBlockChannels][kQuadsPerTile][kTilesPerBlock][kTileRows];
    std::uint16_t scales[kMostDim / kBlockChannels][kGroupsPerBlock];
    std::uint16_t zero_points[kMostDim / kBlockChannels][kGroupsPerBlock];
};

/// What rows of one side go through; arrays [head_dim] or null, one centre at most.
struct RowTransform {
    const std::uint16_t* f16_centre;
    const float* centre;
    const float* norm;
    bool rotate;
};

/// Rows of an fp16 page, `from` [32][head_dim], into shared.rows.
__device__ inline void load_rows(PageShared& shared, const std::uint16_t* from,
                                 const RowTransform& transform, int head_dim, int padded_dim) {
    for (int at = static_cast<int>(threadIdx.x); at < kPageTokens * padded_dim;
         at += kPageThreads) {
        const int token = at / padded_dim;
        const int channel = at - token * padded_dim;
        float value = 0.0f;
        if (channel < head_dim) {
            value = float_from_f16(from[token * head_dim + channel]);
            if (transform.f16_centre != nullptr)
                value -= float_from_f16(transform.f16_centre[channel]);
            if (transform.centre != nullptr) value -= transform.centre[channel];
            if (transform.norm != nullptr) value /= transform.norm[channel];
        }
        shared.rows[token][channel] = value;
    }
    __syncthreads();
}

/// The orthonormal Hadamard matrix on blocks of the largest power of two that divides padded_dim: butterflies between
/// neighbours first.
__device__ inline void rotate_rows(PageShared& shared, int padded_dim) {
    const int block = padded_dim & -padded_dim;
    const int pairs = padded_dim / 2;
    for (int half = 1; half < block; half *= 2) {
        for (int at = static_cast<int>(threadIdx.x); at < kPageTokens * pairs; at += kPageThreads) {
            const int token = at / pairs;
            const int pair = at - token * pairs;
            const int low = pair / half * 2 * half + pair % half;
            float& a = shared.rows[token][low];
            float& b = shared.rows[token][low + half];
            const float sum = a + b;
            b = a - b;
            a = sum;
        }
        __syncthreads();
    }
    const float scale = 1.0f / sqrtf(static_cast<float>(block));
    for (int at = static_cast<int>(threadIdx.x); at < kPageTokens * padded_dim; at += kPageThreads)
        shared.rows[at / padded_dim][at % padded_dim] *= scale;
    __syncthreads();
}

/// Transformed values beyond fp16 saturate.
__device__ inline void saturate_rows(PageShared& shared, int padded_dim) {
    for (int at = static_cast<int>(threadIdx.x); at < kPageTokens * padded_dim;
         at += kPageThreads) {
        float& value = shared.rows[at / padded_dim][at % padded_dim];
        value = fminf(fmaxf(value, -kLargestF16), kLargestF16);
    }
    __syncthreads();
}

/// Groups of keys are 32 channels of a token, of values 32 tokens of a channel; a group a thread.
__device__ inline void quantize_groups(PageShared& shared, Codec codec, bool keys, int padded_dim) {
    for (int group = static_cast<int>(threadIdx.x); group < padded_dim; group += kPageThreads) {
        // Neighbouring threads have neighbouring tokens or channels. There are padded_dim groups either way.
        const int token = group % kPageTokens;
        const int channel = keys ? group / kPageTokens * kGroupSize : group;
        const int block = channel / kBlockChannels;
        const int in_block = channel % kBlockChannels;
        const int tile =
            keys ? 2 * (in_block / kGroupSize) + token / kTileRows : in_block / kTileRows;
        const int row = keys ? token % kTileRows : in_block % kTileRows;
        const GroupValues values{keys ? &shared.rows[token][channel] : &shared.rows[0][channel],
                                 keys ? 1 : kMostDim + 1};
        const GroupQuads out = quantize(codec, values);
#pragma unroll
        for (int k = 0; k < kQuadsPerTile; ++k) shared.quads[block][k][tile][row] = out.quads[k];
        shared.scales[block][tile * kTileRows + row] = out.scale;
        shared.zero_points[block][tile * kTileRows + row] = out.zero_point;
    }
    __syncthreads();
}

/// Word `word` of a block's codes in row `row`, as format.h has it.
__device__ inline std::uint32_t
pack_word(const std::uint32_t (&quads)[kQuadsPerTile][kTilesPerBlock][kTileRows], int bits,
          int word, int row) {
    const auto quad = [&](int k, int tile) { return quads[k][tile][row]; };
    if (bits == 8) return quad(word / 4, word % 4);
    if (bits == 4) return quad(word / 2, word % 2 * 2) | quad(word / 2, word % 2 * 2 + 1) << 4;
    if (bits == 2)
        return quad(word, 0) | quad(word, 1) << 2 | quad(word, 2) << 4 | quad(word, 3) << 6;
    const int first = word / 3 * 2; // of two quads that share three words
    if (word % 3 == 2) {
        const auto half = [&](int k) { return quad(k, 2) | (quad(k, 3) & 0x01010101u) << 3; };
        return half(first) | half(first + 1) << 4;
    }
    const int k = first + word % 3;
    return quad(k, 0) | quad(k, 1) << 3 | (quad(k, 3) >> 1 & 0x03030303u) << 6;
}

__device__ inline void write_parameters(const std::uint16_t (&from)[kGroupsPerBlock], bool bytes,
                                        std::byte* to) {
    for (int group = static_cast<int>(threadIdx.x); group < kGroupsPerBlock;
         group += kPageThreads) {
        if (bytes)
            to[group] = static_cast<std::byte>(from[group]);
        else
            reinterpret_cast<std::uint16_t*>(to)[group] = from[group];
    }
}

__device__ inline void pack_side(const PageShared& shared, Codec codec, int blocks,
                                 std::byte* side) {
    const int words = 4 * codec.bits * kTileRows; // of 64-channel blocks: 256 * bits bytes
    for (int block = 0; block < blocks; ++block) {
        std::byte* to = side + block * codec.block_bytes();
        for (int at = static_cast<int>(threadIdx.x); at < words; at += kPageThreads)
            reinterpret_cast<std::uint32_t*>(to)[at] =
                pack_word(shared.quads[block], codec.bits, at / kTileRows, at % kTileRows);
        to += codec.code_bytes();
        const bool bytes = codec.kind == CodecKind::affine;
        write_parameters(shared.scales[block], bytes, to);
        if (codec.has_zero_points())
            write_parameters(shared.zero_points[block], bytes, to + codec.scale_bytes());
    }
    __syncthreads(); // shared memory is used again
}

/// One side of a page. All threads of the block call it.
__device__ inline void quantize_side(PageShared& shared, const PageFormat& format, bool keys,
                                     const std::uint16_t* rows, const RowTransform& transform,
                                     std::byte* side) {
    const int padded_dim = format.padded_dim();
    load_rows(shared, rows, transform, format.head_dim, padded_dim);
    if (transform.rotate) rotate_rows(shared, padded_dim);
    saturate_rows(shared, padded_dim);
    const Codec codec = keys ? format.k : format.v;
    quantize_groups(shared, codec, keys, padded_dim);
    pack_side(shared, codec, format.blocks(), side);
}

} // namespace innerkv::cuda
