// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "dot_loops.h"
#include "keep.h"

namespace innerkv::bench {

/// vpmaddubsw, vpmaddwd with ones, vpaddd: 32 products in three instructions.
std::int64_t dot_avx2(std::int64_t rounds) {
    constexpr int kChains = 8;
    __m256i sums[kChains] = {};
    __m256i unsigned_codes = _mm256_set1_epi8(3);
    const __m256i signed_codes = _mm256_set1_epi8(-5);
    const __m256i ones = _mm256_set1_epi16(1);
    for (std::int64_t round = 0; round < rounds; ++round) {
        for (__m256i& sum : sums) {
            hide(unsigned_codes); // else the product is computed once, before the loop
            const __m256i pairs = _mm256_maddubs_epi16(unsigned_codes, signed_codes);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
        }
    }
    keep(sums);
    return rounds * kChains * 32;
}

} // namespace innerkv::bench
