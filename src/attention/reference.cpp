// SPDX-License-Identifier: Apache-2.0
// Attention in fp64 by its definition, token by token: dequantize, undo the transform, multiply.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

#include "attention/arguments.h"
#include "innerkv/codec.h"

namespace innerkv {
namespace {

/// K and V of one KV head as they would have been appended, [tokens][head_dim].
struct HeadContents {
    std::vector<std::int64_t> positions;
    std::vector<double> k;
    std::vector<double> v;
};

/// The orthonormal Hadamard matrix on blocks of the largest power of two that divides `dim`, by its
/// definition: element (i, j) of a block is (-1)^(bits that i and j share) / sqrt(block).
std::vector<double> rotated(const std::vector<double>& row) {
    const auto dim = static_cast<unsigned>(row.size());
    const unsigned block = dim & (~dim + 1);
    std::vector<double> out(dim);
    for (unsigned i = 0; i < dim; ++i) {
        const unsigned start = i / block * block;
        for (unsigned j = start; j < start + block; ++j)
            out[i] += __builtin_parity(i & j & (block - 1)) ? -row[j] : row[j];
        out[i] /= std::sqrt(block);
    }
    return out;
}

void append_untransformed(const KeyTransform& transform, int head_dim, std::span<const float> k,
                          std::span<const float> v, HeadContents& contents) {
    std::vector<double> key(k.begin(), k.end());
    std::vector<double> value(v.begin(), v.end());
    if (transform.rotate) {
        key = rotated(key);
        value = rotated(value);
    }
    for (int c = 0; c < head_dim; ++c) {
        double element = key[static_cast<std::size_t>(c)];
        if (transform.norm) element *= transform.norm[c];
        if (transform.centre) element += transform.centre[c];
        contents.k.push_back(element);
        contents.v.push_back(value[static_cast<std::size_t>(c)] +
                             (transform.value_centre ? transform.value_centre[c] : 0.0));
    }
}

/// The centre of one page of the quantized run, [head_dim]; empty: the transform's own.
std::vector<double> epoch_centre(const CentreRun& centres, std::size_t page, int kv_head,
                                 int head_dim) {
    if (centres.epochs.empty() || centres.epoch_pages < 1) return {};
    const std::size_t epoch = (static_cast<std::size_t>(centres.first_page) + page) /
                              static_cast<std::size_t>(centres.epoch_pages);
    const std::byte* from = centres.epochs[epoch] + 2 * kv_head * std::ptrdiff_t{head_dim};
    std::vector<double> centre;
    for (int c = 0; c < head_dim; ++c) {
        std::uint16_t bits = 0;
        std::memcpy(&bits, from + 2 * c, sizeof bits);
        centre.push_back(static_cast<double>(float_from_f16(bits)));
    }
    return centre;
}

void append_run(const PageFormat& format, const PageRun& run, const CentreRun& centres, int kv_head,
                const KeyTransform& transform, int head_dim, HeadContents& contents) {
    const auto dim = static_cast<std::size_t>(format.head_dim);
    std::vector<float> k(kPageTokens * dim);
    std::vector<float> v(kPageTokens * dim);
    std::vector<double> centre;
    for (std::int64_t token = 0; token < run.tokens; ++token) {
        const auto row = static_cast<std::size_t>(token % kPageTokens);
        if (row == 0) {
            const auto index = static_cast<std::size_t>(token / kPageTokens);
            const std::byte* page =
                run.pages[index] + static_cast<std::size_t>(kv_head) * run.head_stride;
            dequantize_page(format, page, k.data(), format.head_dim, v.data(), format.head_dim);
            centre = epoch_centre(centres, index, kv_head, head_dim);
        }
        append_untransformed(transform, head_dim, {&k[row * dim], dim}, {&v[row * dim], dim},
                             contents);
        for (std::size_t c = 0; c < centre.size(); ++c)
            contents.k[contents.k.size() - centre.size() + c] += centre[c];
        contents.positions.push_back(run.first_token + token);
    }
}

HeadContents head_contents(const AttentionShape& shape, const SequenceView& sequence, int kv_head) {
    const int head_dim = shape.format.head_dim;
    const PageFormat windows{kF16, kF16, head_dim};
    // Rotation fills the padding.
    const PageFormat quantized{shape.format.k, shape.format.v, shape.format.padded_dim()};
    const KeyTransform transform = sequence.transforms.empty()
                                       ? KeyTransform{}
                                       : sequence.transforms[static_cast<std::size_t>(kv_head)];
    HeadContents contents;
    append_run(windows, sequence.sink, {}, kv_head, {}, head_dim, contents);
    append_run(quantized, sequence.quantized, sequence.centres, kv_head, transform, head_dim,
               contents);
    append_run(windows, sequence.recent, {}, kv_head, {}, head_dim, contents);
    return contents;
}

double logit(const AttentionShape& shape, const float* q, const double* k) {
    double sum = 0.0;
    for (int c = 0; c < shape.format.head_dim; ++c) sum += q[c] * k[c];
    sum *= logit_scale(shape);
    if (!std::isfinite(sum)) return std::numeric_limits<double>::quiet_NaN();
    if (shape.soft_cap > 0.0f) sum = shape.soft_cap * std::tanh(sum / shape.soft_cap);
    return sum;
}

/// One query row: writes `out` [head_dim] and returns the log-sum-exp.
double attend_row(const AttentionShape& shape, const HeadContents& contents, VisibleRange visible,
                  const float* q, float* out) {
    const auto dim = static_cast<std::size_t>(shape.format.head_dim);
    std::vector<double> logits(contents.positions.size());
    double largest = -std::numeric_limits<double>::infinity();
    const auto sees = [&](std::size_t token) {
        return contents.positions[token] >= visible.begin &&
               contents.positions[token] < visible.end;
    };
    for (std::size_t token = 0; token < logits.size(); ++token) {
        if (!sees(token)) continue;
        logits[token] = logit(shape, q, &contents.k[token * dim]);
        largest = std::max(largest, logits[token]);
    }
    std::vector<double> sums(dim);
    double weights = 0.0;
    for (std::size_t token = 0; token < logits.size(); ++token) {
        if (!sees(token)) continue;
        const double weight = std::exp(logits[token] - largest);
        weights += weight;
        for (std::size_t c = 0; c < dim; ++c) sums[c] += weight * contents.v[token * dim + c];
    }
    for (std::size_t c = 0; c < dim; ++c)
        out[c] = weights == 0.0 ? 0.0f : static_cast<float>(sums[c] / weights);
    return largest + std::log(weights);
}

void attend_head(const AttentionShape& shape, const QueryBlock& block, int kv_head) {
    const HeadContents contents = head_contents(shape, *block.sequence, kv_head);
    const int group = shape.q_heads / shape.kv_heads;
    for (int token = 0; token < block.tokens; ++token) {
        const VisibleRange visible =
            visible_range(shape, *block.sequence, block.first_position + token);
        for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
            const double log_sum_exp = attend_row(
                shape, contents, visible,
                block.q + token * block.q_token_stride + head * block.q_head_stride,
                block.out + token * block.out_token_stride + head * block.out_head_stride);
            if (block.log_sum_exp)
                block.log_sum_exp[token * shape.q_heads + head] = static_cast<float>(log_sum_exp);
        }
    }
}

} // namespace

void attention_reference(const AttentionShape& shape, std::span<const QueryBlock> blocks) {
    check_attention_arguments(shape, blocks);
    for (const QueryBlock& block : blocks)
        for (int kv_head = 0; kv_head < shape.kv_heads; ++kv_head)
            attend_head(shape, block, kv_head);
}

} // namespace innerkv
