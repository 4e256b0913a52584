// SPDX-License-Identifier: Apache-2.0
// A model and how much of a text it reads: what measuring and calibrating begin with.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "runner/runner.h"

namespace innerkv::cli {

/// Throws Failure where --ctx, `context`, is beyond the model's.
std::shared_ptr<runner::Model> load_model(const std::string& path, int context);

/// How many of `wanted` stretches of `length` tokens a text of so many tokens has. Warns where they are
/// fewer and throws Failure where there is none. 0: nothing was asked for; up to `usual` are taken, 0 being
/// all. `noun` is what they are called.
int choose_stretches(const std::string& text, std::size_t tokens, int wanted, std::size_t length,
                     const std::string& noun, int usual);

} // namespace innerkv::cli
