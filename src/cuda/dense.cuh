// SPDX-License-Identifier: Apache-2.0
// A warp's walk over 16 tokens at a time of fp16 pages: sink, recent window, and caches that are fp16
// throughout. Operands come from global memory as they lie there: channels and tokens are permuted alike on
// both sides of a product.
#pragma once

#include "cuda/query.cuh"
#include "cuda/softmax.cuh"

namespace innerkv::cuda {

template <class C>
struct DenseWalk {
    float out[C::kBlocks][4][4] =
        {}; ///< per 64 channels, pair of channels 8g + 2j: rows, columns of products
    RowState state{kNoReference, 0.0f}; ///< of row g; weight: the lane's own tokens'
    float scale;                        ///< of row g
    float* exchange;
    int head_dim;
    Thread thread;
    int g;
    int i;

    __device__ DenseWalk(const AttentionParams& params, const BlockShared<C>& shared, float* buffer,
                         const Thread& place)
        : scale(place.g < C::kRows ? shared.dense_scale[place.g] : 0.0f), exchange(buffer),
          head_dim(params.head_dim), thread(place), g(place.g), i(place.i) {}

    /// 8 channels from `channel` on, or zeros where there are none or the token must not be read.
    __device__ uint4 load(const unsigned char* rows, int token, int channel, bool readable) const {
        if (!readable || channel >= head_dim) return {0, 0, 0, 0};
        return __ldg(reinterpret_cast<const uint4*>(rows + 2 * (token * head_dim + channel)));
    }

    __device__ void keys(const BlockShared<C>& shared, const unsigned char* page, int first,
                         Visible readable, int position);
    __device__ void load_values(const unsigned char* page, int first, Visible readable,
                                int position, int span, uint4 (&tokens)[4]) const;
    __device__ void add_values(const uint4 (&tokens)[4], int span, std::uint32_t b0,
                               std::uint32_t b1);
    __device__ void attend(const BlockShared<C>& shared, const RowRules& rules,
                           const unsigned char* page, int first, Visible readable, int position);
    __device__ void write_state(float* sums, RowState (*states)[kMaxWarps]);
};

template <class C>
__device__ inline void DenseWalk<C>::keys(const BlockShared<C>& shared, const unsigned char* page,
                                          int first, Visible readable, int position) {
    const bool upper = position + g >= readable.begin && position + g < readable.end;
    const bool lower = position + g + 8 >= readable.begin && position + g + 8 < readable.end;
    float logits[2][4] = {}; // two chains of products
#pragma unroll
    for (int span = 0; span < 2 * C::kBlocks; ++span) {
        const int channel = 32 * span + 8 * i;
        multiply_span<C>(logits[span % 2], shared.q_half, load(page, first + g, channel, upper),
                         load(page, first + g + 8, channel, lower), span, thread);
    }
#pragma unroll
    for (int c = 0; c < 2; ++c) {
        exchange[(2 * i + c) * C::kExchangeStride + g] = logits[0][c] + logits[1][c];
        exchange[(2 * i + c) * C::kExchangeStride + g + 8] = logits[0][2 + c] + logits[1][2 + c];
    }
    __syncwarp();
}

/// Lane 4g + i reads 8 channels from 8g on of tokens 4i .. 4i + 3 of a span of 64.
template <class C>
__device__ inline void DenseWalk<C>::load_values(const unsigned char* page, int first,
                                                 Visible readable, int position, int span,
                                                 uint4 (&tokens)[4]) const {
    const unsigned char* rows = page + std::int64_t{2} * kPageTokens * head_dim;
#pragma unroll
    for (int t = 0; t < 4; ++t) {
        const int at = position + 4 * i + t;
        tokens[t] = load(rows, first + 4 * i + t, 64 * span + 8 * g,
                         at >= readable.begin && at < readable.end);
    }
}

/// A pair of channels is two rows of a product.
template <class C>
__device__ inline void DenseWalk<C>::add_values(const uint4 (&tokens)[4], int span,
                                                std::uint32_t b0, std::uint32_t b1) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        std::uint32_t pair[4];
#pragma unroll
        for (int t = 0; t < 4; ++t)
            pair[t] = j == 0   ? tokens[t].x
                      : j == 1 ? tokens[t].y
                      : j == 2 ? tokens[t].z
                               : tokens[t].w;
        multiply_f16(out[span][j], __byte_perm(pair[0], pair[1], 0x5410),
                     __byte_perm(pair[0], pair[1], 0x7632), __byte_perm(pair[2], pair[3], 0x5410),
                     __byte_perm(pair[2], pair[3], 0x7632), b0, b1);
    }
}

__device__ inline std::uint32_t two_halves(float first, float second) {
    const __half2 both = __floats2half2_rn(first, second);
    return *reinterpret_cast<const std::uint32_t*>(&both);
}

/// Tokens first .. first + 15 of a page, the first of them at `position`. Those that are not readable are memory
/// that may hold anything, and that no row sees.
template <class C>
__device__ inline void DenseWalk<C>::attend(const BlockShared<C>& shared, const RowRules& rules,
                                            const unsigned char* page, int first, Visible readable,
                                            int position) {
    // Values are asked for with the keys where there are registers for them.
    constexpr bool kEarly = C::kBlocks <= 2;
    uint4 tokens[C::kBlocks][4];
#pragma unroll
    for (int span = 0; span < C::kBlocks && kEarly; ++span)
        load_values(page, first, readable, position, span, tokens[span]);
    keys(shared, page, first, readable, position);
    const float4 four = *reinterpret_cast<const float4*>(exchange + g * C::kExchangeStride + 4 * i);
    float logits[4] = {four.x * scale, four.y * scale, four.z * scale, four.w * scale};
    __syncwarp(); // before the next ones are written
    apply_rules(rules, rules.whole(position, kDenseTokens), position + 4 * i, logits);
    float top = fmaxf(fmaxf(logits[0], logits[1]), fmaxf(logits[2], logits[3]));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    // Here the reference is the maximum: probabilities are fp16.
    const bool outgrown = top > state.reference;
    if (__any_sync(~0u, outgrown) != 0) {
        const float factor = outgrown ? fast_exp2(state.reference - top) : 1.0f;
        if (outgrown) state.reference = top;
        state.weight *= factor;
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            const float of_column = __shfl_sync(~0u, factor, 4 * (2 * i + c));
#pragma unroll
            for (int span = 0; span < C::kBlocks; ++span)
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    out[span][j][c] *= of_column;
                    out[span][j][2 + c] *= of_column;
                }
        }
    }
    float p[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) {
        p[t] = fast_exp2(logits[t] - state.reference);
        state.weight += p[t];
    }
#pragma unroll
    for (int span = 0; span < C::kBlocks; ++span) {
        if constexpr (!kEarly) load_values(page, first, readable, position, span, tokens[span]);
        add_values(tokens[span], span, two_halves(p[0], p[1]), two_halves(p[2], p[3]));
    }
}

template <class C>
__device__ inline void DenseWalk<C>::write_state(float* sums, RowState (*states)[kMaxWarps]) {
    float weight = state.weight;
    weight += __shfl_xor_sync(~0u, weight, 1);
    weight += __shfl_xor_sync(~0u, weight, 2);
    if (i == 0 && g < C::kRows) states[g][thread.warp] = {state.reference, weight};
#pragma unroll
    for (int span = 0; span < C::kBlocks; ++span)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                const int row = 2 * i + c;
                if (row >= C::kRows) continue;
                float* to = sums + row * C::kDim + 64 * span + 8 * g + 2 * j;
                *reinterpret_cast<float2*>(to) = {out[span][j][c], out[span][j][2 + c]};
            }
}

} // namespace innerkv::cuda
