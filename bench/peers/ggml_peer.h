// SPDX-License-Identifier: Apache-2.0
// Peer: ggml's flash attention on the CPU, set up as llama.cpp sets it up for a decode step.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "contender.h"

namespace innerkv::bench {

std::vector<std::string> ggml_cache_types();

/// Throws InvalidArgument where the type is not one of those, or does not fit the head dimension.
std::unique_ptr<Contender> make_ggml_peer(const AttentionCase& attention, std::string_view type,
                                          int threads);

} // namespace innerkv::bench
