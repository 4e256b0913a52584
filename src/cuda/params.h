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

/// Logits are in units of log2: log2(e) is folded into scale and cap.
struct AttentionParams {
    const Sequence* sequences;
    const void* q;
    void* out;
    float* log_sum_exp;
    float* partials; ///< [2 * blocks of the grid][partial_floats()]
    int* arrivals;   ///< [items], all 0 between launches
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

/// Threads that share the parts of four channels where blocks' results are merged.
inline constexpr int kMergeSlices = 2;
/// Shared memory for that: sums, and a factor of each state of each part.
constexpr int merge_bytes(int rows, int padded_dim, int parts) {
    return 4 * (2 * rows * padded_dim * kMergeSlices + 2 * rows * parts);
}

/// Rows of a strip, both kinds of pages: sums, then states.
constexpr int partial_floats(int rows, int padded_dim) { return 2 * rows * padded_dim + 4 * rows; }

} // namespace innerkv::cuda
