// SPDX-License-Identifier: Apache-2.0
// Generating text with one session.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runner/runner.h"

namespace innerkv::cli {

enum class Finish { stop, length, context, interrupted };

/// "stop": the model ended its turn; "length": -n; "context": the cache is full; "interrupted".
std::string_view finish_name(Finish finish);

struct Generation {
    std::vector<runner::Token> tokens;
    std::string text; ///< whole characters; bytes that are none became U+FFFD
    Finish finish = Finish::length;
    std::int64_t prompt_length = 0; ///< tokens of the whole prompt
    std::int64_t prompt_tokens = 0; ///< processed
    double prompt_seconds = 0;
    std::int64_t decoded_tokens = 0;
    double decode_seconds = 0; ///< of decoding alone, without sampling and writing
    runner::CacheReport cache;

    double prompt_tokens_per_s() const;
    double decode_tokens_per_s() const;
};

/// Processes the prompt under a progress bar; false: interrupted.
bool process_prompt(runner::Session& session, std::span<const runner::Token> prompt,
                    Generation& generation);

struct GenerateOptions {
    int tokens = 256; ///< at most
    /// Gets the text of each token, whole characters only; may be empty.
    std::function<void(std::string_view)> on_text;
    /// Gets the logits that each token was chosen from; may be empty.
    std::function<void(std::span<const float>)> on_logits;
};

/// Goes on from the session's logits, or from `first`, a token that was chosen from them already.
void generate(const runner::Model& model, runner::Session& session, runner::Sampler& sampler,
              const GenerateOptions& options, Generation& generation,
              std::optional<runner::Token> first = {});

} // namespace innerkv::cli
