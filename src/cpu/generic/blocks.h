// SPDX-License-Identifier: Apache-2.0
// The integer dot products of one block (32 tokens x 64 channels) with a few rows. Included inside an
// instruction set's namespace, after expand.h.

/// Rows and their scratch, from the first row of the call on.
struct KeyBlock {
    const std::byte* codes;
    const std::byte* ahead; ///< the block of a later page to prefetch
    const BlockScales* scales;
    bool zero_points;
    const std::int8_t* q; ///< [rows][q_stride], at this block's first channel
    std::ptrdiff_t q_stride;
    const std::int32_t* starts; ///< [4][kMaxRows]: -bias * sum(q) at each tile's position
    const float* q_scales;      ///< [2][kMaxRows]
    const float* q_weights; ///< [2][kMaxRows]: scale * sum(q), what a zero-point is multiplied by
    float* logits;          ///< [rows][32], added to
};

template <Layout layout>
inline Sums dot_codes(Sums sums, Quads unsigned_bytes, Quads signed_bytes) {
    return is_small(layout) ? dot_small(sums, unsigned_bytes, signed_bytes)
                            : dot(sums, unsigned_bytes, signed_bytes);
}

/// Sums of `rows` rows with the four tiles.
template <int rows>
struct BlockSums {
    Sums at[rows][4];

    explicit BlockSums(const std::int32_t* starts) {
#pragma GCC unroll 4
        for (int row = 0; row < rows; ++row)
#pragma GCC unroll 4
            for (int tile = 0; tile < 4; ++tile)
                at[row][tile] = broadcast_int(starts[tile * kMaxRows + row]);
    }
};

/// Sums times scales, onto the logits.
template <int rows>
inline void add_logits(const KeyBlock& block, const BlockSums<rows>& sums) {
#pragma GCC unroll 4
    for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            float* to = block.logits + row * 32 + 16 * half;
            Floats logits = load(to);
#pragma GCC unroll 2
            for (int group = 0; group < 2; ++group) {
                const int tile = 2 * group + half;
                const Floats scale = broadcast(block.q_scales[group * kMaxRows + row]);
                logits = fused_multiply_add(multiply(to_floats(sums.at[row][tile]), scale),
                                            block.scales->scale[tile], logits);
                if (block.zero_points)
                    logits = fused_multiply_add(broadcast(block.q_weights[group * kMaxRows + row]),
                                                block.scales->zero[tile], logits);
            }
            store(logits, to);
        }
    }
}

template <Layout layout, int rows>
void key_block(const KeyBlock& block) {
    BlockSums<rows> sums(block.starts);

    for (int pair = 0; pair < 4; ++pair) {
        const QuadPair codes = expand<layout>(block.codes, pair);
        prefetch_quarter<layout>(block.ahead, pair);
#pragma GCC unroll 4
        for (int row = 0; row < rows; ++row) {
            const std::int8_t* q = block.q + row * block.q_stride + 8 * pair;
#pragma GCC unroll 2
            for (int i = 0; i < 2; ++i) {
#pragma GCC unroll 4
                for (int tile = 0; tile < 4; ++tile) {
                    const Quads quad = broadcast_quad(q + 32 * (tile / 2) + 4 * i);
                    sums.at[row][tile] =
                        dot_codes<layout>(sums.at[row][tile], codes.quad[i][tile], quad);
                }
            }
        }
    }
    add_logits<rows>(block, sums);
}

struct ValueBlock {
    const std::byte* codes;
    const std::byte* ahead; ///< the block of a later page to prefetch
    const BlockScales* scales;
    bool zero_points;
    const std::uint8_t* p;      ///< [rows][32]
    const std::int32_t* starts; ///< [4][kMaxRows]: -bias * sum(p) at each tile's position
    const float* p_scales;      ///< [kMaxRows]
    const float* p_weights;     ///< [kMaxRows]: scale * sum(p)
    float* out;                 ///< [rows][out_stride], at this block's first channel; added to
    std::ptrdiff_t out_stride;
};

/// Sums times scales, onto the output.
template <int rows>
inline void add_values(const ValueBlock& block, const BlockSums<rows>& sums) {
#pragma GCC unroll 4
    for (int row = 0; row < rows; ++row) {
        const Floats scale = broadcast(block.p_scales[row]);
        const Floats weight = broadcast(block.p_weights[row]);
#pragma GCC unroll 4
        for (int tile = 0; tile < 4; ++tile) {
            float* to = block.out + row * block.out_stride + 16 * tile;
            Floats out = load(to);
            out = fused_multiply_add(multiply(to_floats(sums.at[row][tile]), scale),
                                     block.scales->scale[tile], out);
            if (block.zero_points) out = fused_multiply_add(weight, block.scales->zero[tile], out);
            store(out, to);
        }
    }
}

template <Layout layout, int rows>
void value_block(const ValueBlock& block) {
    BlockSums<rows> sums(block.starts);

    for (int pair = 0; pair < 4; ++pair) {
        const QuadPair codes = expand<layout>(block.codes, pair);
        prefetch_quarter<layout>(block.ahead, pair);
#pragma GCC unroll 4
        for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 2
            for (int i = 0; i < 2; ++i) {
                const Quads quad = broadcast_quad(block.p + row * 32 + 8 * pair + 4 * i);
#pragma GCC unroll 4
                for (int tile = 0; tile < 4; ++tile)
                    sums.at[row][tile] =
                        dot_codes<layout>(sums.at[row][tile], quad, codes.quad[i][tile]);
            }
        }
    }
    add_values<rows>(block, sums);
}

/// By layout and rows - 1. K's bytes are unsigned, V's signed: the unsigned side of dot is the first.
using KeyBlockFunction = void (*)(const KeyBlock&);
using ValueBlockFunction = void (*)(const ValueBlock&);

/// As many rows, or 1 where registers hold no more: such a function is not called.
constexpr int kTwoRows = kRowsInRegisters >= 2 ? 2 : 1;
constexpr int kThreeRows = kRowsInRegisters >= 3 ? 3 : 1;
constexpr int kFourRows = kRowsInRegisters >= 4 ? 4 : 1;

template <Layout layout>
constexpr KeyBlockFunction key_block_of(int rows) {
    constexpr KeyBlockFunction functions[] = {key_block<layout, 1>, key_block<layout, kTwoRows>,
                                              key_block<layout, kThreeRows>,
                                              key_block<layout, kFourRows>};
    return functions[rows - 1];
}

template <Layout layout>
constexpr ValueBlockFunction value_block_of(int rows) {
    constexpr ValueBlockFunction functions[] = {
        value_block<layout, 1>, value_block<layout, kTwoRows>, value_block<layout, kThreeRows>,
        value_block<layout, kFourRows>};
    return functions[rows - 1];
}

using KeyBlockOf = KeyBlockFunction (*)(int rows);
using ValueBlockOf = ValueBlockFunction (*)(int rows);

constexpr KeyBlockOf kKeyBlocks[kLayouts] = {key_block_of<two_bits>,
                                             key_block_of<three_bits>,
                                             key_block_of<four_bits>,
                                             key_block_of<unsigned_bytes>,
                                             nullptr,
                                             key_block_of<small>,
                                             key_block_of<bytes>};
constexpr ValueBlockOf kValueBlocks[kLayouts] = {
    value_block_of<two_bits>,     value_block_of<three_bits>, value_block_of<four_bits>, nullptr,
    value_block_of<signed_bytes>, value_block_of<small>,      value_block_of<bytes>};
