// SPDX-License-Identifier: Apache-2.0
// One choice of each item, so that all fit a budget and lose least.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace innerkv::cli {

struct Choice {
    int cost = 0; ///< at least 0
    double loss = 0;
};

/// The choice of each item, by index: of all sets whose costs add up to no more than `budget`, one with the least
/// sum of losses. Exact: time and memory go with items * budget. Throws InvalidArgument where no set fits.
std::vector<std::size_t> choose_within(std::span<const std::vector<Choice>> items, int budget);

} // namespace innerkv::cli
