// SPDX-License-Identifier: Apache-2.0
#include "peers/ggml_peer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <thread>

#include <ggml-backend.h>
#include <ggml.h>

#include "innerkv/error.h"
#include "runner/backend.h"

namespace innerkv::bench {
namespace {

/// The types that llama.cpp takes for a cache (common/arg.cpp).
constexpr ggml_type kCacheTypes[] = {
    GGML_TYPE_F32,  GGML_TYPE_F16,  GGML_TYPE_BF16,   GGML_TYPE_Q8_0, GGML_TYPE_Q4_0,
    GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_IQ4_NL, GGML_TYPE_Q5_1,
};
constexpr std::int64_t kContextPadding = 256; // llama_kv_cache::get_n_kv
constexpr std::int64_t kRowsAtOnce = 256;
/// A few milliseconds: enough between waking and the timed graph.
constexpr std::uint32_t kPolling = 1;
constexpr auto kLongerThanPolling = std::chrono::milliseconds(25);

/// Where the rows of one head lie.
enum class Layout {
    heads, ///< one after another: what ggml reads fastest
    tokens ///< one in each token, the other heads' between them: as llama.cpp lays its cache out
};

ggml_type find_type(std::string_view name, const AttentionCase& attention) {
    const auto* found = std::ranges::find_if(
        kCacheTypes, [name](ggml_type type) { return name == ggml_type_name(type); });
    if (found == std::end(kCacheTypes))
        throw InvalidArgument("ggml has no cache type '" + std::string(name) + "'");
    if (attention.head_dim % ggml_blck_size(*found) != 0)
        throw InvalidArgument("ggml:" + std::string(name) +
                              " needs a head dimension that is a "
                              "multiple of " +
                              std::to_string(ggml_blck_size(*found)));
    return *found;
}

std::int64_t padded(std::int64_t context) {
    return (context + kContextPadding - 1) / kContextPadding * kContextPadding;
}

class GgmlPeer final : public Contender {
public:
    GgmlPeer(const AttentionCase& attention, Layout layout, ggml_type type, int threads,
             const Checkpoint& checkpoint)
        : attention_(attention), layout_(layout), type_(type), threads_(threads),
          cpu_(threads, kPolling), context_tokens_(padded(attention.context)) {
        build_graphs();
        for (int sequence = 0; sequence < attention.batch; ++sequence) fill(sequence, checkpoint);
        out_.resize(attention.query_elements() * static_cast<std::size_t>(attention.batch));
    }

    std::string name() const override {
        return std::string(layout_ == Layout::heads ? "ggml:" : "ggml-rows:") +
               ggml_type_name(type_);
    }

    std::size_t bytes_read() const override {
        return 2 * row_bytes() * static_cast<std::size_t>(attention_.kv_heads) *
               static_cast<std::size_t>(attention_.total_context());
    }

    /// Threads poll for a while after a graph and then sleep: a small graph wakes them, waiting puts
    /// them to sleep.
    void wake() override { cpu_.compute(wake_graph_); }
    void run() override { cpu_.compute(graph_); }

    void rest() override {
        ggml_backend_tensor_get(result_, out_.data(), 0, out_.size() * sizeof(float));
        if (threads_ > 1) std::this_thread::sleep_for(kLongerThanPolling);
    }

    std::span<const float> output() const override { return out_; }

private:
    /// Of one token and head.
    std::size_t row_bytes() const { return ggml_row_size(type_, attention_.head_dim); }

    /// [head_dim, tokens, kv_heads, sequences], whatever the layout.
    ggml_tensor* new_cache() const {
        const std::int64_t dim = attention_.head_dim;
        const std::int64_t heads = attention_.kv_heads;
        const std::int64_t batch = attention_.batch;
        if (layout_ == Layout::heads)
            return ggml_new_tensor_4d(context_.get(), type_, dim, context_tokens_, heads, batch);
        // As llama_kv_cache::get_k, then permuted as build_attn_mha does it.
        ggml_tensor* rows =
            ggml_new_tensor_4d(context_.get(), type_, dim, heads, context_tokens_, batch);
        return ggml_permute(context_.get(), rows, 0, 2, 1, 3);
    }

    /// One llama.cpp stream per sequence.
    void build_graphs() {
        context_ = runner::make_context(64, 2 * GGML_DEFAULT_GRAPH_SIZE);
        ggml_context* context = context_.get();
        const int dim = attention_.head_dim;
        k_ = new_cache();
        v_ = new_cache();
        q_ = ggml_new_tensor_4d(context, GGML_TYPE_F32, dim, attention_.q_heads, attention_.tokens,
                                attention_.batch);
        mask_ = ggml_new_tensor_4d(context, GGML_TYPE_F16, context_tokens_, attention_.tokens, 1,
                                   attention_.batch);
        result_ = ggml_flash_attn_ext(context, ggml_permute(context, q_, 0, 2, 1, 3), k_, v_, mask_,
                                      1.0f / std::sqrt(static_cast<float>(dim)), 0.0f, 0.0f);
        ggml_prec_set_acc(result_, GGML_PREC_F32);
        graph_ = graph_of(result_);
        wake_graph_ = graph_of(ggml_dup(context, ggml_new_tensor_1d(context, GGML_TYPE_F32, 1)));
        buffer_.reset(ggml_backend_alloc_ctx_tensors(context, cpu_.get()));
        if (!buffer_) throw std::bad_alloc();
        ggml_backend_buffer_clear(buffer_.get(), 0);
    }

    ggml_cgraph* graph_of(ggml_tensor* result) const {
        ggml_cgraph* graph = ggml_new_graph(context_.get());
        ggml_build_forward_expand(graph, result);
        return graph;
    }

    void fill(int sequence, const Checkpoint& checkpoint) {
        std::vector<float> k(attention_.row_elements() * static_cast<std::size_t>(kRowsAtOnce));
        std::vector<float> v(k.size());
        for (std::int64_t first = 0; first < attention_.context_of(sequence);
             first += kRowsAtOnce) {
            checkpoint();
            const std::int64_t tokens =
                std::min(kRowsAtOnce, attention_.context_of(sequence) - first);
            make_rows(attention_, sequence, first, tokens, k.data(), v.data());
            store(k_, sequence, first, tokens, k);
            store(v_, sequence, first, tokens, v);
        }
        const auto index = static_cast<std::size_t>(sequence);
        const std::vector<float> queries = make_queries(attention_, sequence);
        const std::size_t query_bytes = queries.size() * sizeof(float);
        ggml_backend_tensor_set(q_, queries.data(), index * query_bytes, query_bytes);
        const std::int64_t mask_elements = context_tokens_ * attention_.tokens;
        std::vector<ggml_fp16_t> mask(static_cast<std::size_t>(mask_elements),
                                      ggml_fp32_to_fp16(-std::numeric_limits<float>::infinity()));
        for (int token = 0; token < attention_.tokens; ++token)
            std::fill_n(mask.begin() + token * context_tokens_,
                        attention_.first_position(sequence) + token + 1, ggml_fp32_to_fp16(0.0f));
        const std::size_t mask_bytes = mask.size() * sizeof(ggml_fp16_t);
        ggml_backend_tensor_set(mask_, mask.data(), index * mask_bytes, mask_bytes);
    }

    /// `rows`: [tokens, kv_heads, head_dim].
    void store(ggml_tensor* cache, int sequence, std::int64_t first, std::int64_t tokens,
               const std::vector<float>& rows) const {
        const std::int64_t heads = attention_.kv_heads;
        std::vector<std::byte> quantized(row_bytes() * static_cast<std::size_t>(tokens * heads));
        if (type_ == GGML_TYPE_F32)
            std::memcpy(quantized.data(), rows.data(), quantized.size());
        else
            ggml_quantize_chunk(type_, rows.data(), quantized.data(), 0, tokens * heads,
                                attention_.head_dim, nullptr);
        for (std::int64_t row = 0; row < tokens * heads; ++row) {
            const auto token = static_cast<std::size_t>(first + row / heads);
            const auto head = static_cast<std::size_t>(row % heads);
            ggml_backend_tensor_set(cache,
                                    quantized.data() + static_cast<std::size_t>(row) * row_bytes(),
                                    token * cache->nb[1] + head * cache->nb[2] +
                                        static_cast<std::size_t>(sequence) * cache->nb[3],
                                    row_bytes());
        }
    }

    AttentionCase attention_;
    Layout layout_;
    ggml_type type_;
    int threads_;
    runner::CpuBackend cpu_;
    std::int64_t context_tokens_;
    runner::ContextPtr context_;
    runner::BufferPtr buffer_;
    ggml_cgraph* graph_ = nullptr;
    ggml_cgraph* wake_graph_ = nullptr;
    ggml_tensor* k_ = nullptr; ///< [head_dim, tokens, kv_heads, sequences]
    ggml_tensor* v_ = nullptr;
    ggml_tensor* q_ = nullptr;
    ggml_tensor* mask_ = nullptr;
    ggml_tensor* result_ = nullptr; ///< [head_dim, q_heads, tokens, sequences]
    std::vector<float> out_;
};

} // namespace

std::vector<std::string> ggml_cache_types() {
    std::vector<std::string> names;
    for (const ggml_type type : kCacheTypes) names.emplace_back(ggml_type_name(type));
    return names;
}

std::size_t ggml_peer_bytes(const AttentionCase& attention, std::string_view type) {
    const auto tokens = static_cast<std::size_t>(padded(attention.context)) *
                        static_cast<std::size_t>(attention.batch);
    const std::size_t rows = 2 * ggml_row_size(find_type(type, attention), attention.head_dim) *
                             static_cast<std::size_t>(attention.kv_heads);
    const std::size_t mask = sizeof(ggml_fp16_t) * static_cast<std::size_t>(attention.tokens);
    return tokens * (rows + mask) + attention.query_bytes();
}

std::unique_ptr<Contender> make_ggml_peer(const AttentionCase& attention, std::string_view type,
                                          int threads, const Checkpoint& checkpoint) {
    return std::make_unique<GgmlPeer>(attention, Layout::heads, find_type(type, attention), threads,
                                      checkpoint);
}

std::unique_ptr<Contender> make_ggml_rows_peer(const AttentionCase& attention,
                                               std::string_view type, int threads,
                                               const Checkpoint& checkpoint) {
    return std::make_unique<GgmlPeer>(attention, Layout::tokens, find_type(type, attention),
                                      threads, checkpoint);
}

} // namespace innerkv::bench
