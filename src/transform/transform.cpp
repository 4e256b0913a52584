// SPDX-License-Identifier: Apache-2.0
#include "transform/transform.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "format/clones.h"

namespace innerkv {
namespace {

void zero_padding(int head_dim, float* row) {
    std::fill(row + head_dim, row + transformed_dim(head_dim), 0.0f);
}

void saturate(float* row, int count) {
    for (int c = 0; c < count; ++c) row[c] = std::clamp(row[c], -kLargestF16, kLargestF16);
}

/// Eight channels. A type of the compiler's: the first butterflies are between its elements.
using Eight [[gnu::vector_size(32)]] = float;
constexpr int kEight = 8;

Eight load(const float* from) {
    Eight result;
    std::memcpy(&result, from, sizeof result);
    return result;
}
void store(Eight a, float* to) { std::memcpy(to, &a, sizeof a); }

/// Butterflies of eight elements; the products with -1 are exact.
Eight butterflies(Eight a) {
    constexpr Eight kNear = {1, -1, 1, -1, 1, -1, 1, -1};
    constexpr Eight kPairs = {1, 1, -1, -1, 1, 1, -1, -1};
    constexpr Eight kFours = {1, 1, 1, 1, -1, -1, -1, -1};
    a = a * kNear + __builtin_shufflevector(a, a, 1, 0, 3, 2, 5, 4, 7, 6);
    a = a * kPairs + __builtin_shufflevector(a, a, 2, 3, 0, 1, 6, 7, 4, 5);
    return a * kFours + __builtin_shufflevector(a, a, 4, 5, 6, 7, 0, 1, 2, 3);
}

/// Butterflies of one block of a power of two of at least 8, unscaled.
void walsh_hadamard(float* block, int size) {
    for (int i = 0; i < size; i += kEight) store(butterflies(load(block + i)), block + i);
    for (int half = kEight; half < size; half *= 2) {
        for (int start = 0; start < size; start += 2 * half) {
            for (int i = start; i < start + half; i += kEight) {
                const Eight a = load(block + i);
                const Eight b = load(block + i + half);
                store(a + b, block + i);
                store(a - b, block + i + half);
            }
        }
    }
}

/// `in` [padded_dim], without its rotation, to `out` [head_dim].
void copy_rotated_back(const KeyTransform& transform, int head_dim, const float* in, float* out) {
    if (!transform.rotate) {
        std::copy(in, in + head_dim, out);
        return;
    }
    const int padded_dim = transformed_dim(head_dim);
    float rotated[kMaxTransformedDim];
    std::copy(in, in + padded_dim, rotated);
    hadamard(rotated, padded_dim);
    std::copy(rotated, rotated + head_dim, out);
}

} // namespace

INNERKV_CLONES
void hadamard(float* row, int padded_dim) {
    const int block = padded_dim & -padded_dim;
    const float scale = 1.0f / std::sqrt(static_cast<float>(block));
    for (int start = 0; start < padded_dim; start += block) walsh_hadamard(row + start, block);
    for (int c = 0; c < padded_dim; ++c) row[c] *= scale;
}

void transform_key_row(const KeyTransform& transform, int head_dim, const float* in, float* out) {
    std::copy(in, in + head_dim, out);
    if (transform.centre)
        for (int c = 0; c < head_dim; ++c) out[c] -= transform.centre[c];
    if (transform.norm)
        for (int c = 0; c < head_dim; ++c) out[c] /= transform.norm[c];
    zero_padding(head_dim, out);
    if (transform.rotate) hadamard(out, transformed_dim(head_dim));
    saturate(out, transformed_dim(head_dim));
}

void inverse_transform_key_row(const KeyTransform& transform, int head_dim, const float* in,
                               float* out) {
    copy_rotated_back(transform, head_dim, in, out);
    if (transform.norm)
        for (int c = 0; c < head_dim; ++c) out[c] *= transform.norm[c];
    if (transform.centre)
        for (int c = 0; c < head_dim; ++c) out[c] += transform.centre[c];
}

void transform_value_row(const KeyTransform& transform, int head_dim, const float* in, float* out) {
    std::copy(in, in + head_dim, out);
    if (transform.value_centre)
        for (int c = 0; c < head_dim; ++c) out[c] -= transform.value_centre[c];
    zero_padding(head_dim, out);
    if (transform.rotate) hadamard(out, transformed_dim(head_dim));
    saturate(out, transformed_dim(head_dim));
}

void inverse_transform_value_row(const KeyTransform& transform, int head_dim, const float* in,
                                 float* out) {
    copy_rotated_back(transform, head_dim, in, out);
    if (transform.value_centre)
        for (int c = 0; c < head_dim; ++c) out[c] += transform.value_centre[c];
}

void transform_query_row(const KeyTransform& transform, int head_dim, const float* q, float* out) {
    std::copy(q, q + head_dim, out);
    if (transform.norm)
        for (int c = 0; c < head_dim; ++c) out[c] *= transform.norm[c];
    zero_padding(head_dim, out);
    if (transform.rotate) hadamard(out, transformed_dim(head_dim));
}

float key_centre_logit(const KeyTransform& transform, int head_dim, const float* q) {
    if (!transform.centre) return 0.0f;
    float sum = 0.0f;
    for (int c = 0; c < head_dim; ++c) sum += q[c] * transform.centre[c];
    return sum;
}

} // namespace innerkv
