// SPDX-License-Identifier: Apache-2.0
// Standings of items summed up: by cache, and by position.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "contest.h"

namespace innerkv::cli {

/// A cache and the sum of its standings.
struct CacheScore {
    std::string cache;
    double bits_per_value = 0;       ///< of the format
    double bits_per_value_total = 0; ///< windows and transforms counted, at the end of an item
    bool never_quantized = false;    ///< its format quantizes, but its windows held everything
    std::vector<RowScore> rows;
    Score score;
    std::vector<double> item_divergences; ///< mean of each item's rows
};

/// Of finished items, [items][caches].
std::vector<CacheScore> sum_up(const std::vector<CacheFormat>& caches,
                               const std::vector<std::vector<Standing>>& items);

/// Rows of a stretch of positions.
struct Stretch {
    std::int64_t position = 0; ///< of its first token
    double middle = 0;
    Score score;
};

/// `rows` are those of items one after another, each with positions `first` to `first` + length - 1,
/// length being a divisor of their number. The positions are cut into `stretches` of nearly one size,
/// or as many as there are positions.
std::vector<Stretch> by_position(std::span<const RowScore> rows, std::size_t length,
                                 std::int64_t first, std::size_t stretches);

} // namespace innerkv::cli
