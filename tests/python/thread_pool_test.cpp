// SPDX-License-Identifier: Apache-2.0
#include "thread_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "innerkv/error.h"

namespace innerkv::python {
namespace {

/// How often each part of a job has run.
class Counts {
public:
    explicit Counts(int parts) : counts_(static_cast<std::size_t>(parts)) {}

    void run_on(ThreadPool& pool) {
        pool.run(static_cast<int>(counts_.size()), [this](int part) { count(part); });
    }
    void count(int part) { ++counts_[static_cast<std::size_t>(part)]; }
    bool all(int times) const {
        return std::all_of(counts_.begin(), counts_.end(),
                           [times](const std::atomic<int>& count) { return count == times; });
    }

private:
    std::vector<std::atomic<int>> counts_;
};

TEST(ThreadPool, RunsEveryPartOnce) {
    for (const int threads : {1, 2, 5}) {
        ThreadPool pool(threads);
        EXPECT_EQ(pool.threads(), threads);
        for (const int parts : {0, 1, 2, 300}) {
            Counts counts(parts);
            counts.run_on(pool);
            EXPECT_TRUE(counts.all(1)) << threads << " threads, " << parts << " parts";
        }
    }
}

TEST(ThreadPool, ThrowsWhatAPartThrowsOnceAllHaveRun) {
    ThreadPool pool(3);
    for (int round = 0; round < 50; ++round) {
        Counts counts(40);
        const auto work = [&counts](int part) {
            counts.count(part);
            if (part % 3 == 0) throw std::out_of_range("part " + std::to_string(part));
        };
        EXPECT_THROW(pool.run(40, work), std::out_of_range);
        EXPECT_TRUE(counts.all(1));
    }
    Counts counts(40);
    counts.run_on(pool);
    EXPECT_TRUE(counts.all(1));
}

TEST(ThreadPool, CallersDoNotWaitForEachOther) {
    constexpr int kRounds = 200;
    ThreadPool pool(3);
    std::vector<Counts> counts;
    counts.reserve(3);
    for (int caller = 0; caller < 3; ++caller) counts.emplace_back(20);
    std::vector<std::thread> callers;
    callers.reserve(3);
    for (Counts& own : counts)
        callers.emplace_back([&pool, &own] {
            for (int round = 0; round < kRounds; ++round) own.run_on(pool);
        });
    for (std::thread& caller : callers) caller.join();
    for (const Counts& own : counts) EXPECT_TRUE(own.all(kRounds));
}

TEST(ThreadPool, ACallInsideAPartRunsAlone) {
    ThreadPool pool(2);
    Counts counts(20);
    pool.run(5, [&](int) { counts.run_on(pool); });
    EXPECT_TRUE(counts.all(5));
}

TEST(ThreadPool, IsReplacedWhileItRuns) {
    const int before = thread_count();
    std::atomic<bool> stop = false;
    std::atomic<bool> right = true;
    std::thread caller([&] {
        while (!stop) {
            Counts counts(20);
            counts.run_on(*thread_pool());
            if (!counts.all(1)) right = false;
        }
    });
    for (int round = 0; round < 60; ++round) {
        set_thread_count(1 + round % 4);
        EXPECT_EQ(thread_count(), 1 + round % 4);
    }
    stop = true;
    caller.join();
    EXPECT_TRUE(right);
    EXPECT_THROW(set_thread_count(0), InvalidArgument);
    set_thread_count(before);
}

} // namespace
} // namespace innerkv::python
