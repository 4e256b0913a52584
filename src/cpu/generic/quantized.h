// SPDX-License-Identifier: Apache-2.0
// Attention on quantized pages in integers. Included inside an instruction set's namespace, after
// blocks.h and softmax.h.

/// What one page needs between its keys and its values; stays in the first-level cache.
struct alignas(64) PageScratch {
    float logits[kMaxRows][kTokens];
    std::uint8_t p[kMaxRows][kTokens];
    float tops[kMaxRows];
    std::int32_t p_sums[kMaxRows];
    float p_scales[kMaxRows];
    float p_weights[kMaxRows];
    std::int32_t p_starts[4][kMaxRows];
    std::int32_t q_starts[kMaxGroups / 2][4][kMaxRows];
    float q_weights[kMaxGroups][kMaxRows];
    std::byte expanded[kExpandedBytes];
};

/// -bias * sum at each tile's position.
inline void store_starts(const Side& side, bool is_signed, const std::int32_t* sums, int tile,
                         std::int32_t* starts) {
    const int factor = -code_bias(side, is_signed) * (1 << kPositions[side.bits][tile]);
    store_ints(multiply_ints(load_ints(sums), broadcast_int(factor)), starts);
}

/// What does not change from page to page.
inline void prepare_query(const QuantizedParams& params, PageScratch& scratch) {
    for (int block = 0; block < params.blocks; ++block)
        for (int tile = 0; tile < 4; ++tile)
            store_starts(params.k, false, params.q_sums + (2 * block + tile / 2) * kMaxRows, tile,
                         scratch.q_starts[block][tile]);
    for (int group = 0; group < 2 * params.blocks; ++group) {
        const Floats sums = to_floats(load_ints(params.q_sums + group * kMaxRows));
        store(multiply(sums, load(params.q_scales + group * kMaxRows)), scratch.q_weights[group]);
    }
}

/// A page, the one to prefetch meanwhile, and room for expanded codes.
struct PagePlace {
    const std::byte* page;
    const std::byte* ahead;
    std::byte* expanded;
    bool is_signed; ///< codes are the signed side of the dot product
};

/// Walks one side of a page: for each block i and each run of rows that share codes in registers,
/// `visit(i, row, block)` adds what is particular to K or V, then `functions` (by layout) do the work.
template <typename Block, typename Functions, typename Visit>
inline void visit_blocks(const QuantizedParams& params, const Side& side,
                         const Functions& functions, const PagePlace& place, const Visit& visit) {
    const int rows = params.walk.rows;
    const Layout packed = layout_of(side.bits, place.is_signed);
    const bool expand_once = rows > kRowsInRegisters;
    const Layout layout = !expand_once ? packed : is_small(packed) ? small : bytes;
    for (int i = 0; i < params.blocks; ++i) {
        const std::size_t offset = side.offset + static_cast<std::size_t>(i) * side.block_bytes;
        const std::byte* codes = place.page + offset;
        const BlockScales scales = load_scales(side, codes);
        if (expand_once) kExpandBlock[packed](codes, place.ahead + offset, place.expanded);
        for (int row = 0; row < rows; row += kRowsInRegisters) {
            const int count = rows - row < kRowsInRegisters ? rows - row : kRowsInRegisters;
            Block block;
            block.codes = expand_once ? place.expanded : codes;
            block.ahead = place.ahead + offset;
            block.scales = &scales;
            block.zero_points = side.asymmetric || side.hybrid;
            visit(i, row, block);
            functions[layout](count)(block);
        }
    }
}

inline void page_keys(const QuantizedParams& params, const std::byte* page, const std::byte* ahead,
                      PageScratch& scratch) {
    visit_blocks<KeyBlock>(params, params.k, kKeyBlocks, {page, ahead, scratch.expanded, false},
                           [&](int i, int row, KeyBlock& block) {
                               block.q_stride = 64 * params.blocks;
                               block.q = params.q_codes + row * block.q_stride + 64 * i;
                               block.starts = scratch.q_starts[i][0] + row;
                               block.q_scales = params.q_scales + 2 * i * kMaxRows + row;
                               block.q_weights = scratch.q_weights[2 * i] + row;
                               block.logits = scratch.logits[row];
                           });
}

inline void page_values(const QuantizedParams& params, const std::byte* page,
                        const std::byte* ahead, PageScratch& scratch) {
    visit_blocks<ValueBlock>(params, params.v, kValueBlocks, {page, ahead, scratch.expanded, true},
                             [&](int i, int row, ValueBlock& block) {
                                 block.p = scratch.p[row];
                                 block.starts = scratch.p_starts[0] + row;
                                 block.p_scales = scratch.p_scales + row;
                                 block.p_weights = scratch.p_weights + row;
                                 block.out_stride = params.walk.out_stride;
                                 block.out = params.walk.out + row * block.out_stride + 64 * i;
                             });
}

/// Probabilities as uint8: 255 stands for the page's largest, whose weight is in the scale.
inline void page_softmax(const QuantizedParams& params, const PageMask& mask,
                         PageScratch& scratch) {
    const Walk& walk = params.walk;
    finish_logits(walk, mask, scratch.logits[0], scratch.tops);
    raise_references(walk, scratch.tops);
    const Floats largest = broadcast(255.0f);
    for (int row = 0; row < walk.rows; ++row) {
        // A row that sees nothing has all logits and its top at minus infinity.
        const float top = scratch.tops[row];
        // At most 0 however large the logits are: no probability is above 255.
        const Floats shift = broadcast(top > -kInfinity ? top : 0.0f);
        const Floats low_power = exp2(subtract(load(scratch.logits[row]), shift));
        const Floats high_power = exp2(subtract(load(scratch.logits[row] + kLanes), shift));
        const Sums low = to_ints(multiply(low_power, largest));
        const Sums high = to_ints(multiply(high_power, largest));
        store_bytes(low, scratch.p[row]);
        store_bytes(high, scratch.p[row] + kLanes);
        scratch.p_sums[row] = reduce_add_ints(add_ints(low, high));
    }
    for (int tile = 0; tile < 4; ++tile)
        store_starts(params.v, true, scratch.p_sums, tile, scratch.p_starts[tile]);
    const Floats tops = load(scratch.tops);
    const Floats reference = load(walk.reference);
    Floats scale = multiply(exp2(subtract(tops, reference)), broadcast(1.0f / 255.0f));
    // Not a number where neither has seen a token.
    scale = select_less(broadcast(-kInfinity), tops, scale, broadcast(0.0f));
    const Floats weight = multiply(scale, to_floats(load_ints(scratch.p_sums)));
    store(scale, scratch.p_scales);
    store(weight, scratch.p_weights);
    store(add(load(walk.weight), weight), walk.weight);
}

void attend_quantized(const QuantizedParams& params) {
    constexpr int kPagesAhead = 2;
    const Walk& walk = params.walk;
    PageScratch scratch;
    store_ints(broadcast_int(0), scratch.p_sums);
    prepare_query(params, scratch);
    for (int i = 0; i < walk.page_count; ++i) {
        const PageMask mask = page_mask(walk, walk.first_token + std::int64_t{kTokens} * i);
        if (mask.first >= mask.last) continue;
        const int later = i + kPagesAhead < walk.page_count ? i + kPagesAhead : i;
        const std::byte* ahead = walk.pages[later] + walk.head_offset;
        const std::byte* page = walk.pages[i] + walk.head_offset;
        const float* offsets =
            params.logit_offsets + (params.first_page + i) / params.epoch_pages * kMaxRows;
        for (int row = 0; row < walk.rows; ++row) {
            const Floats offset = broadcast(offsets[row]);
            store(offset, scratch.logits[row]);
            store(offset, scratch.logits[row] + kLanes);
        }
        page_keys(params, page, ahead, scratch);
        page_softmax(params, mask, scratch);
        page_values(params, page, ahead, scratch);
    }
}

/// Halves added to each other until one lane is left: the same order on every instruction set.
inline float reduce_add_halves(Floats a) {
    alignas(64) float lanes[kLanes];
    store(a, lanes);
    for (int half = kLanes / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

void centre_logits(const CentreParams& params) {
    for (int i = 0; i < params.count; ++i) {
        const std::byte* centre = params.centres[i] + params.offset;
        for (int row = 0; row < params.rows; ++row) {
            Floats sum = broadcast(0.0f);
            for (int c = 0; c < params.dim; c += kLanes)
                sum = fused_multiply_add(load(params.q + row * kMaxDim + c),
                                         load_f16(centre + 2 * c), sum);
            params.logits[i * kMaxRows + row] = reduce_add_halves(sum);
        }
    }
}

/// int8 per 32 channels, the largest magnitude at 127.
void quantize_query(const QuantizeQueryParams& params) {
    constexpr float kSmallest = 1e-30f; // below, 127 / largest is no number to multiply with
    const int dim = 64 * params.blocks;
    for (int row = 0; row < params.rows; ++row) {
        for (int group = 0; group < 2 * params.blocks; ++group) {
            const float* q = params.q + row * kMaxDim + 32 * group;
            const Floats low = load(q);
            const Floats high = load(q + kLanes);
            const float largest = reduce_max(maximum(absolute(low), absolute(high)));
            const bool tiny = !(largest > kSmallest);
            const Floats inverse = broadcast(tiny ? 0.0f : 127.0f / largest);
            const Sums low_codes = to_ints(multiply(low, inverse));
            const Sums high_codes = to_ints(multiply(high, inverse));
            std::int8_t* codes = params.q_codes + row * dim + 32 * group;
            store_bytes(low_codes, codes);
            store_bytes(high_codes, codes + kLanes);
            params.q_sums[group * kMaxRows + row] =
                reduce_add_ints(add_ints(low_codes, high_codes));
            params.q_scales[group * kMaxRows + row] =
                tiny ? 0.0f : largest / 127.0f * params.logit_scale;
        }
    }
}
