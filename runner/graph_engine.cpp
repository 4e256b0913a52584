// SPDX-License-Identifier: Apache-2.0
#include <exception>

#include "attention_op.h"
#include "cache_store.h"
#include "engine.h"
#include "graph.h"
#include "model.h"
#include "rivals.h"
#include "simulated/store.h"

namespace innerkv::runner {
namespace {

/// Between graphs threads sleep at once: one that polls takes a core that others may need, on a shared machine
/// that of a thread it waits for next.
constexpr std::uint32_t kPolling = 0;

std::unique_ptr<KvStore> make_store(const Model& model, const SessionOptions& options) {
    const ModelInfo& info = model.info();
    if (!options.rival.empty()) {
        simulated::Definition cache = parse_rival(options.rival).cache;
        if (cache.llama_order &&
            ModelAccess::parts(model).parameters.architecture->interleaved_rope) {
            cache.k.codec = simulated::interleaved(cache.k.codec);
        }
        return std::make_unique<simulated::Store>(info, std::move(cache));
    }
    return std::make_unique<CacheStore>(cache_config(info, options), options);
}

class GraphEngine final : public Engine {
public:
    GraphEngine(std::shared_ptr<Model> model, const SessionOptions& options)
        : model_(std::move(model)), store_(make_store(*model_, options)),
          backend_(options.threads, kPolling), driver_(*store_, options.arithmetic, options.isa),
          expand_weights_(options.expand_weights) {
        const Parameters& parameters = ModelAccess::parts(*model_).parameters;
        for (int layer = 0; layer < parameters.layers; ++layer) {
            attention_.push_back(
                {.driver = &driver_,
                 .layer = layer,
                 .shape = {.q_heads = parameters.q_heads,
                           .kv_heads = parameters.kv_heads,
                           .format = store_->format(layer),
                           .scale = parameters.attention_scale,
                           .soft_cap = parameters.attention_soft_cap,
                           .sliding_window =
                               parameters.sliding_window[static_cast<std::size_t>(layer)]}});
        }
    }

    std::span<const float> process(std::span<const Token> tokens, std::int64_t position,
                                   int outputs) override {
        Graph& chunk = graph(static_cast<int>(tokens.size()), outputs);
        store_->reserve(static_cast<int>(tokens.size()));
        chunk.set_inputs(tokens, position);
        driver_.begin(position);
        std::exception_ptr error;
        try {
            backend_.compute(chunk.graph());
        } catch (...) {
            error = std::current_exception();
        }
        if (const std::exception_ptr inside = driver_.finish()) {
            error = inside;
        }
        if (error) {
            std::rethrow_exception(error);
        }
        return chunk.logits();
    }

    void settle() override { store_->settle(); }
    void truncate(std::int64_t length) override { store_->truncate(length); }
    void clear() override { store_->clear(); }
    SequenceView view(int layer) const override { return store_->view(layer); }
    CacheReport report(std::int64_t length) const override { return store_->report(length); }

private:
    /// Decoding and prompts each keep the graph they used last.
    Graph& graph(int tokens, int outputs) {
        std::unique_ptr<Graph>& slot = tokens == 1 ? decode_graph_ : chunk_graph_;
        if (!slot || slot->tokens() != tokens || slot->outputs() != outputs) {
            slot.reset();
            const auto& parts = ModelAccess::parts(*model_);
            slot = std::make_unique<Graph>(parts.parameters, parts.weights, attention_, tokens,
                                           outputs, expand_weights_);
        }
        return *slot;
    }

    std::shared_ptr<Model> model_;
    std::unique_ptr<KvStore> store_;
    CpuBackend backend_;
    AttentionDriver driver_;
    bool expand_weights_;
    std::vector<LayerAttention> attention_; ///< [layers]
    std::unique_ptr<Graph> decode_graph_;
    std::unique_ptr<Graph> chunk_graph_;
};

} // namespace

std::unique_ptr<Engine> make_graph_engine(std::shared_ptr<Model> model,
                                          const SessionOptions& options) {
    return std::make_unique<GraphEngine>(std::move(model), options);
}

} // namespace innerkv::runner
