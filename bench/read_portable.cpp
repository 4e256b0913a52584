// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "read_loops.h"

namespace innerkv::bench {

std::uint64_t read_portable(const std::byte* data, std::size_t bytes, int streams) {
    constexpr std::size_t kStep = 64;
    const std::size_t stream_bytes = bytes / static_cast<std::size_t>(streams);
    std::uint64_t sums[8] = {};
    for (std::size_t offset = 0; offset < stream_bytes; offset += kStep) {
        for (int stream = 0; stream < streams; ++stream) {
            std::uint64_t words[8];
            std::memcpy(words, data + static_cast<std::size_t>(stream) * stream_bytes + offset,
                        sizeof words);
            for (int lane = 0; lane < 8; ++lane) sums[lane] ^= words[lane];
        }
    }
    std::uint64_t all = 0;
    for (const std::uint64_t sum : sums) all += sum;
    return all;
}

} // namespace innerkv::bench
