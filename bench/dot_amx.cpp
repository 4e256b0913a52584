// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "dot_loops.h"
#include "keep.h"

namespace innerkv::bench {

/// tdpbusd on tiles of 16 rows and 32 inner bytes, as our kernel uses them: 8192 products an instruction.
/// Tiles have to be permitted (available_isas() asks).
std::int64_t dot_amx(std::int64_t rounds) {
    struct alignas(64) {
        std::uint8_t palette = 1;
        std::uint8_t start_row = 0;
        std::uint8_t reserved[14] = {};
        std::uint16_t bytes_of_row[16] = {32, 64, 64, 64, 64, 64, 64, 64};
        std::uint8_t rows[16] = {16, 8, 16, 16, 16, 16, 16, 16};
    } configuration;
    constexpr int kChains = 6;
    keep(&configuration); // the intrinsic tells the compiler of its first bytes only
    _tile_loadconfig(&configuration);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (std::int64_t round = 0; round < rounds; ++round) {
        _tile_dpbusd(2, 0, 1);
        _tile_dpbusd(3, 0, 1);
        _tile_dpbusd(4, 0, 1);
        _tile_dpbusd(5, 0, 1);
        _tile_dpbusd(6, 0, 1);
        _tile_dpbusd(7, 0, 1);
    }
    _tile_release();
    return rounds * kChains * 16 * 16 * 32;
}

} // namespace innerkv::bench
