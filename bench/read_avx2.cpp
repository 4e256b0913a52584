// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "read_loops.h"

namespace innerkv::bench {

std::uint64_t read_avx2(const std::byte* data, std::size_t bytes, int streams) {
    constexpr std::size_t kStep = 128;
    const std::size_t stream_bytes = bytes / static_cast<std::size_t>(streams);
    __m256i sums[4] = {};
    for (std::size_t offset = 0; offset < stream_bytes; offset += kStep) {
        for (int stream = 0; stream < streams; ++stream) {
            const std::byte* at = data + static_cast<std::size_t>(stream) * stream_bytes + offset;
            for (std::size_t lane = 0; lane < 4; ++lane)
                sums[lane] = _mm256_xor_si256(
                    sums[lane], _mm256_load_si256(reinterpret_cast<const __m256i*>(at) + lane));
        }
    }
    alignas(32) std::uint64_t words[4];
    const __m256i all =
        _mm256_xor_si256(_mm256_xor_si256(sums[0], sums[1]), _mm256_xor_si256(sums[2], sums[3]));
    _mm256_store_si256(reinterpret_cast<__m256i*>(words), all);
    return words[0] + words[1] + words[2] + words[3];
}

} // namespace innerkv::bench
