// SPDX-License-Identifier: Apache-2.0
#include "attention_op.h"

#include <algorithm>
#include <utility>

namespace innerkv::runner {
namespace {

std::ptrdiff_t stride(const ggml_tensor* tensor, int dimension) {
    return static_cast<std::ptrdiff_t>(tensor->nb[dimension] / sizeof(float));
}

/// The first element of token `token`.
float* row(const ggml_tensor* tensor, int token) {
    return static_cast<float*>(tensor->data) + token * stride(tensor, 2);
}

Rows rows(const ggml_tensor* tensor, int token) {
    return {.data = row(tensor, token),
            .type = RowType::f32,
            .token_stride = stride(tensor, 2),
            .head_stride = stride(tensor, 1)};
}

void run_op(ggml_tensor* out, int thread, int threads, void* data) {
    const auto& op = *static_cast<const LayerAttention*>(data);
    // sources: K, V and, where something is attended to, q
    op.driver->run(op.layer, op.shape,
                   {.q = out->src[2], .k = out->src[0], .v = out->src[1], .out = out}, thread,
                   threads);
}

} // namespace

ggml_tensor* LayerAttention::add_to(ggml_context* context, ggml_tensor* q, ggml_tensor* k,
                                    ggml_tensor* v) {
    ggml_tensor* sources[] = {k, v, q};
    const std::int64_t width = q ? q->ne[0] * q->ne[1] : 1;
    const std::int64_t tokens = q ? q->ne[2] : 1;
    return ggml_custom_4d(context, GGML_TYPE_F32, width, tokens, 1, 1, sources, q ? 3 : 2, run_op,
                          GGML_N_TASKS_MAX, this);
}

AttentionDriver::AttentionDriver(Cache& cache, Arithmetic arithmetic, std::string_view isa,
                                 bool whole_chunks)
    : cache_(cache), arithmetic_(arithmetic), isa_(isa), whole_chunks_(whole_chunks) {}

void AttentionDriver::begin(SequenceId sequence, std::int64_t position) {
    sequence_ = sequence;
    position_ = position;
    failed_ = false;
    error_ = nullptr;
}

std::exception_ptr AttentionDriver::finish() noexcept {
    attention_.reset();
    append_.reset();
    return std::exchange(error_, nullptr);
}

/// Runs `work` unless something has failed already; keeps the first exception.
template <typename Work>
void AttentionDriver::guarded(Work&& work) noexcept {
    if (failed_) {
        return;
    }
    try {
        work();
    } catch (...) {
        const std::lock_guard lock(error_mutex_);
        if (!error_) {
            error_ = std::current_exception();
        }
        failed_ = true;
    }
}

int AttentionDriver::step_end(int begin, int tokens) const {
    if (whole_chunks_) {
        return tokens;
    }
    const std::int64_t behind_sink = position_ + begin - cache_.config().sink_tokens;
    const std::int64_t in_page = ((behind_sink % kPageTokens) + kPageTokens) % kPageTokens;
    return std::min(tokens, begin + static_cast<int>(kPageTokens - in_page));
}

void AttentionDriver::run(int layer, const AttentionShape& shape, const Tensors& tensors,
                          int thread, int threads) noexcept {
    const auto tokens = static_cast<int>(tensors.k->ne[2]);
    // Every thread passes every barrier, failed or not: else one would wait for ever.
    for (int begin = 0, end = 0; begin < tokens; begin = end) {
        end = step_end(begin, tokens);
        if (thread == 0) {
            guarded([&] { start_append(layer, tensors, begin, end); });
        }
        barrier_.wait(threads);
        guarded([&] {
            for (int part = next_++; part < append_->parts(); part = next_++) {
                append_->run(part);
            }
        });
        barrier_.wait(threads);
        if (thread == 0) {
            guarded([&] { start_attention(layer, shape, tensors, begin, end, threads); });
        }
        if (!tensors.q) {
            continue;
        }
        barrier_.wait(threads);
        guarded([&] {
            for (int item = next_++; item < attention_->items(); item = next_++) {
                attention_->run(item);
            }
        });
        barrier_.wait(threads);
    }
}

void AttentionDriver::start_append(int layer, const Tensors& tensors, int begin, int end) {
    const AppendRows batch[] = {{.sequence = sequence_,
                                 .tokens = end - begin,
                                 .k = rows(tensors.k, begin),
                                 .v = rows(tensors.v, begin)}};
    append_.emplace(cache_.begin_append(layer, batch));
    next_ = 0;
}

void AttentionDriver::start_attention(int layer, const AttentionShape& shape,
                                      const Tensors& tensors, int begin, int end, int threads) {
    append_->commit();
    if (!tensors.q) {
        return;
    }
    view_ = cache_.view(layer, sequence_);
    const std::ptrdiff_t out_token_stride = stride(tensors.out, 1);
    const QueryBlock block[] = {
        {.sequence = &view_,
         .q = row(tensors.q, begin),
         .out = static_cast<float*>(tensors.out->data) + begin * out_token_stride,
         .q_token_stride = stride(tensors.q, 2),
         .q_head_stride = stride(tensors.q, 1),
         .out_token_stride = out_token_stride,
         .out_head_stride = shape.format.head_dim,
         .first_position = position_ + begin,
         .tokens = end - begin}};
    attention_.emplace(
        shape, block, AttentionOptions{.arithmetic = arithmetic_, .isa = isa_, .threads = threads});
    next_ = 0;
}

} // namespace innerkv::runner
