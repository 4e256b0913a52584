// SPDX-License-Identifier: Apache-2.0
// Memory of a cache before it exists.
#pragma once

#include <cstddef>
#include <cstdint>

#include "innerkv/cache.h"

namespace innerkv {

/// Bytes that one sequence of `length` tokens holds under `config` in steady state (appended token by
/// token): windows in fp16, the rest in pages, transforms counted. With a sliding window, the layers
/// that have one hold the pages it reaches. Equals CacheUsage::bytes_in_use of a cache with that
/// sequence alone. Only the shape, the codecs, the windows and the transform policy of `config` matter. Throws
/// InvalidArgument.
std::size_t sequence_bytes(const CacheConfig& config, std::int64_t length);

/// The same sequence wholly in fp16, token by token without windows or pages: 2 * layers * kv_heads *
/// head_dim * length * 2 bytes, sliding windows counted: what an f16 cache needs.
std::size_t f16_sequence_bytes(const CacheConfig& config, std::int64_t length);

} // namespace innerkv
