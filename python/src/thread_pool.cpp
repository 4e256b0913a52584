// SPDX-License-Identifier: Apache-2.0
#include "thread_pool.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>

#include <unistd.h>

#include "innerkv/error.h"

namespace innerkv::python {

struct ThreadPool::Job {
    const std::function<void(int)>& work;
    int count;
    std::atomic<int> next{0};
    std::mutex mutex{};
    std::exception_ptr error{};

    void take_part() {
        for (int i = next++; i < count; i = next++) {
            try {
                work(i);
            } catch (...) {
                const std::lock_guard lock(mutex);
                if (!error) error = std::current_exception();
            }
        }
    }
};

ThreadPool::ThreadPool(int threads) {
    workers_.reserve(static_cast<std::size_t>(threads) - 1);
    try {
        for (int thread = 1; thread < threads; ++thread) workers_.emplace_back([this] { serve(); });
    } catch (const std::system_error& error) {
        const auto started = std::to_string(workers_.size() + 1);
        stop();
        throw Error("the system starts " + started + " of " + std::to_string(threads) +
                    " threads (" + error.what() +
                    "); set INNERKV_NUM_THREADS or set_num_threads to fewer");
    }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() noexcept {
    {
        const std::lock_guard lock(mutex_);
        stop_ = true;
    }
    wake_up_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(int count, const std::function<void(int)>& work) {
    Job job{work, count};
    std::unique_lock mine(callers_, std::defer_lock);
    if (count > 1 && !workers_.empty() && mine.try_lock()) {
        {
            const std::lock_guard lock(mutex_);
            job_ = &job;
            ++round_;
        }
        wake_up_.notify_all();
        job.take_part();
        std::unique_lock lock(mutex_);
        job_ = nullptr; // who wakes up from now on finds nothing to do
        left_.wait(lock, [this] { return inside_ == 0; });
    } else {
        job.take_part();
    }
    if (job.error) std::rethrow_exception(job.error);
}

void ThreadPool::serve() {
    std::unique_lock lock(mutex_);
    for (std::uint64_t seen = 0;;) {
        wake_up_.wait(lock, [&] { return stop_ || (job_ && round_ != seen); });
        if (stop_) return;
        seen = round_;
        Job* job = job_;
        ++inside_;
        lock.unlock();
        job->take_part();
        lock.lock();
        if (--inside_ == 0) left_.notify_one();
    }
}

namespace {

constexpr int kMostThreads = 1024;

/// INNERKV_NUM_THREADS, OMP_NUM_THREADS, else the processors there are.
int default_threads() {
    for (const char* name : {"INNERKV_NUM_THREADS", "OMP_NUM_THREADS"}) {
        const char* text = std::getenv(name);
        if (!text) continue;
        const std::string_view digits = text;
        int threads = 0;
        std::from_chars(digits.data(), digits.data() + digits.size(), threads);
        if (threads >= 1) return std::min(threads, kMostThreads);
    }
    return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMostThreads);
}

/// The pool and the process that made it: a fork has the memory, but not the threads.
struct Shared {
    std::mutex mutex;
    std::shared_ptr<ThreadPool> pool;
    pid_t process = 0;
};

Shared& shared() {
    static auto* const instance = new Shared;
    return *instance;
}

/// Returns the pool before, null where a parent process made it: its threads cannot be joined here.
std::shared_ptr<ThreadPool> replace(Shared& global, std::shared_ptr<ThreadPool> pool) {
    global.pool.swap(pool);
    const bool own = global.process == getpid();
    global.process = getpid();
    if (own || !pool) return pool;
    new std::shared_ptr<ThreadPool>(std::move(pool));
    return nullptr;
}

} // namespace

std::shared_ptr<ThreadPool> thread_pool() {
    Shared& global = shared();
    const std::lock_guard lock(global.mutex);
    if (global.pool && global.process == getpid()) return global.pool;
    const int threads = global.pool ? global.pool->threads() : default_threads();
    replace(global, std::make_shared<ThreadPool>(threads));
    return global.pool;
}

int thread_count() { return thread_pool()->threads(); }

void set_thread_count(int threads) {
    if (threads < 1 || threads > kMostThreads)
        throw InvalidArgument("set_num_threads: " + std::to_string(threads) +
                              "; supported are 1 to " + std::to_string(kMostThreads));
    auto pool = std::make_shared<ThreadPool>(threads);
    Shared& global = shared();
    const std::lock_guard lock(global.mutex);
    pool = replace(global, std::move(pool));
} // the old one ends with its last call

} // namespace innerkv::python
