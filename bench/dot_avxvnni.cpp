// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "dot_loops.h"
#include "keep.h"

namespace innerkv::bench {

/// vpdpbusd on 256-bit registers: 32 products an instruction.
std::int64_t dot_avxvnni(std::int64_t rounds) {
    constexpr int kChains = 12; // more than latency times throughput: 5 cycles, 2 a cycle
    __m256i sums[kChains] = {};
    for (__m256i& sum : sums) hide(sum); // else all chains are known to be equal: one is computed
    const __m256i unsigned_codes = _mm256_set1_epi8(3);
    const __m256i signed_codes = _mm256_set1_epi8(-5);
    for (std::int64_t round = 0; round < rounds; ++round)
        for (__m256i& sum : sums) sum = _mm256_dpbusd_avx_epi32(sum, unsigned_codes, signed_codes);
    keep(sums);
    return rounds * kChains * 32;
}

} // namespace innerkv::bench
