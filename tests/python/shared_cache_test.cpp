// SPDX-License-Identifier: Apache-2.0
#include "shared_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <thread>
#include <vector>

#include "thread_pool.h"

namespace innerkv::python {
namespace {

constexpr int kTokens = 400;
constexpr int kStep = 10;
constexpr int kKvHeads = 2;
constexpr int kQueryHeads = 4;
constexpr int kHeadDim = 64;
constexpr int kCallers = 4;

CacheConfig config_for_callers() {
    CacheConfig config = CacheConfig::from_preset(find_preset("base"), 1, kKvHeads, kHeadDim);
    config.max_sequences = kCallers;
    config.max_tokens = std::int64_t{kCallers} * kTokens;
    return config;
}

/// One sequence's rows, fp32.
class Side {
public:
    explicit Side(int heads) : heads_(heads) {
        values_.resize(static_cast<std::size_t>(kTokens) * static_cast<std::size_t>(heads) *
                       kHeadDim);
    }
    Side(std::minstd_rand& random, int heads) : Side(heads) {
        std::uniform_real_distribution<float> unit(-1.0f, 1.0f);
        for (float& value : values_) value = 2.0f * unit(random);
    }

    const std::vector<float>& values() const { return values_; }
    /// Tokens first .. first + kStep - 1.
    Tensor part(int first) {
        const std::ptrdiff_t row = std::ptrdiff_t{heads_} * kHeadDim;
        return {reinterpret_cast<std::byte*>(values_.data() + first * row),
                RowType::f32,
                {1, kStep, heads_, kHeadDim},
                {kStep * row, row, kHeadDim, 1}};
    }

private:
    int heads_;
    std::vector<float> values_;
};

/// What one caller does: a sequence of its own, an output every kStep tokens. Returns all outputs.
std::vector<float> run_caller(SharedCache& cache, unsigned seed) {
    std::minstd_rand random(seed + 1);
    Side k(random, kKvHeads);
    Side v(random, kKvHeads);
    Side q(random, kQueryHeads);
    Side out(kQueryHeads);
    const Batch batch{{cache.create()}, {}};
    for (int first = 0; first < kTokens; first += kStep) {
        Question question;
        question.q = q.part(first);
        question.out = out.part(first);
        cache.step(0, batch, k.part(first), v.part(first), question);
        EXPECT_EQ(cache.length(batch.sequences[0], 0), first + kStep);
    }
    cache.remove(batch.sequences[0]);
    return out.values();
}

float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
    float most = 0.0f;
    for (std::size_t i = 0; i < a.size(); ++i) most = std::max(most, std::fabs(a[i] - b[i]));
    return most;
}

TEST(SharedCache, CallersFindWhatTheyWouldFindAlone) {
    const int before = thread_count();
    set_thread_count(2);
    SharedCache shared(config_for_callers());
    std::vector<std::vector<float>> outputs(kCallers);
    std::vector<std::thread> callers;
    for (unsigned caller = 0; caller < kCallers; ++caller)
        callers.emplace_back([&, caller] { outputs[caller] = run_caller(shared, caller); });
    for (int round = 0; round < 20; ++round) { // meanwhile
        set_thread_count(1 + round % 3);
        EXPECT_LE(shared.usage().bytes_in_use, shared.usage().bytes_reserved);
    }
    for (std::thread& caller : callers) caller.join();
    EXPECT_EQ(shared.usage().bytes_in_use, 0u);

    set_thread_count(1);
    SharedCache own(config_for_callers());
    for (unsigned caller = 0; caller < kCallers; ++caller)
        EXPECT_LT(largest_difference(outputs[caller], run_caller(own, caller)), 1e-4f);
    EXPECT_GT(largest_difference(outputs[0], outputs[1]), 0.1f);
    set_thread_count(before);
}

} // namespace
} // namespace innerkv::python
