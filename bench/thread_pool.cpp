// SPDX-License-Identifier: Apache-2.0
#include "thread_pool.h"

namespace innerkv::bench {
namespace {

/// Spins between yields: with more threads than free cores, somebody else has to get on.
constexpr int kSpinsPerYield = 4096;

template <typename Condition>
void spin_until(const Condition& condition) {
    for (int spins = 1; !condition(); ++spins)
        if (spins % kSpinsPerYield == 0) std::this_thread::yield();
}

} // namespace

ThreadPool::ThreadPool(int threads) {
    for (int thread = 1; thread < threads; ++thread)
        workers_.emplace_back([this, thread] { serve(thread); });
}

ThreadPool::~ThreadPool() {
    {
        const std::lock_guard lock(mutex_);
        stop_ = true;
    }
    wake_up_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::wake() {
    {
        const std::lock_guard lock(mutex_);
        awake_ = true;
    }
    wake_up_.notify_all();
    run([](int) {}); // returns once every worker spins
}

void ThreadPool::rest() { awake_ = false; }

void ThreadPool::run(const std::function<void(int)>& work) {
    work_ = &work;
    busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_release);
    work(0);
    spin_until([this] { return busy_.load(std::memory_order_acquire) == 0; });
}

void ThreadPool::serve(int thread) {
    for (std::uint64_t done = 0;;) {
        if (!awake_) {
            std::unique_lock lock(mutex_);
            wake_up_.wait(lock, [this] { return awake_ || stop_; });
        }
        spin_until(
            [&] { return round_.load(std::memory_order_acquire) != done || !awake_ || stop_; });
        if (stop_) return;
        if (round_.load(std::memory_order_acquire) == done) continue;
        ++done;
        (*work_)(thread);
        busy_.fetch_sub(1, std::memory_order_release);
    }
}

} // namespace innerkv::bench
