// SPDX-License-Identifier: Apache-2.0
// The integer dot products of one block (32 tokens x 64 channels) with a few rows. Included inside an
// instruction set's namespace, after expand.h.

/// What zero-points do to a sum.
enum class Zeros {
    none,
    values, ///< zero * sum of the other side: BlockScales::zero is what a code 0 stands for
    steps,  ///< likewise, in eighths of a step of the scale
};

/// Rows and their scratch, from the first row of the call on.
struct KeyBlock {
    const std::byte* codes;
    const std::byte* ahead; ///< the block of a later page to prefetch
    const BlockScales* scales;
    const std::int8_t* q; ///< [rows][q_stride], at this block's first channel
    std::ptrdiff_t q_stride;
    const std::int32_t* starts; ///< [4][kMaxRows]: -bias * sum(q) at each tile's position
    const float* weights;       ///< [4][kMaxRows]: what a tile's zero-points are multiplied by
    const float* q_scales;      ///< [2][kMaxRows]
    const float* before;        ///< [rows][32]: logits from blocks before this one
    float* logits;              ///< [rows][32]
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

/// onto + scale * (sum * tile's scales), and what its zero-points add.
template <Zeros zeros>
inline Floats add_scaled(Sums sums, Floats scale, float weight, const BlockScales& scales, int tile,
                         Floats onto) {
    Floats sum = to_floats(sums);
    if (zeros == Zeros::steps)
        sum = fused_multiply_add(scales.zero[tile], broadcast(weight), sum);
    onto = fused_multiply_add(multiply(sum, scale), scales.scale[tile], onto);
    if (zeros == Zeros::values)
        onto = fused_multiply_add(scales.zero[tile], broadcast(weight), onto);
    return onto;
}

/// Sums times scales, onto the logits.
template <Zeros zeros, int rows>
inline void add_logits(const KeyBlock& block, const BlockSums<rows>& sums) {
#pragma GCC unroll 4
    for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            const int at = row * 32 + 16 * half;
            Floats logits = load(block.before + at);
#pragma GCC unroll 2
            for (int group = 0; group < 2; ++group) {
                const int tile = 2 * group + half;
                const Floats scale = broadcast(block.q_scales[group * kMaxRows + row]);
                logits = add_scaled<zeros>(sums.at[row][tile], scale,
                                           block.weights[tile * kMaxRows + row], *block.scales,
                                           tile, logits);
            }
            store(logits, block.logits + at);
        }
    }
}

template <Layout layout, Zeros zeros, int rows>
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
    add_logits<zeros, rows>(block, sums);
}

struct ValueBlock {
    const std::byte* codes;
    const std::byte* ahead; ///< the block of a later page to prefetch
    const BlockScales* scales;
    const std::uint8_t* p;      ///< [rows][32]
    const std::int32_t* starts; ///< [4][kMaxRows]: -bias * sum(p) at each tile's position
    const float* weights;       ///< [4][kMaxRows]: what a tile's zero-points are multiplied by
    const float* p_scales;      ///< [kMaxRows]
    float* out;                 ///< [rows][out_stride], at this block's first channel; added to
    std::ptrdiff_t out_stride;
};

/// Sums times scales, onto the output.
template <Zeros zeros, int rows>
inline void add_values(const ValueBlock& block, const BlockSums<rows>& sums) {
#pragma GCC unroll 4
    for (int row = 0; row < rows; ++row) {
        const Floats scale = broadcast(block.p_scales[row]);
#pragma GCC unroll 4
        for (int tile = 0; tile < 4; ++tile) {
            float* to = block.out + row * block.out_stride + 16 * tile;
            store(add_scaled<zeros>(sums.at[row][tile], scale,
                                    block.weights[tile * kMaxRows + row], *block.scales, tile,
                                    load(to)),
                  to);
        }
    }
}

template <Layout layout, Zeros zeros, int rows>
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
    add_values<zeros, rows>(block, sums);
}

/// By layout, zero-points and rows - 1. K's bytes are unsigned, V's signed: the unsigned side of dot is
/// the first.
using KeyBlockFunction = void (*)(const KeyBlock&);
using ValueBlockFunction = void (*)(const ValueBlock&);

/// As many rows, or 1 where registers hold no more: such a function is not called.
constexpr int kTwoRows = kRowsInRegisters >= 2 ? 2 : 1;
constexpr int kThreeRows = kRowsInRegisters >= 3 ? 3 : 1;
constexpr int kFourRows = kRowsInRegisters >= 4 ? 4 : 1;

template <Layout layout, Zeros zeros>
constexpr KeyBlockFunction key_block_of(int rows) {
    constexpr KeyBlockFunction functions[] = {
        key_block<layout, zeros, 1>, key_block<layout, zeros, kTwoRows>,
        key_block<layout, zeros, kThreeRows>, key_block<layout, zeros, kFourRows>};
    return functions[rows - 1];
}

template <Layout layout, Zeros zeros>
constexpr ValueBlockFunction value_block_of(int rows) {
    constexpr ValueBlockFunction functions[] = {
        value_block<layout, zeros, 1>, value_block<layout, zeros, kTwoRows>,
        value_block<layout, zeros, kThreeRows>, value_block<layout, zeros, kFourRows>};
    return functions[rows - 1];
}

using KeyBlockOf = KeyBlockFunction (*)(int rows);
using ValueBlockOf = ValueBlockFunction (*)(int rows);

constexpr int kZeros = 3;
template <Layout layout>
constexpr KeyBlockOf kKeyBlocksOf[kZeros] = {key_block_of<layout, Zeros::none>,
                                             key_block_of<layout, Zeros::values>,
                                             key_block_of<layout, Zeros::steps>};
template <Layout layout>
constexpr ValueBlockOf kValueBlocksOf[kZeros] = {value_block_of<layout, Zeros::none>,
                                                 value_block_of<layout, Zeros::values>,
                                                 value_block_of<layout, Zeros::steps>};

constexpr const KeyBlockOf* kKeyBlocks[kLayouts] = {kKeyBlocksOf<two_bits>,
                                                    kKeyBlocksOf<three_bits>,
                                                    kKeyBlocksOf<four_bits>,
                                                    kKeyBlocksOf<unsigned_bytes>,
                                                    nullptr,
                                                    kKeyBlocksOf<small>,
                                                    kKeyBlocksOf<bytes>};
constexpr const ValueBlockOf* kValueBlocks[kLayouts] = {kValueBlocksOf<two_bits>,
                                                        kValueBlocksOf<three_bits>,
                                                        kValueBlocksOf<four_bits>,
                                                        nullptr,
                                                        kValueBlocksOf<signed_bytes>,
                                                        kValueBlocksOf<small>,
                                                        kValueBlocksOf<bytes>};
