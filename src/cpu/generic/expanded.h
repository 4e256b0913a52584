// SPDX-License-Identifier: Apache-2.0
// Products of a side's expanded blocks in registers. Included inside an instruction set's namespace, after
// blocks.h; one with tiles has its own (amx/expanded.h).

/// What products of `rows` rows need to be set up on this thread, while it lives.
struct ExpandedProducts {
    explicit ExpandedProducts(int /*rows*/) {}
};

/// By whether codes are bytes, and zero-points.
constexpr const KeyBlockFunction* const* kExpandedKeys[] = {kKeyBlocksByZeros<small>,
                                                            kKeyBlocksByZeros<bytes>};
constexpr const ValueBlockFunction* const* kExpandedValues[] = {kValueBlocksByZeros<small>,
                                                                kValueBlocksByZeros<bytes>};

/// Rows that share codes in registers at a time.
template <typename Block, typename Function>
inline void multiply_rows(const Block* blocks, int count, int rows, const Function* by_rows) {
    for (int i = 0; i < count; ++i) {
        for (int row = 0; row < rows; row += kRowsInRegisters) {
            const int left = rows - row;
            by_rows[(left < kRowsInRegisters ? left : kRowsInRegisters) - 1](blocks[i].from(row));
        }
    }
}

/// `count` blocks of one side, all their rows; small: codes fit the faster dot product.
inline void multiply_expanded(const KeyBlock* blocks, int count, int rows, bool is_small,
                              Zeros zeros) {
    multiply_rows(blocks, count, rows, kExpandedKeys[is_small ? 0 : 1][static_cast<int>(zeros)]);
}
inline void multiply_expanded(const ValueBlock* blocks, int count, int rows, bool is_small,
                              Zeros zeros) {
    multiply_rows(blocks, count, rows, kExpandedValues[is_small ? 0 : 1][static_cast<int>(zeros)]);
}
