// SPDX-License-Identifier: Apache-2.0
// Attention on quantized pages in integers. Included inside an instruction set's namespace, after
// blocks.h and softmax.h.
//
// Pages are taken in batches: as many as have a row of logits for each lane of a register, so that the
// softmax of few rows is no chain of operations that wait for each other. A slot is a row of a page of the
// batch: page * rows + row.

/// What one batch needs between its keys and its values; stays in the first-level cache.
struct alignas(64) BatchScratch {
    float logits[kMaxRows][kTokens]; ///< [slots], and so are the next ones
    std::uint8_t p[kMaxRows][kTokens];
    float tops[kMaxRows];
    float p_sums[kMaxRows];
    float p_scales[kMaxRows];
    float p_weights[4][kMaxRows];
    std::int32_t p_starts[4][kMaxRows];

    float offsets[kMaxRows][kTokens]; ///< [rows], and so are the next ones
    float row_tops[kMaxRows];
    std::int32_t q_starts[kMaxGroups / 2][4][kMaxRows]; ///< by block and tile
    float q_weights[kMaxGroups / 2][4][kMaxRows];
    std::byte expanded[kExpandedBytes];
};

inline Zeros zeros_of(const Side& side) {
    if (side.affine) return Zeros::steps;
    return side.asymmetric || side.hybrid ? Zeros::values : Zeros::none;
}

/// -bias * sum at a tile's position.
inline void store_starts(const Side& side, bool is_signed, Sums sums, int tile,
                         std::int32_t* starts) {
    const int factor = -code_bias(side, is_signed) * (1 << kPositions[side.bits][tile]);
    store_ints(multiply_ints(sums, broadcast_int(factor)), starts);
}

/// What a tile's zero-points are multiplied by: `sums` of the other side, which count `scale` each.
inline void store_weights(const Side& side, Floats sums, Floats scale, int tile, float* weights) {
    const auto eighth = static_cast<float>(1 << kPositions[side.bits][tile]) * 0.125f;
    store(multiply(sums, side.affine ? broadcast(eighth) : scale), weights);
}

/// What does not change from page to page.
inline void prepare_query(const QuantizedParams& params, BatchScratch& scratch) {
    for (int block = 0; block < params.blocks; ++block) {
        for (int tile = 0; tile < 4; ++tile) {
            const int group = (2 * block + tile / 2) * kMaxRows;
            const Sums sums = load_ints(params.q_sums + group);
            store_starts(params.k, false, sums, tile, scratch.q_starts[block][tile]);
            store_weights(params.k, to_floats(sums), load(params.q_scales + group), tile,
                          scratch.q_weights[block][tile]);
        }
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
    const auto function_of = functions[layout][static_cast<int>(zeros_of(side))];
    for (int i = 0; i < params.blocks; ++i) {
        const std::size_t offset = side.offset + static_cast<std::size_t>(i) * side.block_bytes;
        const std::byte* codes = place.page + offset;
        BlockScales scales;
        load_scales(side, codes, scales);
        if (expand_once) kExpandBlock[packed](codes, place.ahead + offset, place.expanded);
        for (int row = 0; row < rows; row += kRowsInRegisters) {
            const int count = rows - row < kRowsInRegisters ? rows - row : kRowsInRegisters;
            Block block;
            block.codes = expand_once ? place.expanded : codes;
            block.ahead = place.ahead + offset;
            block.scales = &scales;
            visit(i, row, block);
            function_of(count)(block);
        }
    }
}

/// Pages [first, first + count) of a walk.
struct PageBatch {
    int first;
    int count;
    int ahead; ///< a page's place in the walk to that of the page to prefetch
};

inline PagePlace place_of(const Walk& walk, const PageBatch& batch, int page, bool is_signed,
                          BatchScratch& scratch) {
    const int at = batch.first + page;
    const int later = at + batch.ahead < walk.page_count ? at + batch.ahead : at;
    return {walk.pages[at] + walk.head_offset, walk.pages[later] + walk.head_offset,
            scratch.expanded, is_signed};
}

inline void page_keys(const QuantizedParams& params, const PageBatch& batch, int page,
                      BatchScratch& scratch) {
    float* logits = scratch.logits[page * params.walk.rows];
    visit_blocks<KeyBlock>(params, params.k, kKeyBlocks,
                           place_of(params.walk, batch, page, false, scratch),
                           [&](int i, int row, KeyBlock& block) {
                               block.q_stride = 64 * params.blocks;
                               block.q = params.q_codes + row * block.q_stride + 64 * i;
                               block.starts = scratch.q_starts[i][0] + row;
                               block.weights = scratch.q_weights[i][0] + row;
                               block.q_scales = params.q_scales + 2 * i * kMaxRows + row;
                               block.logits = logits + row * kTokens;
                               block.before = i == 0 ? scratch.offsets[row] : block.logits;
                           });
}

inline void page_values(const QuantizedParams& params, const PageBatch& batch, int page,
                        BatchScratch& scratch) {
    const int slot = page * params.walk.rows;
    visit_blocks<ValueBlock>(params, params.v, kValueBlocks,
                             place_of(params.walk, batch, page, true, scratch),
                             [&](int i, int row, ValueBlock& block) {
                                 block.p = scratch.p[slot + row];
                                 block.starts = scratch.p_starts[0] + slot + row;
                                 block.weights = scratch.p_weights[0] + slot + row;
                                 block.p_scales = scratch.p_scales + slot + row;
                                 block.out_stride = params.walk.out_stride;
                                 block.out = params.walk.out + row * block.out_stride + 64 * i;
                             });
}

/// Probabilities as uint8: 255 stands for the page's largest, whose weight is in the scale.
inline void quantize_probabilities(int slots, BatchScratch& scratch) {
    for (int slot = 0; slot < slots; slot += kDenseColumns) {
        Floats sums[kDenseColumns];
#pragma GCC unroll 4
        for (int i = 0; i < kDenseColumns; ++i) {
            // A slot that sees nothing has all logits and its top at minus infinity.
            const float top = scratch.tops[slot + i];
            // No difference is above 0, however large the logits are.
            const Floats shift = broadcast(top > -kInfinity ? top : 0.0f);
            const float* logits = scratch.logits[slot + i];
            const Sums low = exp2_byte(subtract(load(logits), shift));
            const Sums high = exp2_byte(subtract(load(logits + kLanes), shift));
            store_byte_pair(low, high, scratch.p[slot + i]);
            sums[i] = to_floats(add_ints(low, high));
        }
        reduce_add_columns(sums, scratch.p_sums + slot); // integers: exact in any order
    }
}

/// The largest logit of each row in all pages.
inline void find_row_tops(const Walk& walk, int pages, BatchScratch& scratch) {
    store(broadcast(-kInfinity), scratch.row_tops);
    for (int row = 0; row < walk.rows; ++row) {
        float top = scratch.tops[row];
        for (int slot = row + walk.rows; slot < pages * walk.rows; slot += walk.rows)
            top = scratch.tops[slot] > top ? scratch.tops[slot] : top;
        scratch.row_tops[row] = top;
    }
}

inline void batch_softmax(const QuantizedParams& params, int pages, BatchScratch& scratch) {
    const Walk& walk = params.walk;
    const int slots = pages * walk.rows;
    find_tops(scratch.logits[0], slots, scratch.tops);
    find_row_tops(walk, pages, scratch);
    raise_references(walk, scratch.row_tops);
    quantize_probabilities(slots, scratch);

    alignas(64) float references[kMaxRows] = {};
    for (int slot = 0; slot < slots; ++slot) references[slot] = walk.reference[slot % walk.rows];
    const Floats tops = load(scratch.tops);
    Floats scale = multiply(exp2(subtract(tops, load(references))), broadcast(1.0f / 255.0f));
    // Not a number where neither has seen a token.
    scale = select_less(broadcast(-kInfinity), tops, scale, broadcast(0.0f));
    store(scale, scratch.p_scales);
    const Floats sums = load(scratch.p_sums);
    for (int tile = 0; tile < 4; ++tile) {
        store_starts(params.v, true, to_ints(sums), tile, scratch.p_starts[tile]);
        store_weights(params.v, sums, scale, tile, scratch.p_weights[tile]);
    }
    store(multiply(scale, sums), references);
    for (int slot = 0; slot < slots; ++slot) walk.weight[slot % walk.rows] += references[slot];
}

inline void store_offsets(const QuantizedParams& params, int page, BatchScratch& scratch) {
    const float* offsets =
        params.logit_offsets + (params.first_page + page) / params.epoch_pages * kMaxRows;
    for (int row = 0; row < params.walk.rows; ++row) {
        store(broadcast(offsets[row]), scratch.offsets[row]);
        store(broadcast(offsets[row]), scratch.offsets[row] + kLanes);
    }
}

/// Every row sees every token of pages [first, last).
struct WholePages {
    int first;
    int last;
};

inline WholePages whole_pages(const Walk& walk) {
    std::int64_t begin = walk.visible_begin[0];
    std::int64_t end = walk.visible_end[0];
    for (int row = 1; row < walk.rows; ++row) {
        begin = walk.visible_begin[row] > begin ? walk.visible_begin[row] : begin;
        end = walk.visible_end[row] < end ? walk.visible_end[row] : end;
    }
    const std::int64_t all = std::int64_t{kTokens} * walk.page_count;
    begin -= walk.first_token;
    end -= walk.first_token;
    begin = begin < 0 ? 0 : begin > all ? all : begin;
    end = end < 0 ? 0 : end > all ? all : end;
    return {static_cast<int>((begin + kTokens - 1) / kTokens), static_cast<int>(end / kTokens)};
}

/// The pages from `first` on that are taken together; those that rows see in part go one by one.
inline PageBatch make_batch(const Walk& walk, const WholePages& whole, int first) {
    constexpr int kLeastAhead = 2;
    const int most = kMaxRows / walk.rows;
    const int ahead = most > kLeastAhead ? most : kLeastAhead;
    if (first < whole.first || first >= whole.last) return {first, 1, ahead};
    return {first, whole.last - first < most ? whole.last - first : most, ahead};
}

inline void attend_batch(const QuantizedParams& params, const PageBatch& batch,
                         const PageMask& mask, BatchScratch& scratch) {
    const Walk& walk = params.walk;
    for (int page = 0; page < batch.count; ++page) {
        const int at = batch.first + page;
        if (page == 0 || (params.first_page + at) % params.epoch_pages == 0)
            store_offsets(params, at, scratch);
        page_keys(params, batch, page, scratch);
        finish_logits(walk, mask, scratch.logits[page * walk.rows]);
    }
    batch_softmax(params, batch.count, scratch);
    for (int page = 0; page < batch.count; ++page) page_values(params, batch, page, scratch);
}

void attend_quantized(const QuantizedParams& params) {
    const Walk& walk = params.walk;
    BatchScratch scratch;
    __builtin_memset(scratch.logits, 0, sizeof scratch.logits); // unused slots: any number
    __builtin_memset(scratch.p_sums, 0, sizeof scratch.p_sums);
    prepare_query(params, scratch);
    const WholePages whole = whole_pages(walk);
    for (int first = 0; first < walk.page_count;) {
        const PageBatch batch = make_batch(walk, whole, first);
        const PageMask mask = page_mask(walk, walk.first_token + std::int64_t{kTokens} * first);
        if (mask.first < mask.last) attend_batch(params, batch, mask, scratch);
        first += batch.count;
    }
}

void centre_logits(const CentreParams& params) {
    for (int i = 0; i < params.count; ++i) {
        const std::byte* centre = params.centres[i] + params.offset;
        for (int row = 0; row < params.rows; ++row) {
            Floats sum = broadcast(0.0f);
            for (int c = 0; c < params.dim; c += kLanes)
                sum =
                    multiply_add(load(params.q + row * kMaxDim + c), load_f16(centre + 2 * c), sum);
            params.logits[i * kMaxRows + row] = reduce_add(sum);
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
