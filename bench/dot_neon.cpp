// SPDX-License-Identifier: Apache-2.0
#include <arm_neon.h>

#include "dot_loops.h"
#include "keep.h"

namespace innerkv::bench {

/// SDOT on 128-bit registers: 16 products an instruction.
std::int64_t dot_neon(std::int64_t rounds) {
    constexpr int kChains = 16; // latency times the highest throughput: 4 cycles, 4 a cycle
    int32x4_t sums[kChains] = {};
    for (int32x4_t& sum : sums) hide(sum); // else all chains are known to be equal: one is computed
    const int8x16_t codes = vdupq_n_s8(3);
    const int8x16_t queries = vdupq_n_s8(-5);
    for (std::int64_t round = 0; round < rounds; ++round)
        for (int32x4_t& sum : sums) sum = vdotq_s32(sum, codes, queries);
    keep(sums);
    return rounds * kChains * 16;
}

} // namespace innerkv::bench
