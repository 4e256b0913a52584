// SPDX-License-Identifier: Apache-2.0
// Loops that only read, one translation unit per instruction set, with its flags.
#pragma once

#include <cstddef>
#include <cstdint>

namespace innerkv::bench {

/// Reads [data, data + bytes), both multiples of 4096, as `streams` runs side by side (1, 2 or 4) and
/// returns a value that depends on every byte.
using ReadLoop = std::uint64_t (*)(const std::byte* data, std::size_t bytes, int streams);

std::uint64_t read_portable(const std::byte* data, std::size_t bytes, int streams);
std::uint64_t read_avx2(const std::byte* data, std::size_t bytes, int streams);
std::uint64_t read_avx512(const std::byte* data, std::size_t bytes, int streams);

} // namespace innerkv::bench
