// SPDX-License-Identifier: Apache-2.0
#include "weights.h"

#include <algorithm>
#include <string>
#include <unordered_set>

namespace innerkv::runner {
namespace {

constexpr std::size_t kTensorsPerLayer = 24;

/// Whether the device multiplies this weight in buffers of that type.
bool multiplies_in(ggml_backend_buffer_type_t type, const TensorEntry& entry) {
    const ContextPtr context = make_context(4);
    ggml_tensor* const weight =
        ggml_new_tensor_2d(context.get(), entry.type, entry.shape[0], entry.shape[1]);
    ggml_tensor* const rows = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, entry.shape[0], 512);
    ggml_tensor* const product = ggml_mul_mat(context.get(), weight, rows);
    const BufferPtr probe(ggml_backend_buft_alloc_buffer(type, 0));
    if (!probe) {
        return false;
    }
    weight->buffer = probe.get();
    return ggml_backend_dev_supports_op(cpu_device(), product);
}

ggml_backend_buffer_type_t plain_layout() { return ggml_backend_dev_buffer_type(cpu_device()); }

/// A type that ggml can turn into floats: it has products and rows of all of these, and none of others.
bool is_weight_type(const TensorEntry& entry) {
    const bool readable =
        entry.type == GGML_TYPE_F32 || ggml_get_type_traits(entry.type)->to_float != nullptr;
    return readable && multiplies_in(plain_layout(), entry);
}

/// The leading heads of a matrix' output rows whose order rope decides.
struct RopeRows {
    int heads = 0;
    int head_dim = 0;
};

/// Rows that rope pairs as neighbours, put half a head apart: 0 2 4 ... 1 3 5 ... The products of q and
/// k are the same. But 32 consecutive channels of k, which share a scale in the cache, then turn at
/// similar speeds, and quantization loses a quarter less (mean KLD of `base`).
std::vector<std::byte> separate_pairs(const std::byte* rows, std::size_t row_bytes,
                                      std::size_t row_count, const RopeRows& rope) {
    std::vector<std::byte> result(rows, rows + row_bytes * row_count);
    const auto head_dim = static_cast<std::size_t>(rope.head_dim);
    const std::size_t rope_rows = static_cast<std::size_t>(rope.heads) * head_dim;
    for (std::size_t to = 0; to < rope_rows; ++to) {
        const std::size_t in_head = to % head_dim;
        const std::size_t pair = in_head % (head_dim / 2);
        const std::size_t from = to - in_head + 2 * pair + in_head / (head_dim / 2);
        std::copy_n(rows + from * row_bytes, row_bytes,
                    result.begin() + static_cast<std::ptrdiff_t>(to * row_bytes));
    }
    return result;
}

/// The buffer type with the fastest layout for a matrix; null: none is better than the file's.
ggml_backend_buffer_type_t faster_layout(const TensorEntry& entry) {
    for (ggml_backend_buffer_type_t* type = cpu_extra_buffer_types(); *type; ++type) {
        if (multiplies_in(*type, entry)) {
            return *type;
        }
    }
    return nullptr;
}

} // namespace

/// Finds, checks and places tensors; remembers which of the file's were asked for.
class WeightReader {
public:
    WeightReader(const GgufFile& file, const Parameters& model, Weights& weights)
        : file_(file), weights_(weights) {
        const auto bytes = file.mapping().bytes();
        // ggml's interface is not const; weights are only ever read.
        auto* const base = const_cast<std::byte*>(bytes.data());
        mapped_ = ggml_backend_dev_buffer_from_host_ptr(cpu_device(), base, bytes.size(), 0);
        if (!mapped_) {
            file.fail("cannot be used in place by ggml");
        }
        weights.buffers_.emplace_back(mapped_);
        ggml_backend_buffer_set_usage(mapped_, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        const auto layers = static_cast<std::size_t>(model.layers);
        weights.contexts_.push_back(make_context(8 + layers * kTensorsPerLayer));
        context_ = weights.contexts_.back().get();
    }

    /// A matrix that multiplies activations: [in, out].
    ggml_tensor* matrix(const std::string& name, std::int64_t in, std::int64_t out,
                        const RopeRows& rope = {}) {
        return product_weight(require(name, {in, out, 1, 1}), rope);
    }
    ggml_tensor* optional_matrix(const std::string& name, std::int64_t in, std::int64_t out,
                                 const RopeRows& rope = {}) {
        const TensorEntry* const entry = find(name, {in, out, 1, 1});
        return entry ? product_weight(*entry, rope) : nullptr;
    }
    /// Rows that are looked up: [width, rows].
    ggml_tensor* table(const std::string& name, std::int64_t width, std::int64_t rows) {
        const TensorEntry& entry = require(name, {width, rows, 1, 1});
        check_weight_type(entry);
        return in_place(entry);
    }
    ggml_tensor* vector(const std::string& name, std::int64_t size) {
        return in_place(f32(require(name, {size, 1, 1, 1})));
    }
    ggml_tensor* optional_vector(const std::string& name, std::int64_t size,
                                 const RopeRows& rope = {}) {
        const TensorEntry* const entry = find(name, {size, 1, 1, 1});
        if (!entry || rope.heads == 0) {
            return entry ? in_place(f32(*entry)) : nullptr;
        }
        const auto values = separate_pairs(file_.data(f32(*entry)), sizeof(float),
                                           static_cast<std::size_t>(size), rope);
        return copy(*entry, values.data(), plain_layout());
    }

    /// Throws at a tensor nobody asked for: it would change what the model computes.
    void check_all_used(const Parameters& model) const {
        for (const TensorEntry& entry : file_.tensors()) {
            if (!used_.count(entry.name)) {
                file_.fail("tensor " + entry.name + " is not part of a " +
                           std::string(model.architecture->name) + " model as supported");
            }
        }
    }

private:
    using Shape = std::array<std::int64_t, GGML_MAX_DIMS>;

    const TensorEntry* find(const std::string& name, const Shape& shape) {
        const TensorEntry* const entry = file_.find_tensor(name);
        if (!entry) {
            return nullptr;
        }
        if (entry->shape != shape) {
            file_.fail("tensor " + name + " has shape " + shape_text(entry->shape) + "; " +
                       shape_text(shape) + " follows from the metadata");
        }
        used_.insert(name);
        return entry;
    }

    const TensorEntry& require(const std::string& name, const Shape& shape) {
        const TensorEntry* const entry = find(name, shape);
        if (!entry) {
            file_.fail("tensor " + name + " is missing");
        }
        return *entry;
    }

    void check_weight_type(const TensorEntry& entry) const {
        if (!is_weight_type(entry)) {
            file_.fail("tensor " + entry.name + " has type " + type_name(entry.type) +
                       ", which is no weight type that is supported");
        }
    }

    const TensorEntry& f32(const TensorEntry& entry) const {
        if (entry.type != GGML_TYPE_F32) {
            file_.fail("tensor " + entry.name + " has type " + type_name(entry.type) +
                       "; F32 is supported");
        }
        return entry;
    }

    static ggml_tensor* describe(ggml_context* context, const TensorEntry& entry) {
        ggml_tensor* const tensor =
            ggml_new_tensor_2d(context, entry.type, entry.shape[0], entry.shape[1]);
        ggml_set_name(tensor, entry.name.c_str());
        return tensor;
    }

    ggml_tensor* in_place(const TensorEntry& entry) {
        ggml_tensor* const tensor = describe(context_, entry);
        auto* const data = const_cast<std::byte*>(file_.data(entry));
        if (ggml_backend_tensor_alloc(mapped_, tensor, data) != GGML_STATUS_SUCCESS) {
            file_.fail("tensor " + entry.name + " cannot be used in place");
        }
        return tensor;
    }

    ggml_tensor* product_weight(const TensorEntry& entry, const RopeRows& rope) {
        check_weight_type(entry);
        ggml_backend_buffer_type_t const layout = faster_layout(entry);
        if (rope.heads > 0) {
            const auto rows = static_cast<std::size_t>(entry.shape[1]);
            const auto ordered = separate_pairs(file_.data(entry), entry.bytes / rows, rows, rope);
            return copy(entry, ordered.data(), layout ? layout : plain_layout());
        }
        return layout ? copy(entry, file_.data(entry), layout) : in_place(entry);
    }

    ggml_tensor* copy(const TensorEntry& entry, const std::byte* data,
                      ggml_backend_buffer_type_t layout) {
        weights_.contexts_.push_back(make_context(1));
        ggml_context* const context = weights_.contexts_.back().get();
        ggml_tensor* const tensor = describe(context, entry);
        ggml_backend_buffer_t const buffer =
            ggml_backend_alloc_ctx_tensors_from_buft(context, layout);
        if (!buffer) {
            throw std::bad_alloc();
        }
        weights_.buffers_.emplace_back(buffer);
        ggml_backend_buffer_set_usage(buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        ggml_backend_tensor_set(tensor, data, 0, entry.bytes);
        file_.mapping().release(entry.offset, entry.bytes);
        return tensor;
    }

    const GgufFile& file_;
    Weights& weights_;
    ggml_backend_buffer_t mapped_ = nullptr;
    ggml_context* context_ = nullptr;
    std::unordered_set<std::string> used_;
};

namespace {

void read_attention(WeightReader& reader, const Parameters& model, const std::string& prefix,
                    LayerWeights& layer) {
    const std::int64_t width = model.embedding_dim;
    const std::int64_t q_dim = std::int64_t{model.q_heads} * model.head_dim;
    const std::int64_t kv_dim = std::int64_t{model.kv_heads} * model.head_dim;
    // heads whose rows rope pairs: of q, of k, of both at the head of qkv
    const int reordered = model.architecture->interleaved_rope ? 1 : 0;
    const RopeRows q_rows{reordered * model.q_heads, model.head_dim};
    const RopeRows k_rows{reordered * model.kv_heads, model.head_dim};
    const RopeRows qk_rows{q_rows.heads + k_rows.heads, model.head_dim};
    layer.attention_norm = reader.vector(prefix + "attn_norm.weight", width);
    const std::int64_t all_dim = q_dim + 2 * kv_dim;
    layer.qkv = reader.optional_matrix(prefix + "attn_qkv.weight", width, all_dim, qk_rows);
    if (layer.qkv) {
        layer.qkv_bias = reader.optional_vector(prefix + "attn_qkv.bias", all_dim, qk_rows);
    } else {
        layer.q = reader.matrix(prefix + "attn_q.weight", width, q_dim, q_rows);
        layer.k = reader.matrix(prefix + "attn_k.weight", width, kv_dim, k_rows);
        layer.v = reader.matrix(prefix + "attn_v.weight", width, kv_dim);
        layer.q_bias = reader.optional_vector(prefix + "attn_q.bias", q_dim, q_rows);
        layer.k_bias = reader.optional_vector(prefix + "attn_k.bias", kv_dim, k_rows);
        layer.v_bias = reader.optional_vector(prefix + "attn_v.bias", kv_dim);
    }
    if (model.architecture->query_key_norm) {
        layer.q_norm = reader.vector(prefix + "attn_q_norm.weight", model.head_dim);
        layer.k_norm = reader.vector(prefix + "attn_k_norm.weight", model.head_dim);
    }
    layer.attention_out = reader.matrix(prefix + "attn_output.weight", q_dim, width);
    if (model.architecture->extra_biases) {
        layer.attention_out_bias = reader.optional_vector(prefix + "attn_output.bias", width);
    }
    if (model.architecture->post_norm) {
        layer.attention_post_norm = reader.vector(prefix + "post_attention_norm.weight", width);
    }
}

void read_feed_forward(WeightReader& reader, const Parameters& model, const std::string& prefix,
                       std::int64_t ffn_dim, LayerWeights& layer) {
    const std::int64_t width = model.embedding_dim;
    layer.ffn_norm = reader.vector(prefix + "ffn_norm.weight", width);
    layer.ffn_gate = reader.matrix(prefix + "ffn_gate.weight", width, ffn_dim);
    layer.ffn_up = reader.matrix(prefix + "ffn_up.weight", width, ffn_dim);
    layer.ffn_down = reader.matrix(prefix + "ffn_down.weight", ffn_dim, width);
    if (model.architecture->extra_biases) {
        layer.ffn_gate_bias = reader.optional_vector(prefix + "ffn_gate.bias", ffn_dim);
        layer.ffn_up_bias = reader.optional_vector(prefix + "ffn_up.bias", ffn_dim);
        layer.ffn_down_bias = reader.optional_vector(prefix + "ffn_down.bias", width);
    }
    if (model.architecture->post_norm) {
        layer.ffn_post_norm = reader.vector(prefix + "post_ffw_norm.weight", width);
    }
}

} // namespace

Weights::Weights(const GgufFile& file, const Parameters& model) {
    file.mapping().prefetch();
    WeightReader reader(file, model, *this);
    const std::int64_t width = model.embedding_dim;
    const std::int64_t vocabulary = model.vocabulary_size;
    token_embedding = reader.table("token_embd.weight", width, vocabulary);
    output_norm = reader.vector("output_norm.weight", width);
    if (!model.architecture->always_tied) {
        output = reader.optional_matrix("output.weight", width, vocabulary);
    }
    if (!output) {
        output = reader.matrix("token_embd.weight", width, vocabulary);
    }
    if (model.architecture->output_bias) {
        output_bias = reader.optional_vector("output.bias", vocabulary);
    }
    if (model.architecture->rope_factors) {
        rope_factors = reader.optional_vector("rope_freqs.weight", model.rope.dims / 2);
    }
    layers.resize(static_cast<std::size_t>(model.layers));
    for (std::size_t i = 0; i < layers.size(); ++i) {
        const std::string prefix = "blk." + std::to_string(i) + ".";
        read_attention(reader, model, prefix, layers[i]);
        read_feed_forward(reader, model, prefix, model.feed_forward_dim[i], layers[i]);
    }
    reader.check_all_used(model);
}

std::size_t Weights::copied_bytes() const {
    std::size_t bytes = 0;
    for (std::size_t i = 1; i < buffers_.size(); ++i) {
        bytes += ggml_backend_buffer_get_size(buffers_[i].get());
    }
    return bytes;
}

} // namespace innerkv::runner
