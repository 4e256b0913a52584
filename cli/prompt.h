// SPDX-License-Identifier: Apache-2.0
// From what the user gave to the tokens of a prompt.
#pragma once

#include <string>
#include <vector>

#include "runner/runner.h"

namespace innerkv::cli {

struct PromptText {
    std::string document; ///< may be empty
    std::string question; ///< may be empty
    bool raw = false;     ///< no chat template even where the model has one
};

/// The document, an empty line, the question; in the model's chat template if it has one and `raw` is
/// not asked for. Text that looks like a special token of the model, "<|im_end|>", stays text there.
std::vector<runner::Token> make_prompt(const runner::Model& model, const PromptText& text);

} // namespace innerkv::cli
