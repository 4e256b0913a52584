// SPDX-License-Identifier: Apache-2.0
#include "peers/ggml_peer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <thread>

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>
#include <ggml_backends.h>

#include "innerkv/error.h"
#include "peers/ggml_cpu_backend.h"

namespace innerkv::bench {
namespace {

/// The types that llama.cpp takes for a cache (common/arg.cpp).
constexpr ggml_type kCacheTypes[] = {
    GGML_TYPE_F32,  GGML_TYPE_F16,  GGML_TYPE_BF16,   GGML_TYPE_Q8_0, GGML_TYPE_Q4_0,
    GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_IQ4_NL, GGML_TYPE_Q5_1,
};
constexpr std::int64_t kContextPadding = 256; // llama_kv_cache::get_n_kv
constexpr std::int64_t kRowsAtOnce = 256;

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

class GgmlPeer final : public Contender {
public:
    GgmlPeer(const AttentionCase& attention, ggml_type type, int threads)
        : attention_(attention), type_(type), cpu_(threads) {
        context_tokens_ =
            (attention.context + kContextPadding - 1) / kContextPadding * kContextPadding;
        build_graph();
        for (int sequence = 0; sequence < attention.batch; ++sequence) fill(sequence);
        out_.resize(attention.query_elements() * static_cast<std::size_t>(attention.batch));
    }

    std::string name() const override { return std::string("ggml:") + ggml_type_name(type_); }

    std::size_t bytes_read() const override {
        return 2 * row_bytes() * static_cast<std::size_t>(attention_.context) *
               static_cast<std::size_t>(attention_.batch);
    }

    void wake() override { cpu_.wake(); }
    void run() override { cpu_.compute(graph_); }

    void rest() override {
        ggml_backend_tensor_get(result_, out_.data(), 0, out_.size() * sizeof(float));
        cpu_.rest();
    }

    std::span<const float> output() const override { return out_; }

private:
    std::size_t row_bytes() const {
        return ggml_row_size(type_, static_cast<std::int64_t>(attention_.row_elements()));
    }

    /// As llama_kv_cache::get_k: [head_dim, kv_heads, tokens, sequences], then permuted as
    /// build_attn_mha does it.
    ggml_tensor* cache_view(ggml_tensor* cache) const {
        ggml_tensor* view = ggml_view_4d(
            context_.get(), cache, attention_.head_dim, attention_.kv_heads, context_tokens_,
            attention_.batch, ggml_row_size(type_, attention_.head_dim), row_bytes(),
            row_bytes() * static_cast<std::size_t>(context_tokens_), 0);
        return ggml_permute(context_.get(), view, 0, 2, 1, 3);
    }

    /// One llama.cpp stream per sequence, one query token each.
    void build_graph() {
        context_.reset(ggml_init({.mem_size = 64 * ggml_tensor_overhead() + ggml_graph_overhead(),
                                  .mem_buffer = nullptr,
                                  .no_alloc = true}));
        ggml_context* context = context_.get();
        const int dim = attention_.head_dim;
        const auto row = static_cast<std::int64_t>(attention_.row_elements());
        k_ = ggml_new_tensor_3d(context, type_, row, context_tokens_, attention_.batch);
        v_ = ggml_new_tensor_3d(context, type_, row, context_tokens_, attention_.batch);
        q_ = ggml_new_tensor_4d(context, GGML_TYPE_F32, dim, attention_.q_heads, 1,
                                attention_.batch);
        mask_ = ggml_new_tensor_4d(context, GGML_TYPE_F16, context_tokens_, 1, 1, attention_.batch);
        result_ = ggml_flash_attn_ext(context, ggml_permute(context, q_, 0, 2, 1, 3),
                                      cache_view(k_), cache_view(v_), mask_,
                                      1.0f / std::sqrt(static_cast<float>(dim)), 0.0f, 0.0f);
        ggml_prec_set_acc(result_, GGML_PREC_F32);
        graph_ = ggml_new_graph(context);
        ggml_build_forward_expand(graph_, result_);
        buffer_.reset(ggml_backend_alloc_ctx_tensors(context, cpu_.backend()));
        if (!buffer_) throw std::bad_alloc();
        ggml_backend_buffer_clear(buffer_.get(), 0);
    }

    void fill(int sequence) {
        const std::size_t elements = attention_.row_elements();
        std::vector<float> k(elements * static_cast<std::size_t>(kRowsAtOnce));
        std::vector<float> v(k.size());
        const auto index = static_cast<std::size_t>(sequence);
        for (std::int64_t first = 0; first < attention_.context; first += kRowsAtOnce) {
            const std::int64_t tokens = std::min(kRowsAtOnce, attention_.context - first);
            make_rows(attention_, sequence, first, tokens, k.data(), v.data());
            const std::size_t token =
                index * static_cast<std::size_t>(context_tokens_) + static_cast<std::size_t>(first);
            store(k_, token, tokens, k);
            store(v_, token, tokens, v);
        }
        const std::vector<float> queries = make_queries(attention_, sequence);
        const std::size_t query_bytes = queries.size() * sizeof(float);
        ggml_backend_tensor_set(q_, queries.data(), index * query_bytes, query_bytes);
        std::vector<ggml_fp16_t> mask(static_cast<std::size_t>(context_tokens_),
                                      ggml_fp32_to_fp16(-std::numeric_limits<float>::infinity()));
        std::fill_n(mask.begin(), attention_.context, ggml_fp32_to_fp16(0.0f));
        const std::size_t mask_bytes = mask.size() * sizeof(ggml_fp16_t);
        ggml_backend_tensor_set(mask_, mask.data(), index * mask_bytes, mask_bytes);
    }

    void store(ggml_tensor* cache, std::size_t token, std::int64_t tokens,
               const std::vector<float>& rows) const {
        const auto elements = static_cast<std::int64_t>(attention_.row_elements());
        const std::size_t bytes = row_bytes() * static_cast<std::size_t>(tokens);
        if (type_ == GGML_TYPE_F32) {
            ggml_backend_tensor_set(cache, rows.data(), token * row_bytes(), bytes);
            return;
        }
        std::vector<std::byte> quantized(bytes);
        ggml_quantize_chunk(type_, rows.data(), quantized.data(), 0, tokens, elements, nullptr);
        ggml_backend_tensor_set(cache, quantized.data(), token * row_bytes(), bytes);
    }

    AttentionCase attention_;
    ggml_type type_;
    GgmlCpu cpu_;
    std::int64_t context_tokens_ = 0;
    GgmlContext context_;
    GgmlBuffer buffer_;
    ggml_cgraph* graph_ = nullptr;
    ggml_tensor* k_ = nullptr; ///< [kv_heads * head_dim, tokens, sequences]
    ggml_tensor* v_ = nullptr;
    ggml_tensor* q_ = nullptr;
    ggml_tensor* mask_ = nullptr;
    ggml_tensor* result_ = nullptr; ///< [head_dim, q_heads, 1, sequences]
    std::vector<float> out_;
};

} // namespace

std::vector<std::string> ggml_cache_types() {
    std::vector<std::string> names;
    for (const ggml_type type : kCacheTypes) names.emplace_back(ggml_type_name(type));
    return names;
}

std::unique_ptr<Contender> make_ggml_peer(const AttentionCase& attention, std::string_view type,
                                          int threads) {
    return std::make_unique<GgmlPeer>(attention, find_type(type, attention), threads);
}

} // namespace innerkv::bench
