// SPDX-License-Identifier: Apache-2.0
#include <cstddef>

#include "dot_loops.h"
#include "keep.h"

namespace innerkv::bench {

/// What the compiler makes of plain C++ for the oldest processor of the architecture.
std::int64_t dot_scalar(std::int64_t rounds) {
    constexpr std::size_t kElements = 1024; // stays in the first-level cache
    std::uint8_t unsigned_codes[kElements];
    std::int8_t signed_codes[kElements];
    for (std::size_t i = 0; i < kElements; ++i) {
        unsigned_codes[i] = static_cast<std::uint8_t>(i % 7);
        signed_codes[i] = static_cast<std::int8_t>(static_cast<int>(i % 11) - 5);
    }
    std::int32_t sum = 0;
    for (std::int64_t round = 0; round < rounds; ++round) {
        keep(unsigned_codes);
        for (std::size_t i = 0; i < kElements; ++i) sum += unsigned_codes[i] * signed_codes[i];
        keep(&sum);
    }
    return rounds * static_cast<std::int64_t>(kElements);
}

} // namespace innerkv::bench
