// SPDX-License-Identifier: Apache-2.0
// The integer dot products of one block (32 tokens x 64 channels) with a few rows. Included inside an
// instruction set's namespace, after expand.h.

/// Rows and their scratch. Functions of blocks take `rows` rows from row `first` on.
struct KeyBlock {
    const std::byte* codes;
    Ahead ahead;
    const std::byte* scales;
    int bits;                   ///< of a code
    const std::int32_t* starts; ///< [4][kMaxRows]: -bias * sum(q) at each tile's position
    const float* weights;       ///< [4][kMaxRows]: what a tile's zero-points are multiplied by
    const std::int8_t* q;       ///< [rows][q_stride], at this block's first channel
    std::ptrdiff_t q_stride;
    const float* q_scales; ///< [4][kMaxRows]: what a tile's sums are multiplied by
    const float* before;   ///< [rows][before_stride]: logits from blocks before this one
    std::ptrdiff_t before_stride;
    float* logits; ///< [rows][32]
    Probabilities* meanwhile;
};

/// Sums of `rows` rows with the four tiles.
template <Zeros zeros, int rows>
struct BlockSums {
    Sums at[rows][4];

    /// Affine codes have no bias: their products need not wait until the probabilities are summed.
    BlockSums(const std::int32_t* starts, int first) {
#pragma GCC unroll 4
        for (int row = 0; row < rows; ++row)
#pragma GCC unroll 4
            for (int tile = 0; tile < 4; ++tile)
                at[row][tile] = broadcast_int(
                    zeros == Zeros::steps ? 0 : starts[tile * kMaxRows + first + row]);
    }
};

/// onto + scale * (sum * tile's scales), and what its zero-points add.
template <Zeros zeros>
inline Floats add_scaled(Sums sums, const TileScales& scales, float scale, float weight,
                         Floats onto) {
    Floats sum = to_floats(sums);
    if (zeros == Zeros::steps)
        sum = fused_multiply_add(scales.zero, broadcast(weight), sum);
    else if (zeros != Zeros::none)
        onto = fused_multiply_add(scales.zero, broadcast(weight), onto);
    return fused_multiply_add(multiply(sum, broadcast(scale)), scales.scale, onto);
}

/// Sums times scales, onto the logits.
template <Zeros zeros, int rows>
[[gnu::always_inline]] inline void add_logits(const KeyBlock& block, int first,
                                              const BlockSums<zeros, rows>& sums) {
    // Copies: stores could change the block, as far as the compiler knows.
    const int bits = block.bits;
    const std::byte* tile_scales = block.scales;
    const float* weights = block.weights + first;
    const float* q_scales = block.q_scales + first;
    const std::ptrdiff_t before_stride = block.before_stride;
    const float* before = block.before + first * before_stride;
    float* to = block.logits + first * kTokens;
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
        TileScales scales[2];
#pragma GCC unroll 2
        for (int group = 0; group < 2; ++group)
            scales[group] = load_scales<zeros>(bits, tile_scales, 2 * group + half);
#pragma GCC unroll 4
        for (int row = 0; row < rows; ++row) {
            Floats logits = load(before + row * before_stride + 16 * half);
#pragma GCC unroll 2
            for (int group = 0; group < 2; ++group) {
                const int tile = 2 * group + half;
                logits = add_scaled<zeros>(sums.at[row][tile], scales[group],
                                           q_scales[tile * kMaxRows + row],
                                           weights[tile * kMaxRows + row], logits);
            }
            store(logits, to + row * kTokens + 16 * half);
        }
    }
}

template <Layout layout, Zeros zeros, int rows>
void key_block(const KeyBlock& block, int first) {
    BlockSums<zeros, rows> sums(block.starts, first);
    const Ahead ahead = block.ahead.from(first);
    const std::ptrdiff_t q_stride = block.q_stride;
    const std::int8_t* q_first = block.q + first * q_stride;

    for (int pair = 0; pair < 4; ++pair) {
        if (kRowsInRegisters > 1) block.meanwhile->step(); // fewer registers would be spilled
        if (is_packed(layout)) ahead.prefetch_quarter(pair);
        const QuadPair codes = expand<layout>(block.codes, pair);
#pragma GCC unroll 4
        for (int row = 0; row < rows; ++row) {
            const std::int8_t* q = q_first + row * q_stride + 8 * pair;
#pragma GCC unroll 2
            for (int i = 0; i < 2; ++i) {
#pragma GCC unroll 4
                for (int tile = 0; tile < 4; ++tile) {
                    const Quads quad = broadcast_quad(q + 32 * (tile / 2) + 4 * i);
                    sums.at[row][tile] =
                        dot_keys<is_small(layout)>(sums.at[row][tile], codes.quad[i][tile], quad);
                }
            }
        }
    }
    add_logits<zeros, rows>(block, first, sums);
}

struct ValueBlock {
    const std::byte* codes;
    Ahead ahead;
    const std::byte* scales;
    int bits;                   ///< of a code
    const std::int32_t* starts; ///< [4][kMaxRows]: -bias * sum(p) at each tile's position
    const float* weights;       ///< [4][kMaxRows]: what a tile's zero-points are multiplied by
    const std::uint8_t* p;      ///< [rows][32]
    const float* p_scales;      ///< [4][kMaxRows]: what a tile's sums are multiplied by
    float* out;                 ///< [rows][out_stride], at this block's first channel; added to
    std::ptrdiff_t out_stride;
};

/// Sums times scales, onto the output.
template <Zeros zeros, int rows>
[[gnu::always_inline]] inline void add_values(const ValueBlock& block, int first,
                                              const BlockSums<zeros, rows>& sums) {
    const int bits = block.bits;
    const std::byte* tile_scales = block.scales;
    const float* weights = block.weights + first;
    const float* p_scales = block.p_scales + first;
    const std::ptrdiff_t stride = block.out_stride;
    float* out = block.out + first * stride;
#pragma GCC unroll 4
    for (int tile = 0; tile < 4; ++tile) {
        const TileScales scales = load_scales<zeros>(bits, tile_scales, tile);
#pragma GCC unroll 4
        for (int row = 0; row < rows; ++row) {
            float* to = out + row * stride + 16 * tile;
            store(add_scaled<zeros>(sums.at[row][tile], scales, p_scales[tile * kMaxRows + row],
                                    weights[tile * kMaxRows + row], load(to)),
                  to);
        }
    }
}

template <Layout layout, Zeros zeros, int rows>
void value_block(const ValueBlock& block, int first) {
    BlockSums<zeros, rows> sums(block.starts, first);
    const Ahead ahead = block.ahead.from(first);
    const std::uint8_t* p = block.p + first * kTokens;

    for (int pair = 0; pair < 4; ++pair) {
        const QuadPair codes = expand<layout>(block.codes, pair);
        if (is_packed(layout)) ahead.prefetch_quarter(pair);
#pragma GCC unroll 4
        for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 2
            for (int i = 0; i < 2; ++i) {
                const Quads quad = broadcast_quad(p + row * kTokens + 8 * pair + 4 * i);
#pragma GCC unroll 4
                for (int tile = 0; tile < 4; ++tile)
                    sums.at[row][tile] =
                        dot_values<is_small(layout)>(sums.at[row][tile], quad, codes.quad[i][tile]);
            }
        }
    }
    add_values<zeros, rows>(block, first, sums);
}

using KeyBlockFunction = void (*)(const KeyBlock&, int first);
using ValueBlockFunction = void (*)(const ValueBlock&, int first);

/// As many rows, or 1 where registers hold no more: such a function is not called.
constexpr int kTwoRows = kRowsInRegisters >= 2 ? 2 : 1;
constexpr int kThreeRows = kRowsInRegisters >= 3 ? 3 : 1;
constexpr int kFourRows = kRowsInRegisters >= 4 ? 4 : 1;

/// By rows - 1.
template <Layout layout, Zeros zeros>
constexpr KeyBlockFunction kKeyBlocksByRows[] = {
    key_block<layout, zeros, 1>, key_block<layout, zeros, kTwoRows>,
    key_block<layout, zeros, kThreeRows>, key_block<layout, zeros, kFourRows>};
template <Layout layout, Zeros zeros>
constexpr ValueBlockFunction kValueBlocksByRows[] = {
    value_block<layout, zeros, 1>, value_block<layout, zeros, kTwoRows>,
    value_block<layout, zeros, kThreeRows>, value_block<layout, zeros, kFourRows>};

/// By zero-points and rows - 1.
template <Layout layout>
constexpr const KeyBlockFunction* kKeyBlocksByZeros[] = {
    kKeyBlocksByRows<layout, Zeros::none>, kKeyBlocksByRows<layout, Zeros::values>,
    kKeyBlocksByRows<layout, Zeros::marked>, kKeyBlocksByRows<layout, Zeros::steps>};
template <Layout layout>
constexpr const ValueBlockFunction* kValueBlocksByZeros[] = {
    kValueBlocksByRows<layout, Zeros::none>, kValueBlocksByRows<layout, Zeros::values>,
    kValueBlocksByRows<layout, Zeros::marked>, kValueBlocksByRows<layout, Zeros::steps>};

/// By width (width_index), zero-points and rows - 1.
constexpr const KeyBlockFunction* const* kKeyBlocks[] = {
    kKeyBlocksByZeros<two_bits>, kKeyBlocksByZeros<three_bits>, kKeyBlocksByZeros<four_bits>,
    kKeyBlocksByZeros<layout_of(8, kSignedKeyBytes)>};
constexpr const ValueBlockFunction* const* kValueBlocks[] = {
    kValueBlocksByZeros<two_bits>, kValueBlocksByZeros<three_bits>, kValueBlocksByZeros<four_bits>,
    kValueBlocksByZeros<layout_of(8, kSignedValueBytes)>};

/// All rows of a block, `strip` at a time: as many as share codes in registers.
template <int strip = kRowsInRegisters, typename Block, typename Function>
inline void multiply_rows(const Block& block, int rows, const Function* by_rows) {
    for (int row = 0; row < rows; row += strip) {
        const int left = rows - row;
        by_rows[(left < strip ? left : strip) - 1](block, row);
    }
}
