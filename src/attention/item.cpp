// SPDX-License-Identifier: Apache-2.0
#include "attention/item.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "attention/arguments.h"
#include "innerkv/codec.h"
#include "transform/transform.h"

namespace innerkv {
namespace {

using cpu::kMaxDim;
using cpu::kMaxGroups;
using cpu::kMaxRows;

constexpr float kLog2E = std::numbers::log2e_v<float>;

/// Of the logits, which are in units of log2.
float log2_scale(const ItemRows& rows) { return logit_scale(rows.shape) * kLog2E; }

/// Kernels get finite numbers only, and none so large that a product with keys is infinite: other rows
/// become zeros, and their weights are made NaN when all pages are done.
constexpr float kLargestQuery = 1e30f;

void clear_faulty_rows(const ItemRows& rows, float scale, int dim, float* q, bool* faulty) {
    for (int row = 0; row < rows.rows; ++row, q += kMaxDim) {
        int faults = 0;
        for (int c = 0; c < dim; ++c) faults += !(std::abs(q[c] * scale) <= kLargestQuery);
        if (faults == 0) continue;
        std::fill_n(q, dim, 0.0f);
        faulty[row] = true;
    }
}

/// What all runs of an item share.
struct RowVisibility {
    std::int64_t begin[kMaxRows];
    std::int64_t end[kMaxRows];
};

cpu::Walk make_walk(const ItemRows& rows, const PageRun& run, const PageInterval& pages,
                    RowVisibility& visibility, const SoftmaxState& state) {
    const std::int64_t run_end = run.first_token + run.tokens;
    for (int row = 0; row < rows.rows; ++row) {
        const VisibleRange visible = visible_range(rows.shape, *rows.block.sequence,
                                                   rows.block.first_position + rows.token(row));
        visibility.begin[row] = visible.begin;
        visibility.end[row] = std::min(visible.end, run_end);
    }
    cpu::Walk walk;
    walk.pages = run.pages.data() + pages.first;
    walk.head_offset = static_cast<std::size_t>(rows.kv_head) * run.head_stride;
    walk.page_count = pages.count();
    walk.rows = rows.rows;
    walk.first_token = run.first_token + std::int64_t{kPageTokens} * pages.first;
    walk.visible_begin = visibility.begin;
    walk.visible_end = visibility.end;
    walk.soft_cap = rows.shape.soft_cap * kLog2E;
    walk.out_stride = rows.shape.format.padded_dim();
    walk.out = state.out;
    walk.reference = state.reference;
    walk.weight = state.weight;
    return walk;
}

cpu::Side make_side(Codec codec, std::size_t offset) {
    return {codec.bits,
            codec.kind == CodecKind::asymmetric || codec.kind == CodecKind::affine,
            codec.kind == CodecKind::affine,
            codec.kind == CodecKind::hybrid,
            offset,
            codec.code_bytes(),
            codec.block_bytes()};
}

/// q' of every row [rows][kMaxDim], and what q . centre adds to its logits, in units of log2.
struct TransformedQueries {
    alignas(64) float q[kMaxRows * kMaxDim];
    float logit_offset[kMaxRows];

    TransformedQueries(const ItemRows& rows, const KeyTransform& transform, bool* faulty) {
        const int head_dim = rows.shape.format.head_dim;
        const float scale = log2_scale(rows);
        for (int row = 0; row < rows.rows; ++row)
            transform_query_row(transform, head_dim, rows.q(row), q + row * kMaxDim);
        clear_faulty_rows(rows, scale, rows.shape.format.padded_dim(), q, faulty);
        std::fill_n(logit_offset, kMaxRows, 0.0f);
        for (int row = 0; row < rows.rows; ++row)
            if (!faulty[row])
                logit_offset[row] = key_centre_logit(transform, head_dim, rows.q(row)) * scale;
    }
};

void attend_integer(const cpu::Kernel& kernel, const ItemRows& rows, const cpu::Walk& walk,
                    const TransformedQueries& queries) {
    const PageFormat& format = rows.shape.format;
    alignas(64) std::int8_t q_codes[kMaxRows * kMaxDim];
    alignas(64) float q_scales[kMaxGroups * kMaxRows] = {};
    alignas(64) std::int32_t q_sums[kMaxGroups * kMaxRows] = {};
    kernel.quantize_query(
        {rows.rows, format.blocks(), log2_scale(rows), queries.q, q_codes, q_scales, q_sums});
    kernel.attend_quantized({walk, format.blocks(), make_side(format.k, 0),
                             make_side(format.v, format.v_offset()), q_codes, q_scales, q_sums,
                             queries.logit_offset});
}

/// q times the logits' scale, [rows][kMaxDim].
void scale_queries(const ItemRows& rows, int dim, float* q) {
    const float scale = log2_scale(rows);
    for (int row = 0; row < rows.rows; ++row)
        for (int c = 0; c < dim; ++c) q[row * kMaxDim + c] *= scale;
}

/// Page by page through fp32.
void attend_exact(const cpu::Kernel& kernel, const ItemRows& rows, const cpu::Walk& walk,
                  TransformedQueries& queries) {
    const int dim = rows.shape.format.padded_dim();
    const PageFormat format{rows.shape.format.k, rows.shape.format.v, dim};
    scale_queries(rows, dim, queries.q);
    alignas(64) float page[2 * kPageTokens * kMaxDim];
    const std::byte* const pages[] = {reinterpret_cast<const std::byte*>(page)};
    cpu::DenseParams params{walk, dim, queries.q, queries.logit_offset};
    params.walk.pages = pages;
    params.walk.head_offset = 0;
    params.walk.page_count = 1;
    for (int i = 0; i < walk.page_count; ++i) {
        dequantize_page(format, walk.pages[i] + walk.head_offset, page, dim,
                        page + kPageTokens * dim, dim);
        params.walk.first_token = walk.first_token + std::int64_t{kPageTokens} * i;
        kernel.attend_f32(params);
    }
}

void attend_quantized_run(const cpu::Kernel& kernel, Arithmetic arithmetic, const ItemRows& rows,
                          const PageInterval& pages, const SoftmaxState& state, bool* faulty) {
    const SequenceView& sequence = *rows.block.sequence;
    const KeyTransform transform =
        sequence.transforms.empty() ? KeyTransform{}
                                    : sequence.transforms[static_cast<std::size_t>(rows.kv_head)];
    RowVisibility visibility;
    const cpu::Walk walk = make_walk(rows, sequence.quantized, pages, visibility, state);
    TransformedQueries queries(rows, transform, faulty);
    if (arithmetic == Arithmetic::integer)
        attend_integer(kernel, rows, walk, queries);
    else
        attend_exact(kernel, rows, walk, queries);
    // All that is in the state so far is of quantized tokens.
    if (transform.rotate)
        for (int row = 0; row < rows.rows; ++row)
            hadamard(state.out + row * walk.out_stride, walk.out_stride);
    if (!transform.value_centre) return;
    for (int row = 0; row < rows.rows; ++row)
        for (int c = 0; c < rows.shape.format.head_dim; ++c)
            state.out[row * walk.out_stride + c] += state.weight[row] * transform.value_centre[c];
}

void attend_windows(const cpu::Kernel& kernel, const ItemRows& rows, const PageShare& pages,
                    const SoftmaxState& state, bool* faulty) {
    const SequenceView& sequence = *rows.block.sequence;
    const int head_dim = rows.shape.format.head_dim;
    alignas(64) float q[kMaxRows * kMaxDim];
    alignas(64) const float no_offset[kMaxRows] = {};
    for (int row = 0; row < rows.rows; ++row) std::copy_n(rows.q(row), head_dim, q + row * kMaxDim);
    clear_faulty_rows(rows, log2_scale(rows), head_dim, q, faulty);
    scale_queries(rows, head_dim, q);
    RowVisibility visibility;
    if (pages.sink.count() > 0)
        kernel.attend_f16({make_walk(rows, sequence.sink, pages.sink, visibility, state), head_dim,
                           q, no_offset});
    if (pages.recent.count() > 0)
        kernel.attend_f16({make_walk(rows, sequence.recent, pages.recent, visibility, state),
                           head_dim, q, no_offset});
}

} // namespace

void attend_pages(const cpu::Kernel& kernel, Arithmetic arithmetic, const ItemRows& rows,
                  const PageShare& pages, const SoftmaxState& state) {
    bool faulty[kMaxRows] = {};
    if (pages.quantized.count() > 0)
        attend_quantized_run(kernel, arithmetic, rows, pages.quantized, state, faulty);
    if (pages.sink.count() + pages.recent.count() > 0)
        attend_windows(kernel, rows, pages, state, faulty);
    for (int row = 0; row < rows.rows; ++row)
        if (faulty[row] && state.weight[row] > 0.0f)
            state.weight[row] = std::numeric_limits<float>::quiet_NaN();
}

void write_rows(const ItemRows& rows, const SoftmaxState& state) {
    const AttentionShape& shape = rows.shape;
    const QueryBlock& block = rows.block;
    for (int row = 0; row < rows.rows; ++row) {
        const int token = rows.token(row);
        const int head = rows.q_head(row);
        const float weight = state.weight[row];
        const float inverse = weight == 0.0f ? 0.0f : 1.0f / weight;
        const float* sums = state.out + row * shape.format.padded_dim();
        float* out = block.out + token * block.out_token_stride + head * block.out_head_stride;
        for (int c = 0; c < shape.format.head_dim; ++c) out[c] = sums[c] * inverse;
        if (!block.log_sum_exp) continue;
        block.log_sum_exp[token * shape.q_heads + head] =
            weight == 0.0f ? -std::numeric_limits<float>::infinity()
                           : (state.reference[row] + std::log2(weight)) / kLog2E;
    }
}

} // namespace innerkv
