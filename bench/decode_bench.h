// SPDX-License-Identifier: Apache-2.0
// `innerkv bench decode`: prompt and generation of a model, on our cache and in libllama.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runner/runner.h"

namespace innerkv::bench {

struct DecodeBenchOptions {
    std::vector<std::string> caches; ///< contenders as runner::make_options has them, at least one
    std::vector<int> contexts;       ///< ascending; the longest fits the model
    int tokens = 32;                 ///< generated at a time
    int repeats = 3;                 ///< how often, contenders in turns, the last up to the context
    int threads = 1;
    std::string isa; ///< of presets; empty: the best there is
    std::uint32_t seed = 1;
    std::shared_ptr<const runner::Calibration>
        calibration; ///< of presets that quantize; null: none
    /// What is measured, and how many tokens were processed of all for it; false: stop. May be empty.
    std::function<bool(const std::string& what, std::int64_t done, std::int64_t total)> progress;
};

struct DecodeResult {
    std::string name;                    ///< "innerkv:base", "llama:f16"
    int context = 0;                     ///< tokens in the cache when the last one is generated
    double decode_tokens_per_s = 0;      ///< median of the repeats
    double best_decode_tokens_per_s = 0; ///< of the fastest
    double prompt_tokens_per_s = 0;      ///< of all that were not generated
    /// Weights, and what the session took besides until then: cache and buffers. 0: the system does not say.
    std::size_t peak_bytes = 0;
};

/// Throws InvalidArgument where a context is longer than `longest`, the model's, or has no room for a prompt between
/// the one before and the tokens that are generated.
void require_contexts(const DecodeBenchOptions& options, int longest);

/// All contenders go through the contexts together, their prompts continued from one to the next, and generate in
/// turns, so that what else the machine does is spread over all. The prompt is random tokens; generated ones are the
/// most likely. By context, then as `caches` has them. Throws InvalidArgument. Contexts that were finished before a
/// stop are returned.
std::vector<DecodeResult> run_decode_bench(const std::shared_ptr<runner::Model>& model,
                                           const DecodeBenchOptions& options);

} // namespace innerkv::bench
