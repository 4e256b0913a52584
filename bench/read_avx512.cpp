// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "read_loops.h"

namespace innerkv::bench {

std::uint64_t read_avx512(const std::byte* data, std::size_t bytes, int streams) {
    constexpr std::size_t kStep = 256;
    const std::size_t stream_bytes = bytes / static_cast<std::size_t>(streams);
    __m512i sums[4] = {};
    for (std::size_t offset = 0; offset < stream_bytes; offset += kStep) {
        for (int stream = 0; stream < streams; ++stream) {
            const std::byte* at = data + static_cast<std::size_t>(stream) * stream_bytes + offset;
            for (std::size_t lane = 0; lane < 4; ++lane)
                sums[lane] =
                    _mm512_xor_si512(sums[lane], _mm512_load_si512(at + lane * sizeof(__m512i)));
        }
    }
    const __m512i all =
        _mm512_xor_si512(_mm512_xor_si512(sums[0], sums[1]), _mm512_xor_si512(sums[2], sums[3]));
    alignas(64) std::uint64_t words[8];
    _mm512_store_si512(words, all);
    std::uint64_t sum = 0;
    for (const std::uint64_t word : words) sum += word;
    return sum;
}

} // namespace innerkv::bench
