// SPDX-License-Identifier: Apache-2.0
// A model and how much of a text it reads: what measuring and calibrating begin with.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runner/runner.h"

namespace innerkv::cli {

/// Throws UsageError where --ctx, `context`, is beyond the model's.
std::shared_ptr<runner::Model> load_model(const std::string& path, int context);

/// What a text is cut into.
struct StretchKind {
    std::string noun;       ///< what one is called
    std::size_t length = 0; ///< tokens of one
    std::string why;        ///< it is not --ctx: " (--ctx 768 less 32)"; empty: it is
    int usual = 0;          ///< how many are taken where nothing was asked for; 0: all
};

/// How many of `wanted` stretches, 0 being the usual ones, a text of so many tokens has. Warns where they are
/// fewer and throws UsageError where there is none.
int choose_stretches(const std::string& text, std::size_t tokens, int wanted,
                     const StretchKind& kind);

/// A stretch of a text, its first token replaced by the one that the model's texts begin with, if it has one.
std::vector<runner::Token> opened(const runner::Model& model,
                                  std::span<const runner::Token> stretch);

} // namespace innerkv::cli
