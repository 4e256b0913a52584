// SPDX-License-Identifier: Apache-2.0
// Standings as JSON, for the files of --resume, and summed up by position.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "contest.h"
#include "output.h"

namespace innerkv::cli {

Json to_json(const std::vector<Standing>& standings);
/// Throws Failure where the JSON is not what to_json makes; values come back bit by bit.
std::vector<Standing> standings_from_json(const Json& json);

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
