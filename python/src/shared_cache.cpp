// SPDX-License-Identifier: Apache-2.0
#include "shared_cache.h"

#include <algorithm>
#include <limits>
#include <memory>

#include "checks.h"
#include "innerkv/error.h"
#include "thread_pool.h"

namespace innerkv::python {
namespace {

using Lock = std::lock_guard<std::mutex>;

void check_spans(const Batch& batch, std::int64_t tokens) {
    if (!batch.spans) return;
    if (batch.spans->size() != batch.sequences.size())
        throw InvalidArgument("spans has " + std::to_string(batch.spans->size()) + " entries for " +
                              std::to_string(batch.sequences.size()) +
                              " sequences; give one (first, last) a sequence");
    for (const auto& [first, last] : *batch.spans)
        if (first < 0 || last < first || last > tokens)
            throw InvalidArgument("a span is (" + std::to_string(first) + ", " +
                                  std::to_string(last) + "); with " + std::to_string(tokens) +
                                  " tokens, 0 <= first <= last <= " + std::to_string(tokens));
}

Span span_of(const Batch& batch, std::size_t i, std::int64_t tokens) {
    return batch.spans ? (*batch.spans)[i] : Span{0, tokens};
}

void check_question(const Batch& batch, const Question& question, const CacheConfig& config) {
    const std::size_t sequences = batch.sequences.size();
    check_queries(question.q, question.out, sequences, config);
    check_spans(batch, question.q.tokens());
    if (question.first_positions && question.first_positions->size() != sequences)
        throw InvalidArgument("first_positions has " +
                              std::to_string(question.first_positions->size()) + " entries for " +
                              std::to_string(sequences) + " sequences; give one a sequence");
}

/// Query rows of one sequence in fp32: the caller's own memory where it is that already.
class Rows32 {
public:
    Rows32(const Tensor& q, const Tensor& out, std::int64_t sequence, Span span)
        : out_(out), sequence_(sequence), span_(span) {
        const std::int64_t tokens = span.last - span.first;
        block_.tokens = static_cast<int>(tokens);
        const std::int64_t token_stride = std::int64_t{q.heads()} * q.head_dim();
        const auto size = static_cast<std::size_t>(tokens * token_stride);
        block_.q_token_stride = block_.out_token_stride = token_stride;
        block_.q_head_stride = block_.out_head_stride = q.head_dim();
        if (q.type == RowType::f32) {
            block_.q = reinterpret_cast<const float*>(q.row(sequence, span.first));
            block_.q_token_stride = q.strides[1];
            block_.q_head_stride = q.strides[2];
        } else {
            wide_q_ = std::make_unique_for_overwrite<float[]>(size);
            widen(q, sequence, span.first, tokens, wide_q_.get());
            block_.q = wide_q_.get();
        }
        if (out.type == RowType::f32) {
            block_.out = reinterpret_cast<float*>(out.row(sequence, span.first));
            block_.out_token_stride = out.strides[1];
            block_.out_head_stride = out.strides[2];
        } else {
            wide_out_ = std::make_unique_for_overwrite<float[]>(size);
            block_.out = wide_out_.get();
        }
    }

    QueryBlock& block() { return block_; }

    /// Once attention has run: what was computed beside `out` goes there.
    void finish() const {
        if (wide_out_)
            narrow(wide_out_.get(), out_, sequence_, span_.first, span_.last - span_.first);
    }

private:
    const Tensor& out_;
    std::int64_t sequence_;
    Span span_;
    QueryBlock block_;
    std::unique_ptr<float[]> wide_q_;
    std::unique_ptr<float[]> wide_out_;
};

AttentionShape shape_for(int layer, const Question& question, const CacheConfig& config) {
    AttentionShape shape;
    shape.q_heads = question.q.heads();
    shape.kv_heads = config.kv_heads;
    shape.format = config.layer_format(layer);
    shape.scale = question.scale;
    shape.soft_cap = question.soft_cap;
    if (question.sliding_window)
        shape.sliding_window = *question.sliding_window;
    else if (!config.sliding_window.empty())
        shape.sliding_window = config.sliding_window[static_cast<std::size_t>(layer)];
    return shape;
}

/// Rows that do not count get zeros, and minus infinity as their log-sum-exp: they saw no token.
void clear_padding(const Question& question, std::int64_t sequence, Span span) {
    const std::int64_t tokens = question.q.tokens();
    fill_zeros(question.out, sequence, 0, span.first);
    fill_zeros(question.out, sequence, span.last, tokens - span.last);
    if (!question.log_sum_exp) return;
    float* const row = question.log_sum_exp + sequence * tokens * question.q.heads();
    constexpr float kNothing = -std::numeric_limits<float>::infinity();
    std::fill(row, row + span.first * question.q.heads(), kNothing);
    std::fill(row + span.last * question.q.heads(), row + tokens * question.q.heads(), kNothing);
}

} // namespace

std::int32_t SharedCache::create() {
    const Lock lock(mutex_);
    return static_cast<std::int32_t>(cache_.create());
}

std::int32_t SharedCache::fork(std::int32_t sequence) {
    const Lock lock(mutex_);
    return static_cast<std::int32_t>(cache_.fork(SequenceId{sequence}));
}

void SharedCache::remove(std::int32_t sequence) {
    const Lock lock(mutex_);
    cache_.remove(SequenceId{sequence});
}

void SharedCache::truncate(const std::vector<std::int32_t>& sequences,
                           const std::vector<std::int64_t>& lengths) {
    check_lengths(sequences.size(), lengths.size());
    std::vector<Truncation> batch;
    for (std::size_t i = 0; i < sequences.size(); ++i)
        batch.push_back({SequenceId{sequences[i]}, lengths[i]});
    const Lock lock(mutex_);
    cache_.truncate(batch);
}

void SharedCache::settle(std::int32_t sequence) {
    const Lock lock(mutex_);
    cache_.settle(SequenceId{sequence});
}

void SharedCache::reserve(std::int32_t sequence, int tokens) {
    const Lock lock(mutex_);
    cache_.reserve(SequenceId{sequence}, tokens);
}

std::int64_t SharedCache::length(std::int32_t sequence, int layer) const {
    const Lock lock(mutex_);
    return cache_.length(SequenceId{sequence}, layer);
}

CacheUsage SharedCache::usage() const {
    const Lock lock(mutex_);
    return cache_.usage();
}

void SharedCache::append(int layer, const Batch& batch, const Tensor& k, const Tensor& v,
                         const Tensor* q) {
    check_rows(k, v, q, batch.sequences.size(), config());
    check_spans(batch, k.tokens());
    const Lock lock(mutex_);
    append_locked(layer, batch, k, v, q);
}

void SharedCache::attend(int layer, const Batch& batch, const Question& question) const {
    check_layer(layer, config());
    check_question(batch, question, config());
    const Lock lock(mutex_);
    attend_locked(layer, batch, question);
}

void SharedCache::step(int layer, const Batch& batch, const Tensor& k, const Tensor& v,
                       const Question& question) {
    check_layer(layer, config());
    check_rows(k, v, &question.q, batch.sequences.size(), config());
    check_question(batch, question, config());
    const Lock lock(mutex_);
    append_locked(layer, batch, k, v, &question.q);
    attend_locked(layer, batch, question);
}

void SharedCache::append_locked(int layer, const Batch& batch, const Tensor& k, const Tensor& v,
                                const Tensor* q) {
    std::vector<AppendRows> rows;
    rows.reserve(batch.sequences.size());
    for (std::size_t i = 0; i < batch.sequences.size(); ++i) {
        const Span span = span_of(batch, i, k.tokens());
        if (span.first == span.last) continue;
        const auto sequence = static_cast<std::int64_t>(i);
        AppendRows one{SequenceId{batch.sequences[i]}, static_cast<int>(span.last - span.first),
                       k.rows(sequence, span.first), v.rows(sequence, span.first)};
        if (q) {
            one.q = q->rows(sequence, span.first);
            one.q_heads = q->heads();
        }
        rows.push_back(one);
    }
    if (rows.empty()) return;
    Append append = cache_.begin_append(layer, rows);
    thread_pool()->run(append.parts(), [&](int part) { append.run(part); });
    if (!append.commit()) throw Error("append: a part has not run; please report this");
}

std::int64_t SharedCache::first_position(int layer, const Batch& batch, const Question& question,
                                         std::size_t i, std::int64_t tokens) const {
    const std::int64_t length = cache_.length(SequenceId{batch.sequences[i]}, layer);
    if (question.first_positions) return (*question.first_positions)[i];
    if (length >= tokens) return length - tokens;
    throw InvalidArgument("attend: " + std::to_string(tokens) + " queries on sequence " +
                          std::to_string(batch.sequences[i]) + " of " + std::to_string(length) +
                          " tokens; queries stand at the newest tokens, so append those first, or "
                          "give first_positions");
}

void SharedCache::attend_locked(int layer, const Batch& batch, const Question& question) const {
    std::vector<SequenceView> views;
    std::vector<Rows32> rows;
    std::vector<QueryBlock> blocks;
    views.reserve(batch.sequences.size()); // blocks point at them
    rows.reserve(batch.sequences.size());
    blocks.reserve(batch.sequences.size());
    for (std::size_t i = 0; i < batch.sequences.size(); ++i) {
        const auto sequence = static_cast<std::int64_t>(i);
        const Span span = span_of(batch, i, question.q.tokens());
        clear_padding(question, sequence, span);
        if (span.first == span.last) continue;
        QueryBlock& block = rows.emplace_back(question.q, question.out, sequence, span).block();
        block.first_position = first_position(layer, batch, question, i, block.tokens);
        views.push_back(cache_.view(layer, SequenceId{batch.sequences[i]}));
        block.sequence = &views.back();
        if (question.log_sum_exp)
            block.log_sum_exp = question.log_sum_exp +
                                (sequence * question.q.tokens() + span.first) * question.q.heads();
        blocks.push_back(block);
    }
    if (blocks.empty()) return;
    const auto pool = thread_pool();
    AttentionOptions options;
    options.arithmetic = question.exact ? Arithmetic::exact : Arithmetic::integer;
    options.isa = question.isa;
    options.threads = pool->threads();
    Attention attention(shape_for(layer, question, config()), blocks, options);
    pool->run(attention.items(), [&](int item) { attention.run(item); });
    for (const Rows32& one : rows) one.finish();
}

} // namespace innerkv::python
