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
    op.driver->run(op.layer, op.shape,
                   {.q = out->src[0], .k = out->src[1], .v = out->src[2], .out = out}, thread,
                   threads);
}

/// What an op that attends to nothing has in place of its result.
constexpr std::int64_t kNoResult = 1;

} // namespace

ggml_tensor* LayerAttention::add_op(ggml_context* context, ggml_tensor* q, ggml_tensor* k,
                                    ggml_tensor* v, std::int64_t width, std::int64_t tokens) {
    ggml_tensor* sources[] = {q, k, v};
    return ggml_custom_4d(context, GGML_TYPE_F32, width, tokens, 1, 1, sources, 3, run_op,
                          GGML_N_TASKS_MAX, this);
}

ggml_tensor* LayerAttention::attend(ggml_context* context, ggml_tensor* q, ggml_tensor* k,
                                    ggml_tensor* v) {
    return add_op(context, q, k, v, q->ne[0] * q->ne[1], q->ne[2]);
}

ggml_tensor* LayerAttention::append(ggml_context* context, ggml_tensor* q, ggml_tensor* k,
                                    ggml_tensor* v) {
    return add_op(context, q, k, v, kNoResult, kNoResult);
}

bool AttentionDriver::attends(const Tensors& tensors) {
    return ggml_nelements(tensors.out) > kNoResult;
}

AttentionDriver::AttentionDriver(KvStore& store, Arithmetic arithmetic, std::string_view isa)
    : store_(store), arithmetic_(arithmetic), isa_(isa) {}

void AttentionDriver::begin(std::int64_t position) {
    position_ = position;
    failed_ = false;
    error_ = nullptr;
}

std::exception_ptr AttentionDriver::finish() noexcept {
    attention_.reset();
    store_.drop();
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

void AttentionDriver::run(int layer, const AttentionShape& shape, const Tensors& tensors,
                          int thread, int threads) noexcept {
    const auto tokens = static_cast<int>(tensors.k->ne[2]);
    // Every thread passes every barrier, failed or not: else one would wait for ever.
    for (int begin = 0, end = 0; begin < tokens; begin = end) {
        end = begin + store_.step(position_ + begin, tokens - begin);
        if (thread == 0) {
            guarded([&] { start_append(layer, tensors, begin, end); });
        }
        barrier_.wait(threads);
        guarded([&] {
            for (int part = next_++; part < parts_; part = next_++) {
                store_.run_part(part);
            }
        });
        barrier_.wait(threads);
        if (thread == 0) {
            guarded([&] { start_attention(layer, shape, tensors, begin, end, threads); });
        }
        if (!attends(tensors)) {
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
    parts_ = store_.start_append(layer, {.tokens = end - begin,
                                         .k = rows(tensors.k, begin),
                                         .v = rows(tensors.v, begin),
                                         .q = rows(tensors.q, begin),
                                         .q_heads = static_cast<int>(tensors.q->ne[1])});
    next_ = 0;
}

void AttentionDriver::start_attention(int layer, const AttentionShape& shape,
                                      const Tensors& tensors, int begin, int end, int threads) {
    store_.commit();
    if (!attends(tensors)) {
        return;
    }
    view_ = store_.view(layer);
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
