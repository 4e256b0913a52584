// SPDX-License-Identifier: Apache-2.0
// The state of an online softmax over some tokens, and how states over disjoint tokens become one.
#pragma once

#include "cpu/kernel.h"
#include "innerkv/attention.h"

namespace innerkv {

/// Rows of one KV head. out [rows][padded_dim] is sum of weight * value, weights are powers of two of
/// logits (in units of log2) above the row's reference.
struct SoftmaxState {
    float* out;       ///< 64-byte aligned
    float* reference; ///< [kMaxRows], -inf: no token yet
    float* weight;    ///< [kMaxRows]
};

/// Floats that a state takes when it is stored in one piece.
constexpr std::size_t state_floats(int rows, int padded_dim) {
    return static_cast<std::size_t>(rows * padded_dim + 2 * cpu::kMaxRows);
}
SoftmaxState state_at(float* memory, int rows, int padded_dim);
/// Of the rows from `row` on.
SoftmaxState rows_from(const SoftmaxState& state, int row, int padded_dim);

void clear_state(const SoftmaxState& state, int rows, int padded_dim);
void copy_state(const SoftmaxState& from, const SoftmaxState& to, int rows, int padded_dim);

/// Adds `other` to `state`.
void merge_state(const SoftmaxState& state, const SoftmaxState& other, int rows, int padded_dim);

} // namespace innerkv
