// SPDX-License-Identifier: Apache-2.0
// A barrier for threads that meet again within microseconds.
#pragma once

#include <atomic>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace innerkv::runner {

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
        // With more threads than cores the one that is waited for may need this core.
        for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
            if (spins < kSpinsBeforeYield) {
                pause();
            } else {
                std::this_thread::yield();
            }
        }
    }

private:
    static constexpr int kSpinsBeforeYield = 2000;

    static void pause() {
#if defined(__x86_64__)
        _mm_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }

    std::atomic<int> arrived_{0};
    std::atomic<unsigned> round_{0};
};

} // namespace innerkv::runner
