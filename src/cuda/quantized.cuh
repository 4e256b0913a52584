// SPDX-License-Identifier: Apache-2.0
// A warp's walk over quantized pages: integer products with keys, softmax, integer products with values.
// docs/kernels.md counts what a page costs.
//
//     keys      sums[token][column] per 32 channels, scaled onto logits; through shared memory from where products
//               leave them (a token's columns) to where probabilities are needed (a column's tokens)
//     softmax   p = round(255 * 2^(logit - page's largest)); p_scale = 2^(page's largest - reference) / 255
//     values    out[channel][column] += v_scale[channel] * p_scale[column] * sum
#pragma once

#include "cuda/query.cuh"
#include "cuda/softmax.cuh"
#include "cuda/stream.cuh"

namespace innerkv::cuda {

/// Scales of probabilities are this much too large, since affine scales are 2^112 too small as they are read.
inline constexpr float kValueUnit = 0x1p80f;
template <class S>
constexpr float value_rest() {
    return has_small_scales(S::kind) ? 0x1p112f / kValueUnit : 1.0f / kValueUnit;
}

template <class C>
struct Walk {
    using Key = typename C::Key;
    using Value = typename C::Value;
    /// A lane's sums of a block of values: tiles, or pairs of tiles, of two rows and two columns.
    static constexpr int kTiles = C::kPacked ? 2 : 4;
    /// Logits of one row that a lane has: of a quad, or of two.
    static constexpr int kLogits = C::kPacked ? 4 : 8;

    std::uint32_t q[C::kBlocks][C::kPacked ? 2 : 4]; ///< b operands, see load_queries
    float out[C::kBlocks][kTiles][4];
    float key_scale;
    RowState state{kNoReference, 0.0f}; ///< of the lane's row; weight: its own tokens'
    RowRules rules;
    float* exchange;
    int warp;
    int g;
    int i;

    __device__ Walk(const AttentionParams& params, const BlockShared<C>& shared, int run_end,
                    float* buffer, const Thread& thread)
        : exchange(buffer), warp(thread.warp), g(thread.g), i(thread.i) {
        rules = row_rules(params, shared, row()).within(run_end);
        load_queries(shared);
        // Packed: a lane's four tokens are all of one half; otherwise lanes 0, 1 and 2, 3 have one each.
        key_scale = shared.key_scale[row()];
        if (i >= 2) key_scale *= 1.0f / static_cast<float>(1 << position_low(Key::bits));
#pragma unroll
        for (int block = 0; block < C::kBlocks; ++block)
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
                for (int e = 0; e < 4; ++e) out[block][tile][e] = 0.0f;
    }

    /// The row whose logits this lane has.
    __device__ int row() const { return C::kPacked ? g % 4 : g; }
    /// The two rows whose sums it has.
    __device__ int column(int c) const { return C::kPacked ? 2 * (i % 2) + c : 2 * i + c; }
    /// The first of its tokens in the page: 8 i + 4 (g / 4) or 8 i.
    __device__ int first_token() const { return C::kPacked ? 8 * i + 4 * (g / 4) : 8 * i; }

    __device__ void load_queries(const BlockShared<C>& shared) {
#pragma unroll
        for (int block = 0; block < C::kBlocks; ++block) {
            if constexpr (C::kPacked) {
                // Lower lanes meet the block's first 32 channels, upper ones the other 32.
                const auto codes = *reinterpret_cast<const uint2*>(
                    &shared.q_codes[g % 4][64 * block + 32 * (g / 4) + 8 * i]);
                q[block][0] = codes.x;
                q[block][1] = codes.y;
            } else {
#pragma unroll
                for (int high = 0; high < 2; ++high) {
                    const auto codes = *reinterpret_cast<const uint2*>(
                        &shared.q_codes[g][64 * block + 32 * high + 8 * i]);
                    q[block][2 * high] = codes.x;
                    q[block][2 * high + 1] = codes.y;
                }
            }
        }
    }

    __device__ void attend(const BlockShared<C>& shared, PageStream<C>& stream, int first_position,
                           const float* offsets);
    __device__ void keys(const BlockShared<C>& shared, const unsigned char* page);
    __device__ void read_logits(float (&logits)[kLogits], float offset) const;
    __device__ float page_top(const float (&logits)[kLogits]) const;
    __device__ void raise_reference(float top);
    __device__ void values(const unsigned char* blocks, std::uint32_t first, std::uint32_t second,
                           float scale);
    __device__ void write_state(float* sums, RowState (*states)[kMaxWarps]);
};

/// Sums of one block of keys onto logits[half][row][column].
template <class C>
__device__ inline void add_key_block(const Walk<C>& walk, const BlockShared<C>& shared,
                                     const unsigned char* codes, int block,
                                     float (&logits)[2][2][2]) {
    using Key = typename C::Key;
    const QuadPair quads = load_quads<Key::bits>(codes, walk.g, walk.i);
    const unsigned char* scales = codes + Key::code_bytes;
    constexpr int kHighs = C::kPacked ? 1 : 2;
#pragma unroll
    for (int h = 0; h < kHighs; ++h) {
        const int high = C::kPacked ? walk.i / 2 : h;
        KeyColumn columns[2];
#pragma unroll
        for (int c = 0; c < 2; ++c) columns[c] = shared.key_columns[block][high][walk.column(c)];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            Accumulator sum = magic_accumulator();
            if constexpr (C::kPacked) {
                const bool lower = walk.g < 4;
#pragma unroll
                for (int p = 0; p < 2; ++p)
                    multiply_u8_s8(sum, quads.quad[p][half][0], quads.quad[p][half][1],
                                   quads.quad[p][half + 2][0], quads.quad[p][half + 2][1],
                                   lower ? walk.q[block][p] : 0, lower ? 0 : walk.q[block][p]);
            } else {
                const int tile = 2 * h + half;
                multiply_u8_s8(sum, quads.quad[0][tile][0], quads.quad[0][tile][1],
                               quads.quad[1][tile][0], quads.quad[1][tile][1], walk.q[block][2 * h],
                               walk.q[block][2 * h + 1]);
            }
            const RowScales rows = load_scales<Key>(scales, 2 * high + half, walk.g);
            constexpr float kLow = 1 << position_low(Key::bits);
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                const ColumnScale column{columns[c].scale,
                                         half == 0 ? columns[c].add : columns[c].second_add,
                                         half == 0 ? columns[c].weight : columns[c].weight * kLow};
#pragma unroll
                for (int row = 0; row < 2; ++row)
                    logits[half][row][c] = add_group<Key>(sum.at(2 * row + c), rows, row, column,
                                                          logits[half][row][c]);
            }
        }
    }
}

/// Logits of a page, yet unscaled, into `exchange`: [i / 2][row][32] packed, [row][32] otherwise.
template <class C>
__device__ inline void Walk<C>::keys(const BlockShared<C>& shared, const unsigned char* page) {
    float logits[2][2][2] = {};
#pragma unroll
    for (int block = 0; block < C::kBlocks; ++block)
        add_key_block(*this, shared, page + block * Key::block_bytes, block, logits);
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            const int at = (C::kPacked ? 4 * (i / 2) + column(c) : column(c)) * C::kExchangeStride +
                           16 * half + 2 * g;
            *reinterpret_cast<float2*>(exchange + at) = {logits[half][0][c], logits[half][1][c]};
        }
    __syncwarp();
}

template <class C>
__device__ inline void Walk<C>::read_logits(float (&logits)[kLogits], float offset) const {
    const float* at = exchange + row() * C::kExchangeStride + first_token();
#pragma unroll
    for (int t = 0; t < kLogits; t += 4) {
        float4 four = *reinterpret_cast<const float4*>(at + t);
        if constexpr (C::kPacked) {
            const float4 other = *reinterpret_cast<const float4*>(at + 4 * C::kExchangeStride + t);
            four = {four.x + other.x, four.y + other.y, four.z + other.z, four.w + other.w};
        }
        logits[t] = fmaf(four.x, key_scale, offset);
        logits[t + 1] = fmaf(four.y, key_scale, offset);
        logits[t + 2] = fmaf(four.z, key_scale, offset);
        logits[t + 3] = fmaf(four.w, key_scale, offset);
    }
}

/// The largest of the row's logits, finite.
template <class C>
__device__ inline float Walk<C>::page_top(const float (&logits)[kLogits]) const {
    float top = kNoReference;
#pragma unroll
    for (int t = 0; t < kLogits; ++t) top = fmaxf(top, logits[t]);
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    if constexpr (C::kPacked) top = fmaxf(top, __shfl_xor_sync(~0u, top, 16));
    return top;
}

/// Moves references that `top` has outgrown.
template <class C>
__device__ inline void Walk<C>::raise_reference(float top) {
    const bool outgrown = top > state.reference + kReferenceSlack;
    if (__any_sync(~0u, outgrown) == 0) return;
    const float factor = outgrown ? fast_exp2(state.reference - top) : 1.0f;
    if (outgrown) state.reference = top;
    state.weight *= factor;
#pragma unroll
    for (int c = 0; c < 2; ++c) {
        const float of_column = __shfl_sync(~0u, factor, 4 * column(c));
#pragma unroll
        for (int block = 0; block < C::kBlocks; ++block)
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
                for (int row = 0; row < 2; ++row) out[block][tile][2 * row + c] *= of_column;
    }
}

/// round(255 * 2^x) of four tokens, a byte each; x <= 0.
__device__ inline std::uint32_t probabilities(const float* logits, float top) {
    constexpr float kRound = 8388608.0f; // 2^23: the integer is in the lower bits
    std::uint32_t p[4];
#pragma unroll
    for (int t = 0; t < 4; ++t)
        p[t] = __float_as_uint(fmaf(fast_exp2(logits[t] - top), 255.0f, kRound));
    return __byte_perm(__byte_perm(p[0], p[1], 0x0040), __byte_perm(p[2], p[3], 0x0040), 0x5410);
}

/// `first`, `second`: b operands' bytes; packed: this lane's quad and the other one of its eight tokens.
template <class C>
__device__ inline void Walk<C>::values(const unsigned char* blocks, std::uint32_t first,
                                       std::uint32_t second, float scale) {
    std::uint32_t b[2][2]; // of the two mma of a pair of tiles; otherwise b[0] alone
    const bool lower = g < 4;
    if constexpr (C::kPacked) {
        b[0][0] = lower ? first : 0;
        b[0][1] = lower ? 0 : second;
        b[1][0] = lower ? second : 0;
        b[1][1] = lower ? 0 : first;
    } else {
        b[0][0] = first;
        b[0][1] = second;
    }
    constexpr int kProducts = C::kPacked ? 2 : 1;
    constexpr std::uint32_t kOnes = 0x01010101;
    Accumulator ones = magic_accumulator(); // columns' sums of probabilities
#pragma unroll
    for (int p = 0; p < kProducts; ++p)
        multiply_u8_u8(ones, kOnes, kOnes, kOnes, kOnes, b[p][0], b[p][1]);

    ColumnScale columns[2][kTiles];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
        const float sum = ones.at(c) - kMagic;
        const float of_column = __shfl_sync(~0u, scale, 4 * column(c));
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
            const int low = tile % 2;
            const int high = C::kPacked ? i / 2 : tile / 2;
            const float factor = static_cast<float>(
                1 << (position_low(Value::bits) * low + position_high(Value::bits) * high));
            columns[c][tile] = column_scale<Value>(sum, of_column, factor);
        }
    }
#pragma unroll
    for (int block = 0; block < C::kBlocks; ++block) {
        const unsigned char* codes = blocks + block * Value::block_bytes;
        const QuadPair quads = load_quads<Value::bits>(codes, g, i);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
            Accumulator sum = magic_accumulator();
            if constexpr (C::kPacked) {
#pragma unroll
                for (int p = 0; p < 2; ++p)
                    multiply_u8_u8(sum, quads.quad[p][tile][0], quads.quad[p][tile][1],
                                   quads.quad[p][tile + 2][0], quads.quad[p][tile + 2][1], b[p][0],
                                   b[p][1]);
            } else {
                multiply_u8_u8(sum, quads.quad[0][tile][0], quads.quad[0][tile][1],
                               quads.quad[1][tile][0], quads.quad[1][tile][1], b[0][0], b[0][1]);
            }
            const int of_block = C::kPacked ? tile + 2 * (i / 2) : tile;
            const RowScales rows = load_scales<Value>(codes + Value::code_bytes, of_block, g);
#pragma unroll
            for (int c = 0; c < 2; ++c)
#pragma unroll
                for (int row = 0; row < 2; ++row)
                    out[block][tile][2 * row + c] =
                        add_group<Value>(sum.at(2 * row + c), rows, row, columns[c][tile],
                                         out[block][tile][2 * row + c]);
        }
    }
}

/// The next page, whose first token is at `first_position`; `offsets`: of its epoch, by row.
template <class C>
__device__ inline void Walk<C>::attend(const BlockShared<C>& shared, PageStream<C>& stream,
                                       int first_position, const float* offsets) {
    keys(shared, stream.keys());
    float logits[kLogits];
    read_logits(logits, offsets[row()]);
    apply_rules(rules, rules.whole(first_position, kPageTokens), first_position + first_token(),
                logits);
    const float top = page_top(logits);
    raise_reference(top);
    const float scale = exact_with_magic(fast_exp2(top - state.reference) * (kValueUnit / 255.0f));
    const std::uint32_t first = probabilities(logits, top);
    std::uint32_t second = 0;
    unsigned sum = __dp4a(first, 0x01010101u, 0u);
    if constexpr (C::kPacked) {
        second = __shfl_xor_sync(~0u, first, 16);
    } else {
        second = probabilities(logits + 4, top);
        sum = __dp4a(second, 0x01010101u, sum);
    }
    state.weight = fmaf(scale, static_cast<float>(sum), state.weight);
    values(stream.values(), first, second, scale);
}

/// The warp's sums, [row][channel], and its rows' states.
template <class C>
__device__ inline void Walk<C>::write_state(float* sums, RowState (*states)[kMaxWarps]) {
    float weight = state.weight;
    weight += __shfl_xor_sync(~0u, weight, 1);
    weight += __shfl_xor_sync(~0u, weight, 2);
    if constexpr (C::kPacked) weight += __shfl_xor_sync(~0u, weight, 16);
    if (i == 0 && g < C::kRows) states[g][warp] = {state.reference, weight / kValueUnit};
#pragma unroll
    for (int block = 0; block < C::kBlocks; ++block)
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
            const int of_block = C::kPacked ? tile + 2 * (i / 2) : tile;
            const float factor =
                value_rest<Value>() / static_cast<float>(1 << position_of<Value>(of_block));
#pragma unroll
            for (int c = 0; c < 2; ++c)
#pragma unroll
                for (int row = 0; row < 2; ++row)
                    sums[column(c) * C::kDim + 64 * block + 16 * of_block + 2 * g + row] =
                        out[block][tile][2 * row + c] * factor;
        }
}

} // namespace innerkv::cuda
