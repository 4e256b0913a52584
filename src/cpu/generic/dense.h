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

struct alignas(64) DenseScratch {
    float logits[kMaxRows][kTokens];
    float tops[kMaxRows];
};

/// Logits of `rows` rows with `tokens` tokens.
template <class Element, int rows, int tokens>
void dense_logits(const DenseParams& params, const std::byte* keys, int row, float* logits) {
    Floats sums[rows][tokens];
    for (int r = 0; r < rows; ++r)
        for (int t = 0; t < tokens; ++t) sums[r][t] = broadcast(0.0f);
    const float* q = params.q + row * kMaxDim;
    const std::ptrdiff_t stride = Element::kBytes * params.dim;
    for (int channel = 0; channel < params.dim; channel += kLanes) {
        Floats key[tokens];
#pragma GCC unroll 4
        for (int t = 0; t < tokens; ++t)
            key[t] = Element::load(keys + t * stride + Element::kBytes * channel);
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) {
            const Floats query = load(q + r * kMaxDim + channel);
#pragma GCC unroll 4
            for (int t = 0; t < tokens; ++t) sums[r][t] = multiply_add(query, key[t], sums[r][t]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int t = 0; t < tokens; ++t)
            logits[r * kTokens + t] = reduce_add(sums[r][t]) + params.logit_offset[row + r];
}

/// Adds the values of tokens [first, last) with their probabilities to `rows` rows of 16 channels.
/// Memory of other tokens is not read: it may hold anything.
template <class Element, int rows>
void dense_values(const DenseParams& params, const std::byte* values, const float* p, int first,
                  int last, float* out) {
    Floats sums[rows];
    for (int r = 0; r < rows; ++r) sums[r] = broadcast(0.0f);
    const std::ptrdiff_t stride = Element::kBytes * params.dim;
    for (int token = first; token < last; ++token) {
        const Floats value = Element::load(values + token * stride);
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r)
            sums[r] = multiply_add(broadcast(p[r * kTokens + token]), value, sums[r]);
    }
    for (int r = 0; r < rows; ++r) {
        float* to = out + r * params.walk.out_stride;
        store(add(load(to), sums[r]), to);
    }
}

template <class Element>
void dense_page_logits(const DenseParams& params, const std::byte* keys, DenseScratch& scratch) {
    constexpr int kRows = kDenseRows;
    const std::ptrdiff_t stride = Element::kBytes * params.dim;
    int row = 0;
    for (; row + kRows <= params.walk.rows; row += kRows)
        for (int token = 0; token < kTokens; token += kDenseTokens)
            dense_logits<Element, kRows, kDenseTokens>(params, keys + token * stride, row,
                                                       scratch.logits[row] + token);
    for (; row < params.walk.rows; ++row)
        for (int token = 0; token < kTokens; token += kDenseTokens)
            dense_logits<Element, 1, kDenseTokens>(params, keys + token * stride, row,
                                                   scratch.logits[row] + token);
}

inline void dense_softmax(const Walk& walk, const PageMask& mask, DenseScratch& scratch) {
    finish_logits(walk, mask, scratch.logits[0], scratch.tops);
    raise_references(walk, scratch.tops);
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

template <class Element>
void dense_page_values(const DenseParams& params, const PageMask& mask, const std::byte* values,
                       const DenseScratch& scratch) {
    constexpr int kRows =
        kDenseRows * kDenseTokens; // one sum a row: as many rows as logits have sums
    constexpr int kFewRows = kRows < 4 ? kRows : 4;
    const Walk& walk = params.walk;
    const int first = mask.first;
    const int last = mask.last;
    for (int channel = 0; channel < params.dim; channel += kLanes) {
        const std::byte* column = values + Element::kBytes * channel;
        int row = 0;
        for (; row + kFewRows <= walk.rows; row += kFewRows)
            dense_values<Element, kFewRows>(params, column, scratch.logits[row], first, last,
                                            walk.out + row * walk.out_stride + channel);
        for (; row < walk.rows; ++row)
            dense_values<Element, 1>(params, column, scratch.logits[row], first, last,
                                     walk.out + row * walk.out_stride + channel);
    }
}

template <class Element>
void attend_dense(const DenseParams& params) {
    const Walk& walk = params.walk;
    DenseScratch scratch;
    for (int i = 0; i < walk.page_count; ++i) {
        const PageMask mask = page_mask(walk, walk.first_token + std::int64_t{kTokens} * i);
        if (mask.first >= mask.last) continue;
        const std::byte* keys = walk.pages[i] + walk.head_offset;
        dense_page_logits<Element>(params, keys, scratch);
        dense_softmax(walk, mask, scratch);
        dense_page_values<Element>(params, mask, keys + Element::kBytes * kTokens * params.dim,
                                   scratch);
    }
}
