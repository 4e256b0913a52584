// SPDX-License-Identifier: Apache-2.0
// The parts a measurement is made of; no times are asserted.
#include <atomic>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "attention_bench.h"
#include "contender.h"
#include "innerkv/error.h"
#include "interleave.h"
#include "statistics.h"
#include "thread_pool.h"

namespace innerkv::bench {
namespace {

TEST(Statistics, MedianOfOddAndEvenCounts) {
    EXPECT_EQ(median(std::vector<double>{7}), 7);
    EXPECT_EQ(median(std::vector<double>{9, 1, 5}), 5);
    EXPECT_EQ(median(std::vector<double>{8, 1, 4, 100}), 6);
    EXPECT_EQ(minimum(std::vector<double>{8, 1, 4, 100}), 1);
}

TEST(ThreadPool, EveryThreadRunsOncePerRound) {
    for (const int threads : {1, 2, 5}) {
        ThreadPool pool(threads);
        std::vector<std::atomic<int>> runs(static_cast<std::size_t>(threads));
        for (int spell = 0; spell < 20; ++spell) {
            pool.wake();
            for (int round = 0; round < 20; ++round)
                pool.run([&](int thread) { ++runs[static_cast<std::size_t>(thread)]; });
            pool.rest();
        }
        for (const auto& count : runs) EXPECT_EQ(count, 400) << threads << " threads";
    }
}

/// Writes its name into a shared log whenever something is done with it.
class FakeContender final : public Contender {
public:
    FakeContender(std::string name, std::string& log) : name_(std::move(name)), log_(log) {}

    std::string name() const override { return name_; }
    std::size_t bytes_read() const override { return 100; }
    void wake() override { log_ += "w" + name_ + " "; }
    void run() override { log_ += name_ + " "; }
    void rest() override { log_ += "r" + name_ + " "; }
    std::span<const float> output() const override { return out; }
    std::vector<float> expected_output(int) const override { return expected; }

    std::vector<float> out{1, 2, 3};
    std::vector<float> expected;

private:
    std::string name_;
    std::string& log_;
};

TEST(Interleave, ContendersTakeTurns) {
    std::string log;
    FakeContender a("A", log);
    FakeContender b("B", log);
    std::vector<Contender*> turns{&a, &b};
    TurnHooks hooks;
    hooks.before_run = [&] { log += "f "; };
    const auto samples = measure_interleaved(turns, 2, hooks);
    EXPECT_EQ(log, "f wA A rA f wB B rB f wA A rA f wB B rB ");
    ASSERT_EQ(samples.size(), 2u);
    for (const auto& times : samples) {
        EXPECT_EQ(times.size(), 2u);
        for (const double time : times) EXPECT_GE(time, 0);
    }
}

TEST(Interleave, StopsAfterARound) {
    std::string log;
    FakeContender a("A", log);
    std::vector<Contender*> turns{&a};
    TurnHooks hooks;
    hooks.after_round = [](int done) { return done < 3; };
    EXPECT_EQ(measure_interleaved(turns, 100, hooks).front().size(), 3u);
}

/// Whose output a fake contender's is.
AttentionCase three_numbers() {
    AttentionCase attention;
    attention.head_dim = 3;
    attention.q_heads = attention.kv_heads = 1;
    return attention;
}

const std::vector<ExactOutput> kExact = {{0, {1, 2, 3}}};

TEST(Judge, AcceptsTheRightAnswer) {
    std::string log;
    FakeContender right("right", log);
    right.expected = {1, 2, 3.01f};
    const ContenderResult result = judge(three_numbers(), right, kExact);
    EXPECT_EQ(result.relative_error, 0);
    EXPECT_NEAR(result.cosine, 1, 1e-12);
    EXPECT_NEAR(result.arithmetic_error, 0.0027, 0.0001);
    EXPECT_EQ(result.bytes_read, 100u);
}

/// Each token of the first and the last sequence counts on its own, however small beside others.
TEST(Judge, TheWorstTokenCounts) {
    AttentionCase two = three_numbers();
    two.batch = two.tokens = 2;
    const std::vector<ExactOutput> exact = {{0, {100, 200, 300, 1, 2, 3}},
                                            {1, {100, 200, 300, 1, 2, 3}}};
    std::string log;
    FakeContender contender("fake", log);
    contender.out = {100, 200, 300, 1, 2, 3, 100, 200, 300, 1, 2, 3.1f};
    EXPECT_NEAR(judge(two, contender, exact).relative_error, 0.0267, 0.0001);
    for (const std::size_t at : {3u, 9u}) {
        std::vector<float> wrong = {100, 200, 300, 1, 2, 3, 100, 200, 300, 1, 2, 3};
        wrong[at] = -8;
        contender.out = wrong;
        EXPECT_THROW(judge(two, contender, exact), Error) << at;
        wrong[at] = std::numeric_limits<float>::quiet_NaN();
        contender.out = wrong;
        EXPECT_THROW(judge(two, contender, exact), Error) << at;
    }
}

TEST(Judge, RefusesWrongOutput) {
    std::string log;
    FakeContender wrong("wrong", log);
    wrong.out = {3, -2, 0.3f};
    EXPECT_THROW(judge(three_numbers(), wrong, kExact), Error);
    wrong.out = {0, 0, 0};
    EXPECT_THROW(judge(three_numbers(), wrong, kExact), Error);
    wrong.out = {1, std::numeric_limits<float>::quiet_NaN(), 3};
    EXPECT_THROW(judge(three_numbers(), wrong, kExact), Error);
    // Close to the exact result, but not what its own cache holds.
    wrong.out = {1, 2, 3};
    wrong.expected = {1, 2, 3.05f};
    EXPECT_THROW(judge(three_numbers(), wrong, kExact), Error);
}

} // namespace
} // namespace innerkv::bench
