// SPDX-License-Identifier: Apache-2.0
// What a model's metadata say about its graph, checked: every number here is within bounds.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gguf_file.h"

namespace innerkv::runner {

enum class Activation { silu, gelu };

/// What distinguishes one architecture's graph from another's. The table of them is in parameters.cpp;
/// a new architecture of the same family is one more row.
struct Architecture {
    std::string_view name; ///< general.architecture
    Activation activation = Activation::silu;
    int window_period = 0;         ///< of so many layers the last has no window; 0: no windows
    int default_window = 0;        ///< without metadata; 0: no windows then
    int scale_by_width_layers = 0; ///< a model of so many layers scales by embedding_dim / q_heads
    float attention_soft_cap = 0.0f; ///< without metadata; 0: metadata are not read
    float logit_soft_cap = 0.0f;     ///< without metadata
    bool reads_logit_soft_cap = false;
    /// Rope pairs neighbouring rows of q and k; they are put half a head apart when weights are read,
    /// where the other architectures have them (weights.cpp).
    bool interleaved_rope = false;
    bool partial_rope = false;     ///< rope may cover less than the head
    bool local_rope = false;       ///< layers with a window have a rope base of their own
    bool rope_factors = false;     ///< rope_freqs.weight divides the frequencies
    bool query_key_norm = false;   ///< RMS norm of each head of q and k before rope
    bool post_norm = false;        ///< RMS norm of what attention and FFN add
    bool scaled_embedding = false; ///< token embeddings times sqrt(embedding_dim)
    bool extra_biases = false;     ///< biases of attention's output and of the FFN
    bool output_bias = false;
    bool always_tied = false; ///< the output is always the token embedding
};

std::span<const Architecture> architectures();

/// Rotary position embedding as ggml_rope_ext takes it.
struct RopeParameters {
    int dims = 0;
    float base = 10000.0f;
    float scale = 1.0f;
    float local_base = 10000.0f; ///< of layers with a sliding window
    float local_scale = 1.0f;
    int original_context = 0;
    float ext_factor = 0.0f;
    float attention_factor = 1.0f;
    float beta_fast = 32.0f;
    float beta_slow = 1.0f;
};

struct Parameters {
    const Architecture* architecture = nullptr;
    int layers = 0;
    int embedding_dim = 0;
    int q_heads = 0;
    int kv_heads = 0;
    int head_dim = 0;
    std::vector<int> feed_forward_dim; ///< [layers]
    int vocabulary_size = 0;
    int context_length = 0;
    float norm_epsilon = 0.0f;
    float attention_scale = 0.0f;
    float attention_soft_cap = 0.0f; ///< 0: none
    float logit_soft_cap = 0.0f;     ///< 0: none
    std::vector<int> sliding_window; ///< [layers]; 0: none
    RopeParameters rope;
};

/// Throws ModelError where the file is no model that the runner has a graph for.
Parameters read_parameters(const GgufFile& file);

} // namespace innerkv::runner
