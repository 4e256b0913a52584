// SPDX-License-Identifier: Apache-2.0
// What kernels are compiled for, and where a block of threads keeps what in shared memory.
//
// Columns of the products are rows of queries: query tokens times the query heads of one KV head. A kernel for more
// than four of them multiplies a tile at a time, 8 columns. One for up to four packs its columns: the lower 16
// elements of the 32 of an mma are of one tile, the upper of another; columns 0 to 3 of b are zero in the upper
// half and 4 to 7 in the lower. So a product of 16 rows and 8 columns is two tiles and four rows of queries: half
// as many sums to scale for the same number of mma.
#pragma once

#include "cuda/codes.cuh"
#include "cuda/params.h"

namespace innerkv::cuda {

template <class Key_, class Value_, int kBlocks_, bool kPacked_>
struct Config {
    using Key = Key_;
    using Value = Value_;
    static constexpr int kBlocks = kBlocks_; ///< of 64 channels
    static constexpr bool kPacked = kPacked_;
    static constexpr int kRows = kPacked ? kFewRows : kManyRows;
    static constexpr int kDim = 64 * kBlocks;
    static constexpr int kValueOffset = kBlocks * Key::block_bytes;
    static constexpr int kPageBytes = kValueOffset + kBlocks * Value::block_bytes;
    static constexpr int kStages = kPageBytes <= 2304 ? 4 : kPageBytes <= 4096 ? 3 : 2;
    /// Sums of both kinds of pages lie here once all pages have been read.
    static constexpr int kStateBytes = 2 * kRows * kDim * 4;
    static constexpr int kRingBytes =
        kStages * kPageBytes > kStateBytes ? kStages* kPageBytes : kStateBytes;
    /// Logits of a page, [halves of channels][rows][32], rows kExchangeStride floats apart.
    static constexpr int kExchangeStride = 36;
    static constexpr int kExchangeFloats = 8 * kExchangeStride;
};

inline constexpr int kMaxEpochs = 64; ///< offsets of so many are kept at a time

/// Softmax state of a row: sum of weights 2^(logit - reference).
struct RowState {
    float reference;
    float weight;
};
/// Reference of a row that has seen no token: finite, so that differences are numbers.
inline constexpr float kNoReference = -3e38f;

/// What a key group's sums are scaled by; `second` where the codes are of the second token half.
struct alignas(16) KeyColumn {
    float scale;
    float weight; ///< of the first token half
    float add;
    float second_add;
};

/// A block's part of an item: a strip of rows of one KV head.
struct Item {
    int sequence;
    int kv_head;
    int strip;
    int begin; ///< units of the item, from its first on
    int end;
    int parts; ///< blocks that have a part
    int part;  ///< this one's place among them
    int first_slot; ///< where the first of them leaves its state; others: the first slot of their own two
    int first_block;

    __device__ int slot(int other) const {
        return other == 0 ? first_slot : 2 * (first_block + other);
    }
};

/// How a launch's units are shared out.
struct Plan {
    int workers; ///< blocks that have any
    int share;   ///< units of a block where parts span items, and how many blocks have one more
    int larger;
    float chunk; ///< units that one block takes of an item, about; 0: blocks' parts span items
};

/// In shared memory, but for the warps' parts behind it.
template <class C>
struct alignas(128) BlockShared {
    int units[kMaxSequences];     ///< of an item of each sequence; 0: it has no items
    int first[kMaxSequences + 1]; ///< blocks, or units, of the sequences in front
    Plan plan;
    Item item;
    int last_arrival;
    int faulty[C::kRows];
    int visible_begin[C::kRows];
    int visible_end[C::kRows];
    float key_scale[C::kRows];   ///< of sums with quantized keys
    float dense_scale[C::kRows]; ///< of sums with fp16 keys
    RowState warp_states[kMaxWarps][2][C::kRows];
    float warp_factors[kMaxWarps][2][C::kRows];
    RowState merged_states[2][C::kRows];
    KeyColumn key_columns[C::kBlocks][2][C::kRows];
    float offsets[kMaxEpochs][C::kRows];
    alignas(16) signed char q_codes[C::kRows][C::kDim];
    alignas(16) std::uint16_t q_half[kManyRows][C::kDim];
    alignas(16) float q_scaled[C::kRows][C::kDim];
    alignas(16) float merged[2][C::kRows][C::kDim]; ///< of quantized pages, of fp16 pages
};

template <class C>
struct alignas(128) WarpShared {
    float exchange[C::kExchangeFloats];
    alignas(128) unsigned char ring[C::kRingBytes];
};

template <class C>
constexpr int shared_bytes(int warps) {
    return static_cast<int>(sizeof(BlockShared<C>)) +
           warps * static_cast<int>(sizeof(WarpShared<C>));
}

/// A place among the threads.
struct Thread {
    int warp = static_cast<int>(threadIdx.x) / kWarpSize;
    int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    int warps = static_cast<int>(blockDim.x) / kWarpSize;
    int g = lane / 4; ///< of mma fragments
    int i = lane % 4;
};

} // namespace innerkv::cuda
