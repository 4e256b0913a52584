// SPDX-License-Identifier: Apache-2.0
#include "interleave.h"

#include <chrono>

namespace innerkv::bench {

std::vector<std::vector<double>> measure_interleaved(std::span<Contender* const> contenders,
                                                     int rounds, const TurnHooks& hooks) {
    using Clock = std::chrono::steady_clock;
    std::vector<std::vector<double>> microseconds(contenders.size());
    for (int round = 0; round < rounds; ++round) {
        for (std::size_t index = 0; index < contenders.size(); ++index) {
            Contender& contender = *contenders[index];
            if (hooks.before_run) hooks.before_run();
            contender.wake();
            const auto start = Clock::now();
            contender.run();
            const auto end = Clock::now();
            contender.rest();
            microseconds[index].push_back(
                std::chrono::duration<double, std::micro>(end - start).count());
        }
        if (hooks.after_round && !hooks.after_round(round + 1)) break;
    }
    return microseconds;
}

} // namespace innerkv::bench
