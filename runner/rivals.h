// SPDX-License-Identifier: Apache-2.0
// Names of caches of others: sim:... and llama:...; docs/rivals.md describes them.
#pragma once

#include <string>
#include <string_view>

#include "simulated/store.h"

namespace innerkv::runner {

struct Rival {
    bool libllama = false;       ///< run by libllama itself, which has no windows
    std::string type;            ///< codec or cache type, such as "q4_0"
    bool rotate = false;         ///< llama.cpp's Hadamard rotation
    simulated::Definition cache; ///< without codecs: f16
};

/// Throws InvalidArgument listing the names there are.
Rival parse_rival(std::string_view name);

/// Whether a name is meant for parse_rival().
bool names_rival(std::string_view name);

} // namespace innerkv::runner
