// SPDX-License-Identifier: Apache-2.0
// A model's tensors: checked against its parameters, read in place from the mapped file, or copied
// once into a layout that the processor multiplies faster.
#pragma once

#include <vector>

#include "backend.h"
#include "gguf_file.h"
#include "parameters.h"

namespace innerkv::runner {

/// Null where a model has no such tensor.
struct LayerWeights {
    ggml_tensor* attention_norm = nullptr;
    ggml_tensor* qkv = nullptr; ///< q, k and v in one, then q, k, v are null
    ggml_tensor* qkv_bias = nullptr;
    ggml_tensor* q = nullptr;
    ggml_tensor* q_bias = nullptr;
    ggml_tensor* k = nullptr;
    ggml_tensor* k_bias = nullptr;
    ggml_tensor* v = nullptr;
    ggml_tensor* v_bias = nullptr;
    ggml_tensor* q_norm = nullptr;
    ggml_tensor* k_norm = nullptr;
    ggml_tensor* attention_out = nullptr;
    ggml_tensor* attention_out_bias = nullptr;
    ggml_tensor* attention_post_norm = nullptr;
    ggml_tensor* ffn_norm = nullptr;
    ggml_tensor* ffn_gate = nullptr;
    ggml_tensor* ffn_gate_bias = nullptr;
    ggml_tensor* ffn_up = nullptr;
    ggml_tensor* ffn_up_bias = nullptr;
    ggml_tensor* ffn_down = nullptr;
    ggml_tensor* ffn_down_bias = nullptr;
    ggml_tensor* ffn_post_norm = nullptr;
};

class Weights {
public:
    /// Throws ModelError at a missing, unknown or misshapen tensor. The file must outlive the object.
    Weights(const GgufFile& file, const Parameters& model);

    ggml_tensor* token_embedding = nullptr;
    ggml_tensor* output_norm = nullptr;
    ggml_tensor* output = nullptr; ///< the token embedding where they are tied
    ggml_tensor* output_bias = nullptr;
    ggml_tensor* rope_factors = nullptr;
    std::vector<LayerWeights> layers;

    /// Model::copied_bytes
    std::size_t copied_bytes() const;

private:
    friend class WeightReader;
    std::vector<BufferPtr> buffers_; ///< the mapped file, then copies
    std::vector<ContextPtr> contexts_;
};

} // namespace innerkv::runner
