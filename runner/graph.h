// SPDX-License-Identifier: Apache-2.0
// A model's forward pass over a chunk of tokens as a ggml graph. Built once for a number of tokens and
// reused with other inputs.
#pragma once

#include <memory>
#include <span>

#include "attention_op.h"
#include "backend.h"
#include "ggml-alloc.h"
#include "parameters.h"
#include "weights.h"

namespace innerkv::runner {

class Graph {
public:
    /// Logits are computed for the last `outputs` of the tokens. `attention`: one per layer, which must
    /// outlive the graph. `expand_weights`: SessionOptions::expand_weights.
    Graph(const Parameters& model, const Weights& weights, std::span<LayerAttention> attention,
          int tokens, int outputs, bool expand_weights);

    int tokens() const { return tokens_; }
    int outputs() const { return outputs_; }
    ggml_cgraph* graph() const { return graph_; }
    /// Token ids, and the position of the first.
    void set_inputs(std::span<const std::int32_t> tokens, std::int64_t position);
    /// [outputs, vocabulary_size], valid until the graph is computed again.
    std::span<const float> logits() const;

private:
    struct FreeAllocator {
        void operator()(ggml_gallocr_t allocator) const { ggml_gallocr_free(allocator); }
    };

    int tokens_;
    int outputs_;
    ContextPtr context_;
    ggml_cgraph* graph_ = nullptr;
    ggml_tensor* token_ids_ = nullptr;
    ggml_tensor* positions_ = nullptr;
    ggml_tensor* output_rows_ = nullptr; ///< null where every token has logits, or none
    ggml_tensor* logits_ = nullptr;
    std::unique_ptr<ggml_gallocr, FreeAllocator> allocator_;
};

} // namespace innerkv::runner
