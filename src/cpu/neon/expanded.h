// SPDX-License-Identifier: Apache-2.0
// Products of expanded blocks, a tile at a time with up to four rows, where generic/expanded.h has four tiles
// with one row: codes, scales and zero-points are loaded once for all of them, and a register of a row's
// bytes serves four quads, each a lane of the instruction's second operand. Included in its place.

/// For more rows blocks are expanded once.
constexpr int kRowsOfPackedCodes = kRowsInRegisters;

/// Nothing has to be set up.
struct ExpandedProducts {
    explicit ExpandedProducts(int /*rows*/) {}
};

constexpr int kStripRows = 4; ///< sixteen accumulators, four registers of codes, four of rows

/// The rows' bytes of a tile: where they begin, and from row to row.
struct RowBytes {
    const std::uint8_t* first;
    std::ptrdiff_t stride;
};
inline RowBytes row_bytes(const KeyBlock& block, int first, int tile) {
    return {reinterpret_cast<const std::uint8_t*>(block.q) + first * block.q_stride +
                32 * (tile / 2),
            block.q_stride};
}
inline RowBytes row_bytes(const ValueBlock& block, int first, int /*tile*/) {
    return {block.p + first * kTokens, kTokens};
}

/// Products of a quad's codes with lane `lane` of a row's bytes.
template <int lane>
inline Sums dot_lane(const KeyBlock&, Sums sums, Quads codes, uint8x16_t queries) {
    return each(
        [=](auto sum, auto code) {
            return vdotq_laneq_s32(sum, vreinterpretq_s8_u32(code), vreinterpretq_s8_u8(queries),
                                   lane);
        },
        sums, codes);
}
template <int lane>
inline Sums dot_lane(const ValueBlock&, Sums sums, Quads codes, uint8x16_t probabilities) {
    return each(
        [=](auto sum, auto code) {
            return vreinterpretq_s32_u32(vdotq_laneq_u32(
                vreinterpretq_u32_s32(sum), vreinterpretq_u8_u32(code), probabilities, lane));
        },
        sums, codes);
}

template <int lane, int rows, typename Block>
inline void add_quad(const Block& block, const std::byte* codes, const uint8x16_t (&bytes)[rows],
                     Sums (&sums)[rows]) {
    const Quads quad = load_quads(codes + 4 * lane * kQuadBytes);
#pragma GCC unroll 4
    for (int row = 0; row < rows; ++row)
        sums[row] = dot_lane<lane>(block, sums[row], quad, bytes[row]);
    asm volatile("" ::: "memory"); // loads of later quads would take the registers of sums
}

/// Sums of `rows` rows from row `first` on with one tile.
template <Zeros zeros, int rows, typename Block>
[[gnu::always_inline]] inline void sum_tile(const Block& block, int first, int tile,
                                            Sums (&sums)[rows]) {
#pragma GCC unroll 4
    for (int row = 0; row < rows; ++row)
        sums[row] =
            broadcast_int(zeros == Zeros::steps ? 0 : block.starts[tile * kMaxRows + first + row]);
    const RowBytes from = row_bytes(block, first, tile);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
        uint8x16_t bytes[rows];
#pragma GCC unroll 4
        for (int row = 0; row < rows; ++row)
            bytes[row] = vld1q_u8(from.first + row * from.stride + 16 * half);
        const std::byte* codes = block.codes + (16 * half + tile) * kQuadBytes;
        add_quad<0>(block, codes, bytes, sums);
        add_quad<1>(block, codes, bytes, sums);
        add_quad<2>(block, codes, bytes, sums);
        add_quad<3>(block, codes, bytes, sums);
    }
}

template <Zeros zeros, int rows>
void multiply_strip(const KeyBlock& block, int first) {
    for (int tile = 0; tile < 4; ++tile) {
        Sums sums[rows];
        sum_tile<zeros>(block, first, tile, sums);
        const TileScales scales = load_scales<zeros>(block.bits, block.scales, tile);
        const int half = tile % 2;
        const float* before = tile < 2 ? block.before : block.logits;
        const std::ptrdiff_t stride = tile < 2 ? block.before_stride : kTokens;
#pragma GCC unroll 4
        for (int row = 0; row < rows; ++row)
            store(add_scaled<zeros>(sums[row], scales,
                                    block.q_scales[tile * kMaxRows + first + row],
                                    block.weights[tile * kMaxRows + first + row],
                                    load(before + (first + row) * stride + 16 * half)),
                  block.logits + (first + row) * kTokens + 16 * half);
    }
}

template <Zeros zeros, int rows>
void multiply_strip(const ValueBlock& block, int first) {
    for (int tile = 0; tile < 4; ++tile) {
        Sums sums[rows];
        sum_tile<zeros>(block, first, tile, sums);
        const TileScales scales = load_scales<zeros>(block.bits, block.scales, tile);
#pragma GCC unroll 4
        for (int row = 0; row < rows; ++row) {
            float* to = block.out + (first + row) * block.out_stride + 16 * tile;
            store(add_scaled<zeros>(sums[row], scales,
                                    block.p_scales[tile * kMaxRows + first + row],
                                    block.weights[tile * kMaxRows + first + row], load(to)),
                  to);
        }
    }
}

/// By rows - 1.
template <Zeros zeros, typename Block>
constexpr void (*kStripsByRows[])(const Block&,
                                  int first) = {multiply_strip<zeros, 1>, multiply_strip<zeros, 2>,
                                                multiply_strip<zeros, 3>, multiply_strip<zeros, 4>};
/// By zero-points and rows - 1.
template <typename Block>
constexpr void (*const* kStrips[])(const Block&, int first) = {
    kStripsByRows<Zeros::none, Block>, kStripsByRows<Zeros::values, Block>,
    kStripsByRows<Zeros::marked, Block>, kStripsByRows<Zeros::steps, Block>};

template <typename Block>
inline void multiply_expanded(const Block* blocks, int count, int rows, bool /*is_small*/,
                              Zeros zeros) {
    const auto* by_rows = kStrips<Block>[static_cast<int>(zeros)];
    for (int i = 0; i < count; ++i) multiply_rows<kStripRows>(blocks[i], rows, by_rows);
}
