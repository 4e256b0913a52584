// SPDX-License-Identifier: Apache-2.0
// Messages on stderr, one line each, with the program's name in front.
#pragma once

#include <string_view>

namespace innerkv::cli {

void log_error(std::string_view message);
void log_warning(std::string_view message);

/// Forwards what ggml and llama.cpp say.
void log_models();

} // namespace innerkv::cli
