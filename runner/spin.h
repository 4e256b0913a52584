// SPDX-License-Identifier: Apache-2.0
// Waiting for threads that are expected within microseconds.
#pragma once

#include <atomic>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace innerkv::runner {

inline void spin_pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

/// Returns once `condition()` holds. With more threads than free cores the one that is waited for may
/// need this core: after a tenth of a millisecond or so it gets it.
template <typename Condition>
void spin_until(const Condition& condition) {
    constexpr int spins_before_yield = 1000;
    for (int spins = 0; !condition();) {
        if (spins < spins_before_yield) {
            spin_pause();
            ++spins;
        } else {
            std::this_thread::yield();
        }
    }
}

class SpinBarrier {
public:
    /// Returns once `threads` threads have called it. What they wrote before is visible after.
    void wait(int threads) {
        const unsigned round = round_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.fetch_add(1, std::memory_order_release);
            return;
        }
        spin_until([&] { return round_.load(std::memory_order_acquire) != round; });
    }

private:
    std::atomic<int> arrived_{0};
    std::atomic<unsigned> round_{0};
};

} // namespace innerkv::runner
