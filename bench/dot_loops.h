// SPDX-License-Identifier: Apache-2.0
// The int8 dot product of each instruction set, as its kernel uses it, on data in registers: how many
// multiply-accumulates a second it can do at most. One translation unit each, with its flags.
#pragma once

#include <cstdint>

namespace innerkv::bench {

/// Runs `rounds` rounds and returns the multiply-accumulates done.
using DotLoop = std::int64_t (*)(std::int64_t rounds);

std::int64_t dot_scalar(std::int64_t rounds);
std::int64_t dot_avx2(std::int64_t rounds);
std::int64_t dot_avxvnni(std::int64_t rounds);
std::int64_t dot_avx512(std::int64_t rounds);
std::int64_t dot_amx(std::int64_t rounds);

} // namespace innerkv::bench
