// SPDX-License-Identifier: Apache-2.0
// Attention as a custom op in a ggml graph: all of ggml's threads append a chunk's K and V to the
// cache and compute its attention.
#pragma once

#include <atomic>
#include <exception>
#include <mutex>
#include <optional>
#include <string>

#include "ggml.h"
#include "innerkv/attention.h"
#include "kv_store.h"
#include "spin.h"

namespace innerkv::runner {

/// What the ops of one session share. A chunk is processed in the store's steps, so that every token
/// meets the history it would meet if it came alone.
class AttentionDriver {
public:
    AttentionDriver(KvStore& store, Arithmetic arithmetic, std::string_view isa);

    /// Before each graph: the position of its first token in the sequence.
    void begin(std::int64_t position);
    /// After it, whether it was computed or failed: what went wrong inside, or null.
    std::exception_ptr finish() noexcept;

    /// Called by each of `threads` threads at once. k, v: [head_dim, kv_heads, tokens] as ggml counts,
    /// f32; q: [head_dim, q_heads, tokens]; out: like q, contiguous, or one element where the rows are
    /// appended and nothing is attended to.
    struct Tensors {
        const ggml_tensor* q = nullptr;
        const ggml_tensor* k = nullptr;
        const ggml_tensor* v = nullptr;
        ggml_tensor* out = nullptr;
    };
    void run(int layer, const AttentionShape& shape, const Tensors& tensors, int thread,
             int threads) noexcept;

private:
    static bool attends(const Tensors& tensors);
    void start_append(int layer, const Tensors& tensors, int begin, int end);
    void start_attention(int layer, const AttentionShape& shape, const Tensors& tensors, int begin,
                         int end, int threads);
    template <typename Work>
    void guarded(Work&& work) noexcept;

    KvStore& store_;
    Arithmetic arithmetic_;
    std::string isa_;
    std::int64_t position_ = 0;

    SpinBarrier barrier_;
    std::atomic<int> next_{0};
    std::atomic<bool> failed_{false};
    std::mutex error_mutex_;
    std::exception_ptr error_;
    int parts_ = 0; ///< of the append in work
    std::optional<Attention> attention_;
    SequenceView view_;
};

/// One layer's op.
struct LayerAttention {
    AttentionDriver* driver = nullptr;
    int layer = 0;
    AttentionShape shape;

    /// Appends, then attends: [head_dim * q_heads, tokens].
    ggml_tensor* attend(ggml_context* context, ggml_tensor* q, ggml_tensor* k, ggml_tensor* v);
    /// Appends alone; the result means nothing.
    ggml_tensor* append(ggml_context* context, ggml_tensor* q, ggml_tensor* k, ggml_tensor* v);

private:
    ggml_tensor* add_op(ggml_context* context, ggml_tensor* q, ggml_tensor* k, ggml_tensor* v,
                        std::int64_t width, std::int64_t tokens);
};

} // namespace innerkv::runner
