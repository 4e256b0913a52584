// SPDX-License-Identifier: Apache-2.0
#include "attention/merge.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "innerkv/error.h"

namespace innerkv {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

} // namespace

SoftmaxState state_at(float* memory, int rows, int padded_dim) {
    float* reference = memory + rows * padded_dim;
    return {memory, reference, reference + cpu::kMaxRows};
}

SoftmaxState rows_from(const SoftmaxState& state, int row, int padded_dim) {
    return {state.out + row * padded_dim, state.reference + row, state.weight + row};
}

void clear_state(const SoftmaxState& state, int rows, int padded_dim) {
    std::fill_n(state.out, rows * padded_dim, 0.0f);
    std::fill_n(state.reference, cpu::kMaxRows, -kInfinity);
    std::fill_n(state.weight, cpu::kMaxRows, 0.0f);
}

void copy_state(const SoftmaxState& from, const SoftmaxState& to, int rows, int padded_dim) {
    std::copy_n(from.out, rows * padded_dim, to.out);
    std::copy_n(from.reference, cpu::kMaxRows, to.reference);
    std::copy_n(from.weight, cpu::kMaxRows, to.weight);
}

void merge_state(const SoftmaxState& state, const SoftmaxState& other, int rows, int padded_dim) {
    for (int row = 0; row < rows; ++row) {
        if (other.reference[row] == -kInfinity) continue;
        const float reference = std::max(state.reference[row], other.reference[row]);
        const float own_factor = std::exp2(state.reference[row] - reference);
        const float other_factor = std::exp2(other.reference[row] - reference);
        float* out = state.out + row * padded_dim;
        const float* other_out = other.out + row * padded_dim;
        for (int c = 0; c < padded_dim; ++c)
            out[c] = out[c] * own_factor + other_out[c] * other_factor;
        state.weight[row] = state.weight[row] * own_factor + other.weight[row] * other_factor;
        state.reference[row] = reference;
    }
}

void merge_attention(std::span<float> out, float& log_sum_exp, std::span<const float> other_out,
                     float other_log_sum_exp) {
    if (out.size() != other_out.size())
        throw InvalidArgument("merge_attention: states of " + std::to_string(out.size()) + " and " +
                              std::to_string(other_out.size()) +
                              " channels; they must have the same head dimension");
    if (other_log_sum_exp == -kInfinity) return;
    const double reference = std::max(log_sum_exp, other_log_sum_exp);
    const double weight = std::exp(log_sum_exp - reference);
    const double other_weight = std::exp(other_log_sum_exp - reference);
    const double sum = weight + other_weight;
    for (std::size_t c = 0; c < out.size(); ++c)
        out[c] = static_cast<float>((out[c] * weight + other_out[c] * other_weight) / sum);
    log_sum_exp = static_cast<float>(reference + std::log(sum));
}

} // namespace innerkv
