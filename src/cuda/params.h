// SPDX-License-Identifier: Apache-2.0
// What a launch gets, and numbers that host and device agree on. Plain data.
#pragma once

#include <cstdint>

#include "innerkv/cuda.h"

namespace innerkv::cuda {

inline constexpr int kWarpSize = 32;
inline constexpr int kMaxWarps = 8; ///< of a block
inline constexpr int kLeastWarps = 2;
inline constexpr int kBlocksResident = 2; ///< on a multiprocessor that has the shared memory
inline constexpr int kFewRows = 4;        ///< rows that a kernel with packed columns takes
inline constexpr int kManyRows = 8;       ///< and one without
inline constexpr int kMaxPaddedDim = 256;

/// Work is counted in quantized pages; 16 tokens of an fp16 page take as long as this many.
inline constexpr int kDenseTokens = 16;
inline constexpr int kDenseUnits = 2;

/// Loads of fewer units a block are cut into one part a block; others into a large part a block, this share of its
/// load, and small ones of a kSmallParts-th of it, or of kLeastSmallUnits.
inline constexpr float kOneRoundUnits = 64.0f;
inline constexpr float kMostUnequal =
    1.3f; ///< the largest of one part a block, over an equal share
inline constexpr float kLargeShare = 0.8f;
inline constexpr float kSmallParts = 8.0f;
inline constexpr float kLeastSmallUnits = 16.0f;
/// Slots for partial results: items of two parts and more have at most twice kSmallParts parts for each block's
/// equal share, and large ones.
constexpr int most_slots(int blocks) { return blocks * (2 + 2 * static_cast<int>(kSmallParts)); }
/// Parts of one item: large ones, and small ones for what those leave.
constexpr int most_parts(int blocks) { return 3 * blocks + static_cast<int>(kSmallParts) + 2; }

/// Logits are in units of log2: log2(e) is folded into scale and cap.
struct AttentionParams {
    const Sequence* sequences;
    const void* q;
    void* out;
    float* log_sum_exp;
    float* partials;   ///< [most_slots()][partial_floats()]
    int* arrivals;     ///< [items], all 0 between launches
    int* next_segment; ///< beyond the first of every block; 0 between launches
    std::int64_t q_sequence_stride;
    std::int64_t q_token_stride;
    std::int64_t q_head_stride;
    std::int64_t out_sequence_stride;
    std::int64_t out_token_stride;
    std::int64_t out_head_stride;
    RowType q_type;
    RowType out_type;
    int count;
    int max_query_tokens;
    int max_strips; ///< of a sequence's KV head
    int q_heads;
    int kv_heads;
    int group; ///< query heads of a KV head
    int head_dim;
    int sliding_window;
    float logit_scale;
    float soft_cap;
};

/// Shared memory for merging: sums of slices of the parts, and a factor of each row of each part.
constexpr int merge_bytes(int rows, int padded_dim, int threads, int parts) {
    constexpr int kPadding = 128; // of parts, to what threads take at a time
    const int columns = rows * padded_dim / 4;
    return 4 * rows * (parts + kPadding) + 16 * (threads > columns ? threads : columns);
}

/// Of a part: sums, then a state a row.
constexpr int partial_floats(int rows, int padded_dim) { return rows * padded_dim + 4 * rows; }

} // namespace innerkv::cuda
