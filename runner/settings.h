// SPDX-License-Identifier: Apache-2.0
// A preset with some of its parts changed, as a contender's name: PRESET+KEY=VALUE+...
#pragma once

#include <string_view>

#include "runner/runner.h"

namespace innerkv::runner {

/// `settings` is empty or begins with a plus. Keys: sink, recent (tokens), calibration (tokens that the norm is
/// taken from), epoch (tokens that share a centre), norm (none, prefill, balanced), centre, rotate, queries (on, off), layers (digits, two a layer: bits of keys and of values).
/// Throws InvalidArgument naming the keys or values there are, also where a key is named twice or the preset
/// quantizes nothing.
void apply_settings(std::string_view settings, SessionOptions& options);

} // namespace innerkv::runner
