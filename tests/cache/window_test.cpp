// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "innerkv/error.h"
#include "test_cache.h"

namespace innerkv::test {
namespace {

CacheConfig windowed(int window, int sink, int recent) {
    CacheConfig config = small_config();
    config.sliding_window = {window};
    config.sink_tokens = sink;
    config.recent_tokens = recent;
    return config;
}

/// First token that the view shows; all behind it must be there.
std::int64_t first_shown(const SequenceView& view) {
    std::int64_t first = view.length;
    std::int64_t shown = 0;
    for (const PageRun* run : {&view.recent, &view.quantized, &view.sink}) {
        shown += run->tokens;
        if (run->tokens > 0) first = run->first_token;
    }
    EXPECT_EQ(first + shown, view.length);
    return first;
}

class SlidingWindow : public testing::TestWithParam<std::tuple<int, int, int>> {};

TEST_P(SlidingWindow, ShowsWhatAQuerySeesAndLessThanAPageMore) {
    const auto [window, sink, recent] = GetParam();
    const CacheConfig config = windowed(window, sink, recent);
    const TestSequence rows(config, 500);
    Cache cache(config);
    const SequenceId id = cache.create();
    std::int64_t most_quantized = 0;
    for (int length = 1; length <= 500; ++length) {
        rows.append(cache, id, length - 1, 1);
        most_quantized = std::max(most_quantized, cache.usage().quantized_pages);
        // The query of the newest token, which stands at length - 1.
        const std::int64_t first_seen = std::max(0, length - window);
        const std::int64_t first = first_shown(cache.view(0, id));
        ASSERT_LE(first, first_seen);
        ASSERT_GT(first + 32, first_seen);
        const std::int64_t pages = cache.usage().f16_pages + cache.usage().quantized_pages;
        ASSERT_LE(pages, (window + 30) / 32 + 3);
    }
    // A page is quantized recent + 32 tokens after its first, dropped window + 31 tokens after it.
    EXPECT_EQ(most_quantized > 0, window > recent + 1);
}

INSTANTIATE_TEST_SUITE_P(Cache, SlidingWindow,
                         testing::Values(std::tuple(1, 32, 96), std::tuple(2, 0, 32),
                                         std::tuple(31, 4, 32), std::tuple(33, 64, 32),
                                         std::tuple(34, 64, 32), std::tuple(100, 40, 32),
                                         std::tuple(128, 0, 96), std::tuple(256, 32, 96)));

TEST(SlidingWindowRules, NothingIsDroppedBeforeCalibration) {
    CacheConfig config = windowed(100, 32, 32);
    config.transform = {KeyNormPolicy::prefill, false, false, false, 200};
    const TestSequence rows(config, 300);
    Cache cache(config);
    const SequenceId id = cache.create();
    for (int token = 0; token < 264; ++token) rows.append(cache, id, token, 1);
    EXPECT_EQ(first_shown(cache.view(0, id)), 0);
    EXPECT_TRUE(cache.view(0, id).transforms.empty());
    rows.append(cache, id, 264, 1); // finds 32 + 200 + 32
    EXPECT_EQ(first_shown(cache.view(0, id)), 160);
    EXPECT_EQ(cache.view(0, id).transforms.size(), 2u);
}

TEST(SlidingWindowRules, TruncateNeedsTheTokensThatTheWindowReaches) {
    const CacheConfig config = windowed(100, 32, 32);
    const TestSequence rows(config, 400);
    Cache cache(config);
    const SequenceId id = cache.create();
    rows.append_all(cache, id, 1);
    const std::int64_t first = first_shown(cache.view(0, id));
    ASSERT_EQ(first, 288);
    // The query at 387 sees tokens from 288 on, the one at 386 needs 287.
    EXPECT_THROW(cache.truncate(id, 386), InvalidArgument);
    EXPECT_EQ(cache.length(id, 0), 400);
    EXPECT_NO_THROW(cache.truncate(id, 387));
    EXPECT_NO_THROW(cache.truncate(id, 0));
    rows.append_all(cache, id, 50);
    EXPECT_EQ(cache.length(id, 0), 400);
}

TEST(SlidingWindowRules, LayersHaveTheirOwn) {
    CacheConfig config = windowed(0, 32, 32);
    config.layers = 2;
    config.sliding_window = {0, 64};
    const TestSequence rows(config, 400);
    Cache cache(config);
    const SequenceId id = cache.create();
    rows.append_all(cache, id, 1);
    EXPECT_EQ(first_shown(cache.view(0, id)), 0);
    EXPECT_GT(first_shown(cache.view(1, id)), 300);
}

} // namespace
} // namespace innerkv::test
