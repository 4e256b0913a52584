// SPDX-License-Identifier: Apache-2.0
// What a key, value or query row goes through around quantized pages (KeyTransform, view.h): the
// cache applies it on the way into a page and inverts it on truncate, attention applies it to queries.
// Rows only: nothing here knows of pages, codecs or sequences.
//
// Key      K' = H((K - centre) / norm)        K = H(K') * norm + centre
// Value    V' = H(V - value_centre)           V = H(V') + value_centre
// Query    q' = H(q * norm), and q . centre is added to the logit
//
// so that q' . K' + q . centre = q . K; an output over V' is rotated back. H is orthonormal and its own inverse. A transformed row has
// padded_dim elements: with `rotate` all of them carry data even where head_dim is smaller, so pages of
// a sequence are quantized as PageFormat{k, v, padded_dim}, which has the same bytes.
#pragma once

#include <iterator>

#include "innerkv/codec.h"
#include "innerkv/view.h"

namespace innerkv {

/// Channels of a transformed row: head_dim padded to whole blocks (PageFormat::padded_dim).
constexpr int transformed_dim(int head_dim) {
    return PageFormat{kF16, kF16, head_dim}.padded_dim();
}

/// The largest of kHeadDims, padded: size of a stack buffer for one row.
inline constexpr int kMaxTransformedDim = transformed_dim(kHeadDims[std::size(kHeadDims) - 1]);
static_assert(kMaxTransformedDim == 256);

/// In place: the orthonormal Hadamard matrix on blocks of the largest power of two that divides
/// padded_dim. Applying it twice gives the input back, up to rounding.
void hadamard(float* row, int padded_dim);

/// `in` [head_dim] to `out` [padded_dim]; padding is zero before the rotation. Values beyond kLargestF16
/// saturate: only rows far outside what norm and centre were taken from get there. No aliasing.
void transform_key_row(const KeyTransform& transform, int head_dim, const float* in, float* out);

/// `in` [padded_dim] to `out` [head_dim]. No aliasing.
void inverse_transform_key_row(const KeyTransform& transform, int head_dim, const float* in,
                               float* out);

/// `in` [head_dim] to `out` [padded_dim]; saturates likewise. No aliasing.
void transform_value_row(const KeyTransform& transform, int head_dim, const float* in, float* out);

/// `in` [padded_dim] to `out` [head_dim]. No aliasing.
void inverse_transform_value_row(const KeyTransform& transform, int head_dim, const float* in,
                                 float* out);

/// `q` [head_dim] to `out` [padded_dim]. Not limited: queries are not stored. No aliasing.
void transform_query_row(const KeyTransform& transform, int head_dim, const float* q, float* out);

/// q . centre, what the logits of quantized tokens lack; 0 without a centre.
float key_centre_logit(const KeyTransform& transform, int head_dim, const float* q);

} // namespace innerkv
