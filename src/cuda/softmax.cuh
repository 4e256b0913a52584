// SPDX-License-Identifier: Apache-2.0
// Logits of a page in a warp: caps, masks, maxima. A lane holds some tokens of one row.
#pragma once

#include "cuda/layout.cuh"
#include "cuda/ptx.cuh"

namespace innerkv::cuda {

/// A reference moves only when a logit exceeds it by this much: weights stay below 2^8, and sums are rescaled once
/// or twice a sequence instead of at every new maximum.
inline constexpr float kReferenceSlack = 8.0f;

/// What a lane knows of its row's logits.
struct RowRules {
    float soft_cap; ///< in units of log2; 0: off
    int begin;      ///< positions that the row sees
    int end;
    int all_begin; ///< that every row of the item sees
    int all_end;

    /// The same for a run that ends at `run_end`: what its last page holds beyond is not the sequence's.
    __device__ RowRules within(int run_end) const {
        return {soft_cap, begin, min(end, run_end), all_begin, min(all_end, run_end)};
    }
    /// Every row sees the tokens [first, first + tokens).
    __device__ bool whole(int first, int tokens) const {
        return first >= all_begin && first + tokens <= all_end;
    }
};

template <class C>
__device__ RowRules row_rules(const AttentionParams& params, const BlockShared<C>& shared,
                              int row) {
    RowRules rules{params.soft_cap, 0, 1 << 30, 0, 1 << 30};
    if (row < C::kRows) {
        rules.begin = shared.visible_begin[row];
        rules.end = shared.visible_end[row];
    }
#pragma unroll
    for (int other = 0; other < C::kRows; ++other) {
        rules.all_begin = max(rules.all_begin, shared.visible_begin[other]);
        rules.all_end = min(rules.all_end, shared.visible_end[other]);
    }
    return rules;
}

/// To a few units of fp32's last place of 1, which is what a capped logit may err by.
__device__ inline float hyperbolic_tangent(float x) {
    return 1.0f - __fdividef(2.0f, 1.0f + fast_exp2(x * 2.885390082f)); // 2 / ln 2
}

/// Applies cap and mask to logits of tokens at `first`, `first` + 1, ...; both are rare.
template <int kCount>
__device__ inline void apply_rules(const RowRules& rules, bool whole, int first,
                                   float (&logits)[kCount]) {
    if (rules.soft_cap > 0.0f) {
#pragma unroll
        for (int t = 0; t < kCount; ++t)
            logits[t] = rules.soft_cap * hyperbolic_tangent(__fdividef(logits[t], rules.soft_cap));
    }
    if (!whole) {
#pragma unroll
        for (int t = 0; t < kCount; ++t)
            if (first + t < rules.begin || first + t >= rules.end)
                logits[t] = -__uint_as_float(0x7f800000);
    }
}

} // namespace innerkv::cuda
