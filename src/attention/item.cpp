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

using RunMember = PageRun SequenceView::*;

cpu::Walk make_walk(const ItemRows& rows, RunMember kind, const PageInterval& pages,
                    RowVisibility& visibility, const SoftmaxState& state) {
    for (int i = 0; i < rows.rows; ++i) {
        const Row& row = rows.row[i];
        // Its own sequence's: another may have got further on the same pages.
        const SequenceView& sequence = *row.block->sequence;
        const PageRun& own = sequence.*kind;
        const VisibleRange visible = visible_range(rows.shape, sequence, row.position());
        visibility.begin[i] = visible.begin;
        visibility.end[i] = std::min(visible.end, own.first_token + own.tokens);
    }
    const PageRun& run = rows.sequence().*kind;
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

/// q times the logits' scale, [rows][kMaxDim].
void scale_queries(const ItemRows& rows, int dim, float* q) {
    const float scale = log2_scale(rows);
    for (int row = 0; row < rows.rows; ++row)
        for (int c = 0; c < dim; ++c) q[row * kMaxDim + c] *= scale;
}

/// q of every row times the logits' scale, for keys as they are; those that kernels may not get zeroed.
struct ScaledQueries {
    alignas(64) float q[kMaxRows * kMaxDim];

    ScaledQueries(const ItemRows& rows, bool* faulty) {
        const int head_dim = rows.shape.format.head_dim;
        for (int row = 0; row < rows.rows; ++row)
            std::copy_n(rows.row[row].q(), head_dim, q + row * kMaxDim);
        clear_faulty_rows(rows, log2_scale(rows), head_dim, q, faulty);
        scale_queries(rows, head_dim, q);
    }
};

/// Pages whose logits are made in one call: as many epochs as LogitOffsets has room for.
constexpr int kMaxEpochs = 64;

/// What q . centre adds to the rows' logits, in units of log2, epoch by epoch.
class LogitOffsets {
public:
    LogitOffsets(const cpu::Kernel& kernel, const ItemRows& rows, const KeyTransform& transform,
                 const float* scaled_q)
        : kernel_(kernel), rows_(rows), centres_(rows.sequence().centres), q_(scaled_q) {
        for (int row = 0; row < rows.rows; ++row)
            at_[row] = key_centre_logit(transform, rows.shape.format.head_dim, q_ + row * kMaxDim);
    }

    /// The first of `pages` that one call can take together; fills their offsets.
    PageInterval take(const PageInterval& pages) {
        if (centres_.epochs.empty()) return pages;
        const int position = centres_.first_page + pages.first;
        const int epoch = position / centres_.epoch_pages;
        const std::int64_t end =
            std::int64_t{epoch + kMaxEpochs} * centres_.epoch_pages - centres_.first_page;
        const PageInterval taken{pages.first,
                                 static_cast<int>(std::min<std::int64_t>(end, pages.last))};
        first_page_ = position % centres_.epoch_pages;
        const int head_dim = rows_.shape.format.head_dim;
        kernel_.centre_logits(
            {rows_.rows, head_dim, q_, centres_.epochs.data() + epoch,
             sizeof(std::uint16_t) * static_cast<std::size_t>(rows_.kv_head * head_dim),
             (first_page_ + taken.count() - 1) / centres_.epoch_pages + 1, at_});
        return taken;
    }

    const float* at() const { return at_; }
    int epoch_pages() const {
        return centres_.epochs.empty() ? std::numeric_limits<int>::max() : centres_.epoch_pages;
    }
    int first_page() const { return first_page_; } ///< of those taken last, in its epoch

private:
    const cpu::Kernel& kernel_;
    const ItemRows& rows_;
    const CentreRun& centres_;
    const float* q_;
    int first_page_ = 0;
    alignas(64) float at_[kMaxEpochs * kMaxRows]; ///< those of rows that there are
};

/// q' of every row.
struct TransformedQueries {
    alignas(64) float q[kMaxRows * kMaxDim];

    TransformedQueries(const ItemRows& rows, const KeyTransform& transform, bool* faulty) {
        for (int row = 0; row < rows.rows; ++row)
            transform_query_row(transform, rows.shape.format.head_dim, rows.row[row].q(),
                                q + row * kMaxDim);
        clear_faulty_rows(rows, log2_scale(rows), rows.shape.format.padded_dim(), q, faulty);
    }
};

/// Queries as the integer kernels take them.
struct IntegerQueries {
    alignas(64) std::int8_t codes[kMaxRows * kMaxDim];
    alignas(64) float scales[kMaxGroups * kMaxRows] = {};
    alignas(64) std::int32_t sums[kMaxGroups * kMaxRows] = {};

    IntegerQueries(const cpu::Kernel& kernel, const ItemRows& rows,
                   const TransformedQueries& queries) {
        kernel.quantize_query({rows.rows, rows.shape.format.blocks(), log2_scale(rows), queries.q,
                               codes, scales, sums});
    }
};

void attend_integer(const cpu::Kernel& kernel, const PageFormat& format, const cpu::Walk& walk,
                    const IntegerQueries& queries, const LogitOffsets& offsets) {
    kernel.attend_quantized({walk, format.blocks(), make_side(format.k, 0),
                             make_side(format.v, format.v_offset()), queries.codes, queries.scales,
                             queries.sums, offsets.at(), offsets.epoch_pages(),
                             offsets.first_page()});
}

/// Page by page through fp32; `q` is q' times the logits' scale.
void attend_exact(const cpu::Kernel& kernel, const PageFormat& format, const cpu::Walk& walk,
                  const float* q, const LogitOffsets& offsets) {
    const int dim = format.padded_dim();
    const PageFormat padded{format.k, format.v, dim};
    alignas(64) float page[2 * kPageTokens * kMaxDim];
    const std::byte* const pages[] = {reinterpret_cast<const std::byte*>(page)};
    cpu::DenseParams params{walk, dim, q, nullptr};
    params.walk.pages = pages;
    params.walk.head_offset = 0;
    params.walk.page_count = 1;
    for (int i = 0; i < walk.page_count; ++i) {
        dequantize_page(padded, walk.pages[i] + walk.head_offset, page, dim,
                        page + kPageTokens * dim, dim);
        params.walk.first_token = walk.first_token + std::int64_t{kPageTokens} * i;
        params.logit_offset = offsets.at() + (offsets.first_page() + i) / offsets.epoch_pages() *
                                                 std::ptrdiff_t{kMaxRows};
        kernel.attend_f32(params);
    }
}

/// What has been added to the state so far is of quantized tokens: their values' transform undone.
void transform_values_back(const ItemRows& rows, const KeyTransform& transform,
                           const SoftmaxState& state) {
    const int dim = rows.shape.format.padded_dim();
    for (int row = 0; row < rows.rows; ++row) {
        float* out = state.out + row * dim;
        if (transform.rotate) hadamard(out, dim);
        if (!transform.value_centre) continue;
        for (int c = 0; c < rows.shape.format.head_dim; ++c)
            out[c] += state.weight[row] * transform.value_centre[c];
    }
}

/// `attend` gets the quantized pages in as many walks as their epochs need.
template <typename Attend>
void walk_epochs(const ItemRows& rows, PageInterval pages, LogitOffsets& offsets,
                 const SoftmaxState& state, const Attend& attend) {
    while (pages.count() > 0) {
        const PageInterval taken = offsets.take(pages);
        pages.first = taken.last;
        RowVisibility visibility;
        attend(make_walk(rows, &SequenceView::quantized, taken, visibility, state));
    }
}

void attend_quantized_run(const cpu::Kernel& kernel, Arithmetic arithmetic, const ItemRows& rows,
                          const PageInterval& pages, const ScaledQueries& scaled,
                          const SoftmaxState& state, bool* faulty) {
    const SequenceView& sequence = rows.sequence();
    const PageFormat& format = rows.shape.format;
    const KeyTransform transform =
        sequence.transforms.empty() ? KeyTransform{}
                                    : sequence.transforms[static_cast<std::size_t>(rows.kv_head)];
    TransformedQueries queries(rows, transform, faulty);
    LogitOffsets offsets(kernel, rows, transform, scaled.q);
    if (arithmetic == Arithmetic::integer) {
        const IntegerQueries integers(kernel, rows, queries);
        walk_epochs(rows, pages, offsets, state, [&](const cpu::Walk& walk) {
            attend_integer(kernel, format, walk, integers, offsets);
        });
    } else {
        scale_queries(rows, format.padded_dim(), queries.q);
        walk_epochs(rows, pages, offsets, state, [&](const cpu::Walk& walk) {
            attend_exact(kernel, format, walk, queries.q, offsets);
        });
    }
    transform_values_back(rows, transform, state);
}

void attend_windows(const cpu::Kernel& kernel, const ItemRows& rows, const PageShare& pages,
                    const ScaledQueries& scaled, const SoftmaxState& state) {
    const int head_dim = rows.shape.format.head_dim;
    alignas(64) const float no_offset[kMaxRows] = {};
    RowVisibility visibility;
    if (pages.sink.count() > 0)
        kernel.attend_f16({make_walk(rows, &SequenceView::sink, pages.sink, visibility, state),
                           head_dim, scaled.q, no_offset});
    if (pages.recent.count() > 0)
        kernel.attend_f16({make_walk(rows, &SequenceView::recent, pages.recent, visibility, state),
                           head_dim, scaled.q, no_offset});
}

} // namespace

void ItemRows::add(const QueryBlock& block, const Strip& strip) {
    const int group = shape.q_heads / shape.kv_heads;
    for (int i = strip.first_row; i < strip.first_row + strip.rows; ++i)
        row[rows++] = {&block, i / group, kv_head * group + i % group};
}

void attend_pages(const cpu::Kernel& kernel, Arithmetic arithmetic, const ItemRows& rows,
                  const PageShare& pages, const SoftmaxState& state) {
    bool faulty[kMaxRows] = {};
    const ScaledQueries scaled(rows, faulty);
    if (pages.quantized.count() > 0)
        attend_quantized_run(kernel, arithmetic, rows, pages.quantized, scaled, state, faulty);
    if (pages.sink.count() + pages.recent.count() > 0)
        attend_windows(kernel, rows, pages, scaled, state);
    for (int row = 0; row < rows.rows; ++row)
        if (faulty[row] && state.weight[row] > 0.0f)
            state.weight[row] = std::numeric_limits<float>::quiet_NaN();
}

void write_rows(const ItemRows& rows, const SoftmaxState& state) {
    const AttentionShape& shape = rows.shape;
    for (int i = 0; i < rows.rows; ++i) {
        const Row& row = rows.row[i];
        const QueryBlock& block = *row.block;
        const float weight = state.weight[i];
        const float inverse = weight == 0.0f ? 0.0f : 1.0f / weight;
        const float* sums = state.out + i * shape.format.padded_dim();
        float* out =
            block.out + row.token * block.out_token_stride + row.q_head * block.out_head_stride;
        for (int c = 0; c < shape.format.head_dim; ++c) out[c] = sums[c] * inverse;
        if (!block.log_sum_exp) continue;
        block.log_sum_exp[row.token * shape.q_heads + row.q_head] =
            weight == 0.0f ? -std::numeric_limits<float>::infinity()
                           : (state.reference[i] + std::log2(weight)) / kLog2E;
    }
}

} // namespace innerkv
