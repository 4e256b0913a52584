// SPDX-License-Identifier: Apache-2.0
// Attention in fp32 on pages of rows: the fp16 windows, and dequantized pages under exact arithmetic.
// Included inside an instruction set's namespace, after softmax.h.

struct HalfElement {
    static constexpr std::ptrdiff_t kBytes = 2;
    static Floats load(const std::byte* from) { return load_f16(from); }
};
struct FloatElement {
    static constexpr std::ptrdiff_t kBytes = 4;
    static Floats load(const std::byte* from) {
        Floats result;
        __builtin_memcpy(&result, from, sizeof result);
        return result;
    }
};

inline void prefetch_bytes(const std::byte* from, std::ptrdiff_t bytes) {
    for (std::ptrdiff_t at = 0; at < bytes; at += 64) prefetch(from + at);
}

struct alignas(64) DenseScratch {
    float logits[kMaxRows][kTokens];
    float tops[kMaxRows];
};

/// Logits of `rows` rows with kDenseColumns tokens.
template <class Element, int rows>
void dense_logits(const DenseParams& params, const std::byte* keys, int row, float* logits) {
    Floats sums[rows][kDenseColumns];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
        const Floats share = broadcast(params.logit_offset[row + r] / kLanes);
#pragma GCC unroll 4
        for (int t = 0; t < kDenseColumns; ++t) sums[r][t] = share;
    }
    const float* q = params.q + row * kMaxDim;
    const std::ptrdiff_t stride = Element::kBytes * params.dim;
    for (int channel = 0; channel < params.dim; channel += kLanes) {
        Floats key[kDenseColumns];
#pragma GCC unroll 4
        for (int t = 0; t < kDenseColumns; ++t)
            key[t] = Element::load(keys + t * stride + Element::kBytes * channel);
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) {
            const Floats query = load(q + r * kMaxDim + channel);
#pragma GCC unroll 4
            for (int t = 0; t < kDenseColumns; ++t)
                sums[r][t] = multiply_add(query, key[t], sums[r][t]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) reduce_add_columns(sums[r], logits + r * kTokens);
}

/// Adds the values of tokens [first, last) with their probabilities to `rows` rows of 16 * columns
/// channels. Memory of other tokens is not read: it may hold anything.
template <class Element, int rows, int columns>
void dense_values(const DenseParams& params, const std::byte* values, const float* p,
                  const PageMask& mask, float* out) {
    Floats sums[rows][columns];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < columns; ++c) sums[r][c] = broadcast(0.0f);
    const std::ptrdiff_t stride = Element::kBytes * params.dim;
    for (int token = mask.first; token < mask.last; ++token) {
        Floats value[columns];
#pragma GCC unroll 4
        for (int c = 0; c < columns; ++c)
            value[c] = Element::load(values + token * stride + Element::kBytes * kLanes * c);
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) {
            const Floats weight = broadcast(p[r * kTokens + token]);
#pragma GCC unroll 4
            for (int c = 0; c < columns; ++c)
                sums[r][c] = multiply_add(weight, value[c], sums[r][c]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < columns; ++c) {
            float* to = out + r * params.walk.out_stride + kLanes * c;
            store(add(load(to), sums[r][c]), to);
        }
}

template <class Element>
void dense_page_logits(const DenseParams& params, const std::byte* keys, const std::byte* ahead,
                       DenseScratch& scratch) {
    const std::ptrdiff_t stride = Element::kBytes * params.dim;
    const int rows = params.walk.rows;
    for (int token = 0; token < kTokens; token += kDenseColumns) {
        prefetch_bytes(ahead + token * stride, stride * kDenseColumns);
        const std::byte* at = keys + token * stride;
        int row = 0;
        for (; row + kDenseRows <= rows; row += kDenseRows)
            dense_logits<Element, kDenseRows>(params, at, row, scratch.logits[row] + token);
        for (; row < rows; ++row)
            dense_logits<Element, 1>(params, at, row, scratch.logits[row] + token);
    }
}

inline void dense_softmax(const Walk& walk, const PageMask& mask, DenseScratch& scratch) {
    constexpr float kNoOffsets[kMaxRows] = {};
    if (!mask.all || walk.soft_cap > 0.0f) change_logits(walk, mask, kNoOffsets, scratch.logits[0]);
    const Floats tops = keep_lanes(max_of_rows(scratch.logits[0]), 0, walk.rows);
    store(tops, scratch.tops);
    raise_references(walk, tops);
    for (int row = 0; row < walk.rows; ++row) {
        if (scratch.tops[row] == -kInfinity) {
            store(broadcast(0.0f), scratch.logits[row]);
            store(broadcast(0.0f), scratch.logits[row] + kLanes);
            continue;
        }
        const Floats reference = broadcast(walk.reference[row]);
        const Floats low = exp2(subtract(load(scratch.logits[row]), reference));
        const Floats high = exp2(subtract(load(scratch.logits[row] + kLanes), reference));
        store(low, scratch.logits[row]);
        store(high, scratch.logits[row] + kLanes);
        walk.weight[row] += reduce_add(add(low, high));
    }
}

/// 16 * columns channels from `channel` on, all rows.
template <class Element, int columns>
void dense_value_columns(const DenseParams& params, const PageMask& mask, const std::byte* values,
                         int channel, const DenseScratch& scratch) {
    const Walk& walk = params.walk;
    values += Element::kBytes * channel;
    int row = 0;
    for (; row + kDenseRows <= walk.rows; row += kDenseRows)
        dense_values<Element, kDenseRows, columns>(params, values, scratch.logits[row], mask,
                                                   walk.out + row * walk.out_stride + channel);
    for (; row < walk.rows; ++row)
        dense_values<Element, 1, columns>(params, values, scratch.logits[row], mask,
                                          walk.out + row * walk.out_stride + channel);
}

template <class Element>
void dense_page_values(const DenseParams& params, const PageMask& mask, const std::byte* values,
                       const std::byte* ahead, const DenseScratch& scratch) {
    constexpr int kChannels = kLanes * kDenseColumns;
    constexpr std::ptrdiff_t kAheadBytes = Element::kBytes * kTokens * kChannels;
    int channel = 0;
    for (; channel + kChannels <= params.dim; channel += kChannels, ahead += kAheadBytes) {
        prefetch_bytes(ahead, kAheadBytes);
        dense_value_columns<Element, kDenseColumns>(params, mask, values, channel, scratch);
    }
    for (; channel < params.dim; channel += kLanes)
        dense_value_columns<Element, 1>(params, mask, values, channel, scratch);
}

template <class Element>
void attend_dense(const DenseParams& params) {
    const Walk& walk = params.walk;
    const std::ptrdiff_t side_bytes = Element::kBytes * kTokens * params.dim;
    DenseScratch scratch;
    __builtin_memset(&scratch, 0, sizeof scratch); // absent rows: any numbers
    for (int i = 0; i < walk.page_count; ++i) {
        const PageMask mask = page_mask(walk, walk.first_token + std::int64_t{kTokens} * i);
        if (mask.first >= mask.last) continue;
        const std::byte* keys = walk.pages[i] + walk.head_offset;
        const int later = i + 1 < walk.page_count ? i + 1 : i;
        const std::byte* ahead = walk.pages[later] + walk.head_offset;
        dense_page_logits<Element>(params, keys, ahead, scratch);
        dense_softmax(walk, mask, scratch);
        dense_page_values<Element>(params, mask, keys + side_bytes, ahead + side_bytes, scratch);
    }
}
