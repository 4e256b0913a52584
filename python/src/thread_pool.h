// SPDX-License-Identifier: Apache-2.0
// The threads that run the library's parts and items: the library owns none. One pool a process; its workers
// sleep between calls.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace innerkv::python {

class ThreadPool {
public:
    /// The calling thread counts as one of `threads`, which is at least 1. Throws Error where the system
    /// starts fewer.
    explicit ThreadPool(int threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    /// Calls work(i) once for every i in 0 .. count - 1, from any thread, and returns when all are done;
    /// the first exception is then thrown again. A caller who finds the pool taken works alone.
    void run(int count, const std::function<void(int)>& work);

private:
    struct Job;

    void serve();
    void stop() noexcept;

    std::vector<std::thread> workers_;
    std::mutex callers_; ///< held by the caller whose job it is
    std::mutex mutex_;   ///< of all below
    std::condition_variable wake_up_;
    std::condition_variable left_;
    Job* job_ = nullptr;
    std::uint64_t round_ = 0;
    int inside_ = 0; ///< workers that hold job_
    bool stop_ = false;
};

/// The pool of this process, made on first use: INNERKV_NUM_THREADS threads, else OMP_NUM_THREADS, else as
/// many as there are processors. A process that was forked makes its own, of as many threads as its parent's.
std::shared_ptr<ThreadPool> thread_pool();
int thread_count();
/// For calls from now on. Throws InvalidArgument outside 1 .. 1024.
void set_thread_count(int threads);

} // namespace innerkv::python
