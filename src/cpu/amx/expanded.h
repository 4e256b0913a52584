// SPDX-License-Identifier: Apache-2.0
// Products of expanded blocks in tiles, as generic/expanded.h has them in registers. Included in its place.
//
// An instruction multiplies 16 rows x 32 inner bytes by 32 inner bytes x 16 lanes: 8192 products in 16
// cycles, where vpdpbusd takes 64. An expanded block is the second operand as it stands: its row k is the
// tile's k-th quad.

/// For more rows blocks are expanded once, and multiplied in tiles.
constexpr int kRowsOfPackedCodes = 2 * kRowsInRegisters;

constexpr int kTileInner = 32; ///< inner bytes of a product: a group

/// The operand of LDTILECFG.
struct alignas(64) TileConfiguration {
    std::uint8_t palette = 1;
    std::uint8_t start_row = 0;
    std::uint8_t reserved[14] = {};
    std::uint16_t bytes_of_row[16] = {};
    std::uint8_t rows[16] = {};
};

/// Intrinsics do not tell the compiler which memory they read.
inline void finish_stores(const void* from) { asm volatile("" ::"r"(from) : "memory"); }

/// Tiles 0 and 1 hold rows of queries or probabilities, 2 and 3 codes, 4 to 7 a block's sums.
struct ExpandedProducts {
    explicit ExpandedProducts(int rows) : in_use(rows > kRowsOfPackedCodes) {
        if (!in_use) return;
        TileConfiguration configuration;
        for (int tile = 0; tile < 8; ++tile) {
            const bool inner_rows = tile == 2 || tile == 3;
            configuration.rows[tile] =
                static_cast<std::uint8_t>(inner_rows ? kTileInner / 4 : rows);
            configuration.bytes_of_row[tile] = tile < 2 ? kTileInner : 64;
        }
        finish_stores(&configuration);
        _tile_loadconfig(&configuration);
    }
    ~ExpandedProducts() {
        if (in_use) _tile_release();
    }
    ExpandedProducts(const ExpandedProducts&) = delete;
    ExpandedProducts& operator=(const ExpandedProducts&) = delete;

    bool in_use;
};

/// Of a block's four tiles, without what they start from.
struct alignas(64) TileSums {
    std::int32_t at[4][kMaxRows][kLanes];
};

constexpr int kTileStride = 4 * kQuadBytes; ///< between quads of a tile

/// A block's tiles of codes times rows of keys' queries, in tiles 0 and 1, or of values' probabilities, in tile 0.
template <typename Block>
[[gnu::always_inline]] inline void multiply_tiles(const Block& block, TileSums& sums) {
    constexpr bool keys = std::is_same_v<Block, KeyBlock>;
    _tile_loadd(2, block.codes, kTileStride);
    _tile_zero(4);
    if constexpr (keys)
        _tile_dpbsud(4, 0, 2);
    else
        _tile_dpbusd(4, 0, 2);
    _tile_loadd(3, block.codes + kQuadBytes, kTileStride);
    _tile_zero(5);
    if constexpr (keys)
        _tile_dpbsud(5, 0, 3);
    else
        _tile_dpbusd(5, 0, 3);
    _tile_loadd(2, block.codes + 2 * kQuadBytes, kTileStride);
    _tile_zero(6);
    if constexpr (keys)
        _tile_dpbsud(6, 1, 2);
    else
        _tile_dpbusd(6, 0, 2);
    _tile_loadd(3, block.codes + 3 * kQuadBytes, kTileStride);
    _tile_zero(7);
    if constexpr (keys)
        _tile_dpbsud(7, 1, 3);
    else
        _tile_dpbusd(7, 0, 3);
    _tile_stored(4, sums.at[0], 64);
    _tile_stored(5, sums.at[1], 64);
    _tile_stored(6, sums.at[2], 64);
    _tile_stored(7, sums.at[3], 64);
}

inline void multiply_block(const KeyBlock& block, TileSums& sums) {
    finish_stores(block.codes);
    _tile_loadd(0, block.q, block.q_stride);
    _tile_loadd(1, block.q + kTileInner, block.q_stride);
    multiply_tiles(block, sums);
}
inline void multiply_block(const ValueBlock& block, TileSums& sums) {
    finish_stores(block.codes);
    _tile_loadd(0, block.p, kTileInner);
    multiply_tiles(block, sums);
}

/// Scales and zero-points of a block's tiles.
struct BlockScales {
    TileScales at[4];
};
template <Zeros zeros, typename Block>
inline BlockScales block_scales(const Block& block) {
    BlockScales scales;
    for (int tile = 0; tile < 4; ++tile)
        scales.at[tile] = load_scales<zeros>(block.bits, block.scales, tile);
    return scales;
}

/// A tile's sums of one row; starts, weights and rows' scales as in KeyBlock.
template <Zeros zeros>
inline Floats add_tile(const TileSums& sums, const BlockScales& scales, const std::int32_t* starts,
                       const float* weights, const float* row_scales, int tile, int row,
                       Floats onto) {
    const int at = tile * kMaxRows + row;
    Sums sum = load_ints(sums.at[tile][row]);
    if (zeros != Zeros::steps) // whose codes have no bias
        sum = add_ints(sum, broadcast_int(starts[at]));
    return add_scaled<zeros>(sum, scales.at[tile], row_scales[at], weights[at], onto);
}

// Members are copied to variables: stores of registers could change them, as far as the compiler knows.

template <Zeros zeros>
inline void add_key_sums(const KeyBlock& block, const TileSums& sums, int rows) {
    const BlockScales scales = block_scales<zeros>(block);
    const std::int32_t* starts = block.starts;
    const float* weights = block.weights;
    const float* q_scales = block.q_scales;
    const float* before = block.before;
    const std::ptrdiff_t before_stride = block.before_stride;
    float* to = block.logits;
    Probabilities meanwhile = *block.meanwhile;
    for (int row = 0; row < rows; ++row, before += before_stride, to += kTokens) {
        meanwhile.step();
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            Floats logits = load(before + 16 * half);
#pragma GCC unroll 2
            for (int group = 0; group < 2; ++group)
                logits = add_tile<zeros>(sums, scales, starts, weights, q_scales, 2 * group + half,
                                         row, logits);
            store(logits, to + 16 * half);
        }
    }
    *block.meanwhile = meanwhile;
}

template <Zeros zeros>
inline void add_value_sums(const ValueBlock& block, const TileSums& sums, int rows) {
    const BlockScales scales = block_scales<zeros>(block);
    const std::int32_t* starts = block.starts;
    const float* weights = block.weights;
    const float* p_scales = block.p_scales;
    const std::ptrdiff_t out_stride = block.out_stride;
    float* to = block.out;
    for (int row = 0; row < rows; ++row, to += out_stride) {
#pragma GCC unroll 4
        for (int tile = 0; tile < 4; ++tile)
            store(add_tile<zeros>(sums, scales, starts, weights, p_scales, tile, row,
                                  load(to + 16 * tile)),
                  to + 16 * tile);
    }
}

/// All products first: the last stores of one step are then far enough from the first loads of the next,
/// which tiles have to wait for.
template <Zeros zeros>
void tile_keys(const KeyBlock* blocks, int count, int rows) {
    TileSums sums[kMaxGroups / 2];
    for (int i = 0; i < count; ++i) multiply_block(blocks[i], sums[i]);
    for (int i = 0; i < count; ++i) add_key_sums<zeros>(blocks[i], sums[i], rows);
}

template <Zeros zeros>
void tile_values(const ValueBlock* blocks, int count, int rows) {
    TileSums sums[kMaxGroups / 2];
    for (int i = 0; i < count; ++i) multiply_block(blocks[i], sums[i]);
    for (int i = 0; i < count; ++i) add_value_sums<zeros>(blocks[i], sums[i], rows);
}

/// By zero-points. Codes of every width are multiplied alike.
constexpr void (*kTileKeys[])(const KeyBlock*, int,
                              int) = {tile_keys<Zeros::none>, tile_keys<Zeros::values>,
                                      tile_keys<Zeros::marked>, tile_keys<Zeros::steps>};
constexpr void (*kTileValues[])(const ValueBlock*, int,
                                int) = {tile_values<Zeros::none>, tile_values<Zeros::values>,
                                        tile_values<Zeros::marked>, tile_values<Zeros::steps>};

inline void multiply_expanded(const KeyBlock* blocks, int count, int rows, bool /*is_small*/,
                              Zeros zeros) {
    kTileKeys[static_cast<int>(zeros)](blocks, count, rows);
}
inline void multiply_expanded(const ValueBlock* blocks, int count, int rows, bool /*is_small*/,
                              Zeros zeros) {
    kTileValues[static_cast<int>(zeros)](blocks, count, rows);
}
