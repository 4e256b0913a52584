// SPDX-License-Identifier: Apache-2.0
// Contenders take turns, A B C A B C ..., so that a slow spell of the machine hits all of them.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "contender.h"

namespace innerkv::bench {

struct TurnHooks {
    std::function<void()> before_run;     ///< not timed; flushes caches; may be empty
    std::function<bool(int)> after_round; ///< gets the rounds done; false: stop; may be empty
};

/// Microseconds of each run, [contenders][rounds].
std::vector<std::vector<double>> measure_interleaved(std::span<Contender* const> contenders,
                                                     int rounds, const TurnHooks& hooks = {});

} // namespace innerkv::bench
