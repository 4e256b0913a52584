// SPDX-License-Identifier: Apache-2.0
// Threads for measurements. While awake they spin for work, so that a timed run does not pay for waking
// them; asleep they leave the cores to the next contender.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace innerkv::bench {

class ThreadPool {
public:
    /// The calling thread counts as one of `threads`.
    explicit ThreadPool(int threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    void wake();
    void rest();

    /// Calls work(thread) once on every thread, 0 being the caller, and returns when all are done. The
    /// pool must be awake; work must not throw.
    void run(const std::function<void(int thread)>& work);

private:
    void serve(int thread);

    std::vector<std::thread> workers_;
    const std::function<void(int)>* work_ = nullptr;
    std::atomic<std::uint64_t> round_{0};
    std::atomic<int> busy_{0};
    std::atomic<bool> awake_{false};
    std::atomic<bool> stop_{false};
    std::mutex mutex_;
    std::condition_variable wake_up_;
};

} // namespace innerkv::bench
