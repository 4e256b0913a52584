// SPDX-License-Identifier: Apache-2.0
// Attention on quantized pages in integers. Included inside an instruction set's namespace, after
// expanded.h and softmax.h.
//
// Pages are taken in batches: as many as have a row of logits for each lane of a register, so that the
// softmax of few rows is no chain of operations that wait for each other. The values of a batch come after
// the keys of the next one, whose products hide the exponentials. A slot is a row of a page of a batch:
// page * rows + row.

/// Pages [first, first + count) of a walk, and what is known of them; stays in the first-level cache.
struct alignas(64) Batch {
    float logits[kMaxRows][kTokens]; ///< [slots], and so are the next ones
    std::uint8_t p[kMaxRows][kTokens];
    /// [slots], what is still to be added to the logits, and room for a whole register at the last one.
    float offsets[2 * kMaxRows];
    float shifts[kMaxRows];
    float p_scales[4][kMaxRows]; ///< by tile, and so are the next ones
    float p_weights[4][kMaxRows];
    std::int32_t p_starts[4][kMaxRows];
    Probabilities probabilities;
    int first;
    int count;
};

constexpr int kMaxBlocks = kMaxGroups / 2;

alignas(64) constexpr std::int32_t kLaneNumbers[kMaxRows] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                             8, 9, 10, 11, 12, 13, 14, 15};

struct alignas(64) Scratch {
    std::int32_t q_starts[kMaxBlocks][4][kMaxRows]; ///< by block and tile
    float q_weights[kMaxBlocks][4][kMaxRows];
    float q_scales[kMaxBlocks][4][kMaxRows];
    float zeros[kTokens];
    std::int32_t rows_of_slots[kMaxRows];
    int most_pages; ///< of a batch
    std::byte expanded[kMaxBlocks * kExpandedBytes];
    Batch batches[2];
};

/// -bias * sum at a tile's position.
inline void store_starts(const Side& side, bool is_signed, Sums sums, int tile,
                         std::int32_t* starts) {
    if (side.affine) return; // no bias: nobody asks
    const int factor = -code_bias(side, is_signed) * (1 << kPositions[side.bits][tile]);
    store_ints(multiply_ints(sums, broadcast_int(factor)), starts);
}

/// What a tile's zero-points are multiplied by: `sums` of the other side, which count `scale` each unless
/// the scale is yet to come.
inline void store_weights(const Side& side, Floats sums, Floats scale, int tile, float* weights) {
    const auto eighth = static_cast<float>(1 << kPositions[side.bits][tile]) * 0.125f;
    store(multiply(sums, side.affine ? broadcast(eighth) : scale), weights);
}

/// What a tile's sums are multiplied by before its scales: `scale`, its position taken off.
inline void store_scales(const Side& side, Floats scale, int tile, float* scales) {
    store(multiply(scale, broadcast(kPositionScales[side.bits][tile])), scales);
}

/// What does not change from page to page.
inline void prepare_query(const QuantizedParams& params, Scratch& scratch) {
    scratch.most_pages = kMaxRows / params.walk.rows;
    for (int slot = 0; slot < kMaxRows; ++slot)
        scratch.rows_of_slots[slot] = slot % params.walk.rows;
    for (int block = 0; block < params.blocks; ++block) {
        for (int tile = 0; tile < 4; ++tile) {
            const int group = (2 * block + tile / 2) * kMaxRows;
            const Sums sums = load_ints(params.q_sums + group);
            const Floats scale = load(params.q_scales + group);
            store_starts(params.k, kSignedKeyBytes, sums, tile, scratch.q_starts[block][tile]);
            store_weights(params.k, to_floats(sums), scale, tile, scratch.q_weights[block][tile]);
            store_scales(params.k, scale, tile, scratch.q_scales[block][tile]);
        }
    }
}

/// A page, the half of a later one to prefetch meanwhile, and room for expanded codes.
struct PagePlace {
    const std::byte* page;
    const std::byte* ahead;
    std::byte* expanded;
};

/// Bytes to prefetch for each block: its share of half a page, whole lines.
inline std::size_t ahead_of_block(const QuantizedParams& params) {
    return (params.k.block_bytes + params.v.block_bytes) / 2;
}

/// Multiplies all blocks of one side of a page: `describe(i, block)` adds what is particular to K or V,
/// then functions (by width, zero-points and rows) do the work, or those of expanded blocks. is_signed: 8-bit codes are
/// multiplied as signed bytes.
template <typename Block, typename Function, typename Describe>
inline void multiply_blocks(const QuantizedParams& params, const Side& side, bool is_signed,
                            const Function* const* const* functions, const PagePlace& place,
                            const Describe& describe) {
    const int rows = params.walk.rows;
    const Layout layout = layout_of(side.bits, is_signed);
    const Zeros zeros = zeros_of(side);
    const std::size_t ahead_bytes = ahead_of_block(params);
    const bool expand_once = kRowsOfPackedCodes < kMaxRows && rows > kRowsOfPackedCodes;
    const Function* by_rows = functions[width_index(side.bits)][static_cast<int>(zeros)];
    Block blocks[kMaxBlocks];
    for (int i = 0; i < params.blocks; ++i) {
        const std::size_t offset = side.offset + static_cast<std::size_t>(i) * side.block_bytes;
        Block& block = blocks[i];
        block.codes = place.page + offset;
        block.ahead = {place.ahead + static_cast<std::size_t>(i) * ahead_bytes,
                       static_cast<int>(ahead_bytes / kQuadBytes)};
        block.scales = block.codes + side.code_bytes;
        block.bits = side.bits;
        describe(i, block);
        if (expand_once) {
            std::byte* expanded = place.expanded + i * kExpandedBytes;
            kExpandBlock[layout](block.codes, block.ahead, expanded);
            block.codes = expanded;
        } else {
            multiply_rows(block, rows, by_rows);
        }
    }
    if (expand_once) multiply_expanded(blocks, params.blocks, rows, is_small(layout), zeros);
}

/// Page `page` of a batch. While keys of a batch and then values of the one before it are multiplied, all of the next
/// batch is prefetched, half a page at a time in the order of addresses: pages that were taken one after another lie so
/// (the pool), and the hardware's prefetcher joins in.
inline PagePlace place_of(const QuantizedParams& params, const Batch& batch, int page, bool keys,
                          Scratch& scratch) {
    const Walk& walk = params.walk;
    const int at = batch.first + page;
    const int half = keys ? page : scratch.most_pages + page;
    const int later = batch.first + batch.count + (keys ? 0 : scratch.most_pages) + half / 2;
    const std::byte* ahead = walk.pages[later < walk.page_count ? later : at] + walk.head_offset;
    const std::size_t half_bytes = static_cast<std::size_t>(params.blocks) * ahead_of_block(params);
    return {walk.pages[at] + walk.head_offset, half % 2 == 0 ? ahead : ahead + half_bytes,
            scratch.expanded};
}

inline void page_keys(const QuantizedParams& params, Batch& batch, int page,
                      Probabilities& meanwhile, Scratch& scratch) {
    float* logits = batch.logits[page * params.walk.rows];
    multiply_blocks<KeyBlock>(params, params.k, kSignedKeyBytes, kKeyBlocks,
                              place_of(params, batch, page, true, scratch),
                              [&](int i, KeyBlock& block) {
                                  block.meanwhile = &meanwhile;
                                  block.q_stride = 64 * params.blocks;
                                  block.q = params.q_codes + 64 * i;
                                  block.starts = scratch.q_starts[i][0];
                                  block.weights = scratch.q_weights[i][0];
                                  block.q_scales = scratch.q_scales[i][0];
                                  block.logits = logits;
                                  block.before = i == 0 ? scratch.zeros : logits;
                                  block.before_stride = i == 0 ? 0 : kTokens;
                              });
}

inline void page_values(const QuantizedParams& params, const Batch& batch, int page,
                        Scratch& scratch) {
    const int slot = page * params.walk.rows;
    multiply_blocks<ValueBlock>(params, params.v, kSignedValueBytes, kValueBlocks,
                                place_of(params, batch, page, false, scratch),
                                [&](int i, ValueBlock& block) {
                                    block.p = batch.p[slot];
                                    block.starts = batch.p_starts[0] + slot;
                                    block.weights = batch.p_weights[0] + slot;
                                    block.p_scales = batch.p_scales[0] + slot;
                                    block.out_stride = params.walk.out_stride;
                                    block.out = params.walk.out + 64 * i;
                                });
}

/// Of a register with a slot a lane: row r's in lane r, the pages' put together by `combine`.
template <typename Combine>
inline Floats combine_pages(Floats slots, const Batch& batch, int rows, const Combine& combine) {
    Sums index = load_ints(kLaneNumbers);
    Floats all = slots;
    for (int page = 1; page < batch.count; ++page) {
        index = add_ints(index, broadcast_int(rows));
        all = combine(all, permute(slots, index));
    }
    return all;
}

/// What the probabilities and their scales need to know of the logits.
inline void start_softmax(const QuantizedParams& params, Batch& batch, const Scratch& scratch) {
    const Walk& walk = params.walk;
    const Floats offsets = load(batch.offsets);
    const Floats tops = add(max_of_rows(batch.logits[0]), offsets);
    const Floats row_tops =
        combine_pages(tops, batch, walk.rows, [](Floats a, Floats b) { return maximum(a, b); });
    raise_references(walk, keep_lanes(row_tops, 0, walk.rows));

    // A slot that sees nothing has all logits and its top at minus infinity.
    const Floats nothing = broadcast(-kInfinity);
    const Floats zero = broadcast(0.0f);
    store(select_less(nothing, tops, subtract(offsets, tops), zero), batch.shifts);
    const Floats references = permute(load(walk.reference), load_ints(scratch.rows_of_slots));
    const Floats scale = multiply(exp2(subtract(tops, references)), broadcast(1.0f / 255.0f));
    const Floats p_scale = select_less(nothing, tops, scale, zero);
    for (int tile = 0; tile < 4; ++tile)
        store_scales(params.v, p_scale, tile, batch.p_scales[tile]);
    batch.probabilities = {batch.logits[0], batch.shifts, batch.p[0], 0,
                           2 * batch.count * walk.rows};
}

inline void sum_probabilities(const QuantizedParams& params, Batch& batch) {
    const Walk& walk = params.walk;
    const Floats scale = load(batch.p_scales[0]); // at position 0
    const Sums sums = sums_of_rows(batch.p[0]);
    for (int tile = 0; tile < 4; ++tile) {
        store_starts(params.v, kSignedValueBytes, sums, tile, batch.p_starts[tile]);
        store_weights(params.v, to_floats(sums), scale, tile, batch.p_weights[tile]);
    }
    const Floats weights = combine_pages(multiply(scale, to_floats(sums)), batch, walk.rows,
                                         [](Floats a, Floats b) { return add(a, b); });
    store(add(load(walk.weight), weights), walk.weight);
}

/// What is still to be added to a batch's logits; where cap or mask apply, it is added here, and they too.
inline void place_logits(const QuantizedParams& params, const PageMask& mask, Batch& batch) {
    const Walk& walk = params.walk;
    const bool change = !mask.all || walk.soft_cap > 0.0f;
    const int first = params.first_page + batch.first;
    const float* offsets = params.logit_offsets + first / params.epoch_pages * kMaxRows;
    int left = params.epoch_pages - first % params.epoch_pages; // pages of this epoch
    for (int slot = 0; slot < batch.count * walk.rows; slot += walk.rows, --left) {
        if (left == 0) {
            offsets += kMaxRows;
            left = params.epoch_pages;
        }
        // Lanes beyond the page's rows are the next page's, which overwrites them, or no slot's.
        store(change ? broadcast(0.0f) : load(offsets), batch.offsets + slot);
        if (change) change_logits(walk, mask, offsets, batch.logits[slot]);
    }
}

/// Every row sees every token of pages [first, last).
struct WholePages {
    int first;
    int last;

    bool has(int page) const { return first <= page && page < last; }
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

/// How many pages from `first` on are taken together; those that rows see in part go one by one.
inline int batch_pages(const WholePages& whole, int most, int first) {
    if (!whole.has(first)) return 1;
    return whole.last - first < most ? whole.last - first : most;
}

inline void batch_keys(const QuantizedParams& params, const PageMask& mask, Batch& batch,
                       Probabilities& meanwhile, Scratch& scratch) {
    for (int page = 0; page < batch.count; ++page)
        page_keys(params, batch, page, meanwhile, scratch);
    place_logits(params, mask, batch);
}

inline void batch_values(const QuantizedParams& params, Batch& batch, Scratch& scratch) {
    batch.probabilities.finish();
    sum_probabilities(params, batch);
    for (int page = 0; page < batch.count; ++page) page_values(params, batch, page, scratch);
}

void attend_quantized(const QuantizedParams& params) {
    const Walk& walk = params.walk;
    Scratch scratch;
    __builtin_memset(scratch.zeros, 0, sizeof scratch.zeros);
    __builtin_memset(scratch.batches, 0, sizeof scratch.batches); // unused slots: any numbers
    prepare_query(params, scratch);
    const ExpandedProducts products(walk.rows);
    const WholePages whole = whole_pages(walk);
    Batch* before = &scratch.batches[1]; // of no pages
    Batch* batch = &scratch.batches[0];
    for (int first = 0, next = 0; first < walk.page_count; first = next) {
        next = first + batch_pages(whole, scratch.most_pages, first);
        const PageMask mask =
            whole.has(first) ? kWholePage
                             : page_mask(walk, walk.first_token + std::int64_t{kTokens} * first);
        if (mask.first >= mask.last) continue;
        batch->first = first;
        batch->count = next - first;
        batch_keys(params, mask, *batch, before->probabilities, scratch);
        batch_values(params, *before, scratch);
        start_softmax(params, *batch, scratch);
        Batch* const done = before;
        before = batch;
        batch = done;
    }
    batch_values(params, *before, scratch);
}

/// Halves added to each other until one lane is left: the same order on every instruction set.
inline float reduce_add_halves(Floats a) {
    alignas(64) float lanes[kLanes];
    store(a, lanes);
    for (int half = kLanes / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

/// Products of `rows` rows with one centre.
template <int rows>
inline void centre_products(const CentreParams& params, const std::byte* centre, int row,
                            float* logits) {
    Floats sums[rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) sums[r] = broadcast(0.0f);
    const float* q = params.q + row * kMaxDim;
    for (int c = 0; c < params.dim; c += kLanes) {
        const Floats channels = load_f16(centre + 2 * c);
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r)
            sums[r] = fused_multiply_add(load(q + r * kMaxDim + c), channels, sums[r]);
    }
    for (int r = 0; r < rows; ++r) logits[row + r] = reduce_add_halves(sums[r]);
}

void centre_logits(const CentreParams& params) {
    for (int i = 0; i < params.count; ++i) {
        const std::byte* centre = params.centres[i] + params.offset;
        float* logits = params.logits + i * kMaxRows;
        int row = 0;
        for (; row + kDenseColumns <= params.rows; row += kDenseColumns)
            centre_products<kDenseColumns>(params, centre, row, logits);
        for (; row < params.rows; ++row) centre_products<1>(params, centre, row, logits);
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
