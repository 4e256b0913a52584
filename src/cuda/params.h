// SPDX-License-Identifier: Apache-2.0
// What a launch gets, and numbers that host and device agree on. Plain data.
#pragma once

#include <cstdint>

#include "innerkv/cuda.h"

namespace innerkv::cuda {

inline constexpr int kWarpSize = 32;
inline constexpr int kMaxWarps = 16; ///< of a block
inline constexpr int kLeastWarps = 2;
inline constexpr int kFewRows = 4;  ///< rows that a kernel with packed columns takes
inline constexpr int kManyRows = 8; ///< and one without

/// Work is counted in quantized pages; 16 tokens of an fp16 page take as long as this many.
inline constexpr int kDenseTokens = 16;
inline constexpr int kDenseUnits = 2;

/// Items that are not cut alike have large parts for this share of them, and small ones, of a kSmallParts-th of a
/// block's load or of kLeastSmallUnits, for the rest.
inline constexpr float kLargeShare = 0.8f;
inline constexpr float kSmallParts = 8.0f;
inline constexpr float kLeastSmallUnits = 16.0f;
/// Items are cut alike where that leaves no block more than this over an equal share.
inline constexpr float kMostUnequal = 1.3f;
/// Slots for partial results: items of two parts and more have at most twice kSmallParts parts for each block's
/// equal share, and large ones.
constexpr int most_slots(int blocks) { return blocks * (2 + 2 * static_cast<int>(kSmallParts)); }

/// Logits are in units of log2: log2(e) is folded into scale and cap.
struct AttentionParams {
    const Sequence* sequences;
    const void* q;
    void* out;
    float* log_sum_exp;
    float* partials;   ///< [most_slots()][partial_floats()]
    int* arrivals;     ///< [most_slots()], an item's at its first slot; all 0 between launches
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
    int parts; ///< blocks of the grid for each item that there can be; 0: more items than blocks
    int q_heads;
    int kv_heads;
    int group; ///< query heads of a KV head
    int head_dim;
    int sliding_window;
    float logit_scale;
    float soft_cap;
};

/// Shared memory for merging: sums of slices of the parts, with what they refer to.
constexpr int merge_bytes(int rows, int padded_dim, int threads) {
    const int columns = rows * padded_dim / 4;
    return 32 * (threads > columns ? threads : columns);
}

/// Of a part: sums, then a state a row.
constexpr int partial_floats(int rows, int padded_dim) { return rows * padded_dim + 4 * rows; }

} // namespace innerkv::cuda
