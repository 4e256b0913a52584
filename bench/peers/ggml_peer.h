// SPDX-License-Identifier: Apache-2.0
// Peers: ggml's flash attention on the CPU, with the mask and the precision of llama.cpp's decode step.
// Keys and values lie as ggml reads them fastest, or in rows as llama.cpp lays them out today.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "contender.h"

namespace innerkv::bench {

std::vector<std::string> ggml_cache_types();

/// Of keys, values and mask, padded as llama.cpp does, queries and outputs. Throws as the makers below.
std::size_t ggml_peer_bytes(const AttentionCase& attention, std::string_view type);

/// The rows of a head lie one after another. Throws InvalidArgument where the type is not one of those,
/// or does not fit the head dimension.
std::unique_ptr<Contender> make_ggml_peer(const AttentionCase& attention, std::string_view type,
                                          int threads, const Checkpoint& checkpoint);

/// The heads of a token lie one after another.
std::unique_ptr<Contender> make_ggml_rows_peer(const AttentionCase& attention,
                                               std::string_view type, int threads,
                                               const Checkpoint& checkpoint);

} // namespace innerkv::bench
