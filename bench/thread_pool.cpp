// SPDX-License-Identifier: Apache-2.0
#include "thread_pool.h"

#include "runner/spin.h"

namespace innerkv::bench {

using runner::spin_until;

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
