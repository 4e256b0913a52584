// SPDX-License-Identifier: Apache-2.0
// The forward pass of one sequence with its cache: our graph, or libllama's.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "runner/runner.h"

namespace innerkv::runner {

class Engine {
public:
    Engine() = default;
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;
    virtual ~Engine() = default;

    /// Processes tokens that begin at `position`, the sequence's length. Logits of the last `outputs` of
    /// them, valid until the next call. After an exception some layers may have the tokens: truncate().
    virtual std::span<const float> process(std::span<const Token> tokens, std::int64_t position,
                                           int outputs) = 0;
    /// The prompt is complete.
    virtual void settle() = 0;
    virtual void truncate(std::int64_t length) = 0;
    virtual void clear() = 0;
    /// Of our graph's store; libllama shows no such thing: throws InvalidArgument.
    virtual SequenceView view(int layer) const = 0;
    virtual CacheReport report(std::int64_t length) const = 0;
};

/// Our graph on our cache. The options are complete.
std::unique_ptr<Engine> make_graph_engine(std::shared_ptr<Model> model,
                                          const SessionOptions& options);
/// libllama on a cache of its own; `options.rival` names it.
std::unique_ptr<Engine> make_llama_engine(const Model& model, const SessionOptions& options);

/// Nothing is quantized between a chunk's first token and its last.
bool whole_chunks(const SessionOptions& options);

} // namespace innerkv::runner
