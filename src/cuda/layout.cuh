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
    static constexpr int kPages = kPageBytes <= 2304 ? 2 : 1; ///< of a warp's ring (stream.cuh)
    /// Sums of both kinds of pages lie here once all pages have been read.
    static constexpr int kStateBytes = 2 * kRows * kDim * 4;
    static constexpr int kRingBytes =
        kPages * kPageBytes > kStateBytes ? kPages* kPageBytes : kStateBytes;
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

/// The same of quantized and fp16 pages together: out counts fp16 ones rotated as values in pages are.
struct alignas(16) MergedState {
    float reference;
    float quantized_weight;
    float dense_weight;
};

/// What a key group's sums are scaled by; `second` where the codes are of the second token half.
struct alignas(16) KeyColumn {
    float scale;
    float weight; ///< of the first token half
    float add;
    float second_add;
};

/// A part of an item, which is a strip of rows of one KV head.
struct Item {
    int sequence;
    int kv_head;
    int strip;
    int begin; ///< units of the item, from its first on
    int end;
    int parts; ///< of the item
    int part;
    int first_slot; ///< where part 0 leaves its state, the others behind it; unless there is one part alone
};

struct PageRange {
    int first;
    int last;
    __device__ int count() const { return last - first; }
};

/// A KV head's units, in this order: what takes longest to come first.
struct HeadWork {
    PageRange sink; ///< of kDenseTokens tokens
    PageRange recent;
    PageRange quantized; ///< pages
    __device__ int dense_tiles() const { return sink.count() + recent.count(); }
    __device__ int units() const { return max(1, quantized.count() + kDenseUnits * dense_tiles()); }
};

/// Epochs of some pages.
struct EpochWork {
    int pages; ///< of an epoch
    int first; ///< epoch of the first page, whose place in it is `first_page`
    int first_page;
    int end; ///< first if there are no pages
};

/// An item's part as every warp needs it.
struct Task {
    Item item;
    HeadWork work;
    PageRange pages; ///< of the quantized run
    PageRange tiles; ///< of fp16 pages, counted from the sink's first on
    EpochWork epochs;
};

/// How a launch's items are cut into segments. Alike, into parts of which every block has one, where they are nearly of
/// one length; otherwise so that no part is too long for one block each; otherwise into large parts, of which every
/// block has one at first, and small ones that blocks take as they come free.
struct Plan {
    float equal; ///< units of all items, a block's share
    float small; ///< units of a small part, about
    float chunk; ///< over 0: items are cut into parts of at most so many units, no more than blocks
    int uniform; ///< 1: every item is cut into so many parts
    int large_parts;    ///< then
    int large_segments; ///< of all items, in front
    int segments;
};

/// Segments and slots.
struct Counts {
    int large;
    int small;
    int slots;
};

/// In shared memory, but for the warps' parts behind it.
template <class C>
struct alignas(128) BlockShared {
    int units[kMaxSequences];        ///< of an item of each sequence; 0: it has no items
    Counts first[kMaxSequences + 1]; ///< of the sequences in front
    Plan plan;
    int segment; ///< that the block has
    Task task;
    int last_arrival;
    int faulty[C::kRows];
    int visible_begin[C::kRows];
    int visible_end[C::kRows];
    float key_scale[C::kRows];   ///< of sums with quantized keys
    float dense_scale[C::kRows]; ///< of sums with fp16 keys
    RowState warp_states[2][C::kRows][kMaxWarps];
    alignas(16) float warp_factors[2][C::kRows][kMaxWarps];
    MergedState merged_states[C::kRows];
    KeyColumn key_columns[C::kBlocks][2][C::kRows];
    float offsets[kMaxEpochs][C::kRows];
    alignas(16) signed char q_codes[C::kRows][C::kDim];
    alignas(16) std::uint16_t q_half[C::kRows][C::kDim];
    alignas(16) float merged[C::kRows][C::kDim];
    alignas(16) float merged_dense[C::kRows][C::kDim]; ///< of fp16 pages
};

template <class C>
struct alignas(128) WarpShared {
    float exchange[C::kExchangeFloats];
    alignas(128) unsigned char ring[C::kRingBytes];
};

/// Query tokens of a sequence that are answered. One that has more than there is room for, or fewer than none, gets NaN
/// for as many as there is room for.
__device__ inline int query_tokens_of(const AttentionParams& params, const Sequence& sequence) {
    return static_cast<int>(min(static_cast<unsigned>(sequence.query_tokens),
                                static_cast<unsigned>(params.max_query_tokens)));
}
__device__ inline bool asks_too_much(const AttentionParams& params, const Sequence& sequence) {
    return query_tokens_of(params, sequence) != sequence.query_tokens;
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
