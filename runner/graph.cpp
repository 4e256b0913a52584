// SPDX-License-Identifier: Apache-2.0
#include "graph.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <new>
#include <numeric>
#include <vector>

namespace innerkv::runner {
namespace {

constexpr std::size_t kNodesPerLayer = 64;

/// Tokens from which on a weight's expansion costs less than the faster product saves.
constexpr int kExpandedTokens = 32;

/// Types whose products of many rows take ggml 1.4 (q8_0) to 3.5 (q4_1) times as long as expansion and the products
/// of floats; those of the other types half as long (two Sapphire Rapids cores, 512 rows by 576 x 1536). In layouts
/// of ggml's own, which are no host memory, all are fast.
bool multiplies_slowly(const ggml_tensor* weight) {
    constexpr ggml_type kSlow[] = {GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1,
                                   GGML_TYPE_Q8_0};
    return std::ranges::find(kSlow, weight->type) != std::end(kSlow) &&
           ggml_backend_buffer_is_host(weight->buffer);
}

/// Elements of the largest of the layers' weights that are worth expanding.
std::int64_t largest_expansion(const Weights& weights) {
    std::int64_t largest = 0;
    for (const LayerWeights& w : weights.layers) {
        for (const ggml_tensor* weight :
             {w.qkv, w.q, w.k, w.v, w.attention_out, w.ffn_gate, w.ffn_up, w.ffn_down}) {
            if (weight && multiplies_slowly(weight)) {
                largest = std::max(largest, ggml_nelements(weight));
            }
        }
    }
    return largest;
}

/// Adds a model's layers to a graph. Shapes in comments as ggml counts: innermost first.
class Builder {
public:
    /// `expanded`: fp32 memory for one weight of a layer at a time; null: products with weights as they are.
    Builder(const Parameters& model, const Weights& weights, ggml_context* context,
            ggml_cgraph* graph, ggml_tensor* positions, ggml_tensor* output_rows,
            ggml_tensor* expanded)
        : model_(model), weights_(weights), context_(context), graph_(graph), positions_(positions),
          output_rows_(output_rows), expanded_(expanded) {}

    /// [embedding_dim, tokens]
    ggml_tensor* embed(ggml_tensor* token_ids) const {
        ggml_tensor* x = ggml_get_rows(context_, weights_.token_embedding, token_ids);
        if (model_.architecture->scaled_embedding) {
            x = ggml_scale(context_, x, std::sqrt(static_cast<float>(model_.embedding_dim)));
        }
        return x;
    }

    ggml_tensor* layer(ggml_tensor* x, std::size_t index, LayerAttention& attention) const {
        const LayerWeights& w = weights_.layers[index];
        const Heads heads = query_key_value(norm(x, w.attention_norm), index);
        ggml_tensor* y = attention.attend(context_, heads.q, heads.k, heads.v);
        y = linear(w.attention_out, y, w.attention_out_bias);
        if (index + 1 == weights_.layers.size() && output_rows_) {
            y = ggml_get_rows(context_, y, output_rows_);
            x = ggml_get_rows(context_, x, output_rows_);
        }
        x = ggml_add(context_, post_norm(y, w.attention_post_norm), x);
        y = feed_forward(norm(x, w.ffn_norm), w);
        return ggml_add(context_, post_norm(y, w.ffn_post_norm), x);
    }

    /// The last layer where no token's logits are wanted: appending is all that is left to do.
    ggml_tensor* append_only(ggml_tensor* x, std::size_t index, LayerAttention& attention) const {
        const Heads heads = query_key_value(norm(x, weights_.layers[index].attention_norm), index);
        return attention.append(context_, heads.q, heads.k, heads.v);
    }

    /// [vocabulary_size, outputs]
    ggml_tensor* logits(ggml_tensor* x) const {
        x = ggml_mul_mat(context_, weights_.output, norm(x, weights_.output_norm));
        x = biased(x, weights_.output_bias);
        if (model_.logit_soft_cap > 0.0f) {
            x = ggml_scale(context_, x, 1.0f / model_.logit_soft_cap);
            x = ggml_scale(context_, ggml_tanh(context_, x), model_.logit_soft_cap);
        }
        return x;
    }

private:
    /// [head_dim, heads, tokens] each
    struct Heads {
        ggml_tensor* q;
        ggml_tensor* k;
        ggml_tensor* v;
    };

    ggml_tensor* norm(ggml_tensor* x, ggml_tensor* weight) const {
        return ggml_mul(context_, ggml_rms_norm(context_, x, model_.norm_epsilon), weight);
    }
    ggml_tensor* post_norm(ggml_tensor* x, ggml_tensor* weight) const {
        return weight ? norm(x, weight) : x;
    }
    ggml_tensor* biased(ggml_tensor* x, ggml_tensor* bias) const {
        return bias ? ggml_add(context_, x, bias) : x;
    }
    ggml_tensor* linear(ggml_tensor* weight, ggml_tensor* x, ggml_tensor* bias) const {
        const bool expands = expanded_ && multiplies_slowly(weight);
        return biased(expands ? product_of_expanded(weight, x) : ggml_mul_mat(context_, weight, x),
                      bias);
    }

    /// The weights of all layers share the memory that they are expanded in. A graph runs in the order in which
    /// nodes come into it: x first, then the weight, then their product, before the next weight.
    ggml_tensor* product_of_expanded(ggml_tensor* weight, ggml_tensor* x) const {
        ggml_build_forward_expand(graph_, x);
        const std::int64_t in = weight->ne[0];
        ggml_tensor* const floats = ggml_view_2d(context_, expanded_, in, weight->ne[1],
                                                 static_cast<std::size_t>(in) * sizeof(float), 0);
        ggml_tensor* const product = ggml_mul_mat(context_, ggml_cpy(context_, weight, floats), x);
        ggml_build_forward_expand(graph_, product);
        return product;
    }

    ggml_tensor* feed_forward(ggml_tensor* x, const LayerWeights& w) const {
        ggml_tensor* const up = linear(w.ffn_up, x, w.ffn_up_bias);
        ggml_tensor* const gate = linear(w.ffn_gate, x, w.ffn_gate_bias);
        ggml_tensor* const hidden = model_.architecture->activation == Activation::gelu
                                        ? ggml_geglu_split(context_, gate, up)
                                        : ggml_swiglu_split(context_, gate, up);
        return linear(w.ffn_down, hidden, w.ffn_down_bias);
    }

    /// `heads` heads of each row of x, from head `first` on.
    ggml_tensor* heads_of(ggml_tensor* x, int first, int heads) const {
        const std::size_t head_bytes = static_cast<std::size_t>(model_.head_dim) * sizeof(float);
        return ggml_view_3d(context_, x, model_.head_dim, heads, x->ne[1], head_bytes, x->nb[1],
                            static_cast<std::size_t>(first) * head_bytes);
    }

    Heads split_heads(ggml_tensor* x, const LayerWeights& w) const {
        const int q_heads = model_.q_heads;
        const int kv_heads = model_.kv_heads;
        if (w.qkv) {
            ggml_tensor* const all = linear(w.qkv, x, w.qkv_bias);
            return {heads_of(all, 0, q_heads), heads_of(all, q_heads, kv_heads),
                    heads_of(all, q_heads + kv_heads, kv_heads)};
        }
        return {heads_of(linear(w.q, x, w.q_bias), 0, q_heads),
                heads_of(linear(w.k, x, w.k_bias), 0, kv_heads),
                heads_of(linear(w.v, x, w.v_bias), 0, kv_heads)};
    }

    Heads query_key_value(ggml_tensor* x, std::size_t index) const {
        const LayerWeights& w = weights_.layers[index];
        Heads heads = split_heads(x, w);
        if (w.q_norm) {
            heads.q = norm(heads.q, w.q_norm);
            heads.k = norm(heads.k, w.k_norm);
        }
        heads.q = rope(heads.q, index);
        heads.k = rope(heads.k, index);
        return heads;
    }

    ggml_tensor* rope(ggml_tensor* x, std::size_t index) const {
        const RopeParameters& rope = model_.rope;
        const bool local = model_.sliding_window[index] > 0;
        return ggml_rope_ext(context_, x, positions_, weights_.rope_factors, rope.dims,
                             GGML_ROPE_TYPE_NEOX, rope.original_context,
                             local ? rope.local_base : rope.base,
                             local ? rope.local_scale : rope.scale, rope.ext_factor,
                             rope.attention_factor, rope.beta_fast, rope.beta_slow);
    }

    const Parameters& model_;
    const Weights& weights_;
    ggml_context* context_;
    ggml_cgraph* graph_;
    ggml_tensor* positions_;
    ggml_tensor* output_rows_;
    ggml_tensor* expanded_;
};

ggml_tensor* integer_input(ggml_context* context, int size) {
    ggml_tensor* const tensor = ggml_new_tensor_1d(context, GGML_TYPE_I32, size);
    ggml_set_input(tensor);
    return tensor;
}

void set_integers(ggml_tensor* tensor, const std::vector<std::int32_t>& values) {
    ggml_backend_tensor_set(tensor, values.data(), 0, values.size() * sizeof(std::int32_t));
}

std::vector<std::int32_t> counting_from(std::int64_t first, int count) {
    std::vector<std::int32_t> values(static_cast<std::size_t>(count));
    std::iota(values.begin(), values.end(), static_cast<std::int32_t>(first));
    return values;
}

} // namespace

Graph::Graph(const Parameters& model, const Weights& weights, std::span<LayerAttention> attention,
             int tokens, int outputs, bool expand_weights)
    : tokens_(tokens), outputs_(outputs) {
    const std::size_t layers = weights.layers.size();
    const std::size_t nodes = (layers + 1) * kNodesPerLayer;
    context_ = make_context(nodes, nodes);
    graph_ = ggml_new_graph_custom(context_.get(), nodes, /*grads=*/false);
    token_ids_ = integer_input(context_.get(), tokens);
    positions_ = integer_input(context_.get(), tokens);
    if (outputs > 0 && outputs < tokens) {
        output_rows_ = integer_input(context_.get(), outputs);
    }
    ggml_tensor* expanded = nullptr;
    if (const std::int64_t size = largest_expansion(weights);
        size > 0 && expand_weights && tokens >= kExpandedTokens) {
        expanded = ggml_new_tensor_1d(context_.get(), GGML_TYPE_F32, size);
        ggml_set_input(expanded);
    }
    const Builder builder(model, weights, context_.get(), graph_, positions_, output_rows_,
                          expanded);
    ggml_tensor* x = builder.embed(token_ids_);
    for (std::size_t i = 0; i + 1 < layers; ++i) {
        x = builder.layer(x, i, attention[i]);
    }
    if (outputs > 0) {
        logits_ = builder.logits(builder.layer(x, layers - 1, attention[layers - 1]));
        ggml_set_output(logits_);
    }
    ggml_build_forward_expand(
        graph_, logits_ ? logits_ : builder.append_only(x, layers - 1, attention[layers - 1]));
    allocator_.reset(ggml_gallocr_new(ggml_backend_dev_buffer_type(cpu_device())));
    if (!ggml_gallocr_alloc_graph(allocator_.get(), graph_)) {
        throw std::bad_alloc();
    }
}

void Graph::set_inputs(std::span<const std::int32_t> tokens, std::int64_t position) {
    ggml_backend_tensor_set(token_ids_, tokens.data(), 0, tokens.size_bytes());
    set_integers(positions_, counting_from(position, tokens_));
    if (output_rows_) {
        set_integers(output_rows_, counting_from(tokens_ - outputs_, outputs_));
    }
}

std::span<const float> Graph::logits() const {
    if (!logits_) {
        return {};
    }
    return {static_cast<const float*>(logits_->data),
            static_cast<std::size_t>(ggml_nelements(logits_))};
}

} // namespace innerkv::runner
