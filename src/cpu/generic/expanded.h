// SPDX-License-Identifier: Apache-2.0
// Products of a side's expanded blocks in registers. Included inside an instruction set's namespace, after
// blocks.h; one with tiles has its own (amx/expanded.h).

/// For more rows blocks are expanded once. Where several rows share what is expanded in registers, expanding again for
/// the next ones costs less than storing codes and loading them.
constexpr int kRowsOfPackedCodes = kRowsInRegisters > 1 ? kMaxRows : kRowsInRegisters;

/// What products of `rows` rows need to be set up on this thread, while it lives.
struct ExpandedProducts {
    explicit ExpandedProducts(int /*rows*/) {}
};

/// By whether codes are bytes, and zero-points.
constexpr const KeyBlockFunction* const* kExpandedKeys[] = {kKeyBlocksByZeros<small>,
                                                            kKeyBlocksByZeros<bytes>};
constexpr const ValueBlockFunction* const* kExpandedValues[] = {kValueBlocksByZeros<small>,
                                                                kValueBlocksByZeros<bytes>};

/// `count` blocks of one side, all their rows; small: codes fit the faster dot product.
inline void multiply_expanded(const KeyBlock* blocks, int count, int rows, bool is_small,
                              Zeros zeros) {
    const KeyBlockFunction* by_rows = kExpandedKeys[is_small ? 0 : 1][static_cast<int>(zeros)];
    for (int i = 0; i < count; ++i) multiply_rows(blocks[i], rows, by_rows);
}
inline void multiply_expanded(const ValueBlock* blocks, int count, int rows, bool is_small,
                              Zeros zeros) {
    const ValueBlockFunction* by_rows = kExpandedValues[is_small ? 0 : 1][static_cast<int>(zeros)];
    for (int i = 0; i < count; ++i) multiply_rows(blocks[i], rows, by_rows);
}
