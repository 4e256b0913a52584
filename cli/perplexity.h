// SPDX-License-Identifier: Apache-2.0
// Perplexity of caches on a text and their distance from a reference cache, window by window. Every
// token attends as in decoding: to the quantized history beyond the cache's windows.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kld.h"
#include "runner/runner.h"

namespace innerkv::cli {

struct PerplexityOptions {
    int window = 2048; ///< tokens; the second half is scored
    int windows = 0;
    int threads = 0; ///< 0: all cores
    std::string isa;
    std::string key_norm;                                   ///< empty: the presets' own
    std::string codec;                                      ///< as --codec has it
    std::shared_ptr<const runner::Calibration> calibration; ///< of all that quantize; may be null
    Arithmetic arithmetic = Arithmetic::integer;
    runner::Token first_token =
        -1; ///< stands in for each window's first token; negative: nothing does
    /// Tokens done of all sessions and windows; false: stop. May be empty.
    std::function<bool(std::int64_t done, std::int64_t total)> progress;
};

struct CacheScore {
    std::string cache;
    double bits_per_value = 0;       ///< of the format
    double bits_per_value_total = 0; ///< windows and transforms counted, at the end of a window
    bool never_quantized = false;    ///< its format quantizes, but its windows held everything
    Score score;
};

struct PerplexityResult {
    int windows = 0; ///< finished
    int threads = 0; ///< that computed and scored
    CacheScore reference;
    std::vector<CacheScore> caches;
};

/// All sessions walk through a window side by side, block by block, so that no more than one block of
/// the reference's logits is held: in fp32, for fp16 would blur divergences of 1e-4.
PerplexityResult measure_perplexity(const std::shared_ptr<runner::Model>& model,
                                    const std::vector<runner::Token>& tokens,
                                    const std::string& reference,
                                    const std::vector<std::string>& caches,
                                    const PerplexityOptions& options);

} // namespace innerkv::cli
