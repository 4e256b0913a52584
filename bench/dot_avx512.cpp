// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "dot_loops.h"
#include "keep.h"

namespace innerkv::bench {

/// vpdpbusd on 512-bit registers: 64 products an instruction.
std::int64_t dot_avx512(std::int64_t rounds) {
    constexpr int kChains = 12; // more than latency times throughput: 5 cycles, 2 a cycle
    __m512i sums[kChains] = {};
    for (__m512i& sum : sums) hide(sum); // else all chains are known to be equal: one is computed
    const __m512i unsigned_codes = _mm512_set1_epi8(3);
    const __m512i signed_codes = _mm512_set1_epi8(-5);
    for (std::int64_t round = 0; round < rounds; ++round)
        for (__m512i& sum : sums) sum = _mm512_dpbusd_epi32(sum, unsigned_codes, signed_codes);
    keep(sums);
    return rounds * kChains * 64;
}

} // namespace innerkv::bench
