// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <ostream>
#include <thread>

#include "innerkv/codec.h"
#include "innerkv/error.h"
#include "test_cache.h"

namespace innerkv::test {
namespace {

TEST(Append, QuantizesAtTheStartOfTheAppendThatFinds128RecentTokens) {
    const CacheConfig config = small_config();
    Cache cache(config);
    const SequenceId id = cache.create();
    const TestSequence rows(config, 300);
    for (int length = 0; length < 300; ++length) {
        rows.append(cache, id, length, 1);
        const SequenceView view = cache.view(0, id);
        // The append found `length` tokens, 32 of them in the sink.
        const int settled = length < 160 ? 0 : (length - 128) / 32;
        ASSERT_EQ(view.quantized.tokens, 32 * settled) << "length " << length + 1;
        ASSERT_EQ(view.sink.tokens, std::min(length + 1, 32));
        if (length >= 128) {
            ASSERT_GE(view.recent.tokens, 96);
        }
        ASSERT_LE(view.recent.tokens, 128);
    }
}

TEST(Append, ALargeChunkIsQuantizedByTheNextAppend) {
    const CacheConfig config = small_config();
    Cache cache(config);
    const SequenceId id = cache.create();
    const TestSequence rows(config, 501);
    rows.append(cache, id, 0, 500);
    EXPECT_EQ(cache.view(0, id).quantized.tokens, 0);
    EXPECT_EQ(cache.view(0, id).recent.tokens, 468);
    rows.append(cache, id, 500, 1);
    EXPECT_EQ(cache.view(0, id).quantized.tokens, 352);
    EXPECT_EQ(cache.view(0, id).recent.tokens, 117);
}

TEST(Append, NoTokensSettles) {
    const CacheConfig config = small_config();
    Cache cache(config);
    const SequenceId id = cache.create();
    const TestSequence rows(config, 160);
    rows.append(cache, id, 0, 160);
    rows.append(cache, id, 0, 0);
    EXPECT_EQ(cache.view(0, id).quantized.tokens, 32);
    EXPECT_EQ(cache.length(id, 0), 160);
}

struct CutCase {
    const char* name;
    int sink;
    int recent;
    int window;
    TransformPolicy transform;
};
void PrintTo(const CutCase& tested, std::ostream* out) { *out << tested.name; }

class AppendCuts : public testing::TestWithParam<CutCase> {};

TEST_P(AppendCuts, HoweverAPromptIsCutThePagesAreTheSame) {
    const CutCase& cut = GetParam();
    CacheConfig config = small_config("hybrid", 80);
    config.sink_tokens = cut.sink;
    config.recent_tokens = cut.recent;
    config.transform = cut.transform;
    if (cut.window > 0) config.sliding_window = {cut.window};
    const TestSequence rows(config, 500);
    Cache cache(config);
    const SequenceId decoded = cache.create();
    rows.append_all(cache, decoded, 1);
    cache.settle(decoded);
    const Contents expected = contents(cache, decoded);
    if (cut.window == 0 || cut.window > 100) {
        ASSERT_FALSE(expected.quantized.empty());
    }
    for (const int step : {32, 64, 160, 7, 101}) {
        const SequenceId chunked = cache.create();
        // The first chunk ends on the grid, so steps that are multiples of 32 do too.
        const int first = cut.sink + step;
        rows.append(cache, chunked, 0, first);
        for (int at = first; at < rows.tokens; at += step)
            rows.append(cache, chunked, at, std::min(step, rows.tokens - at));
        cache.settle(chunked);
        EXPECT_TRUE(contents(cache, chunked) == expected) << "step " << step;
        cache.remove(chunked);
    }
}

INSTANTIATE_TEST_SUITE_P(
    Cache, AppendCuts,
    testing::Values(CutCase{"plain", 32, 96, 0, {}}, CutCase{"short_sink", 4, 32, 0, {}},
                    CutCase{"norm", 0, 64, 0, {KeyNormPolicy::prefill, false, false, false, 128}},
                    CutCase{
                        "all_steps", 64, 128, 0, {KeyNormPolicy::prefill, true, true, true, 50}},
                    CutCase{"balanced", 32, 96, 0, {KeyNormPolicy::balanced, true, true}},
                    CutCase{"window", 32, 32, 150, {KeyNormPolicy::prefill, true, true, true, 64}},
                    CutCase{"narrow_window", 32, 96, 60, {KeyNormPolicy::prefill}}),
    [](const auto& tested) { return std::string(tested.param.name); });

TEST(Append, RowsOfEveryTypeAndOrderAreStoredAsTheirFp16) {
    const CacheConfig config = small_config("f16", 96);
    Random random(3);
    for (const RowType type : {RowType::f32, RowType::f16, RowType::bf16}) {
        for (const auto order : {TestRows::Order::token_major, TestRows::Order::head_major}) {
            Cache cache(config);
            const SequenceId id = cache.create();
            const TestRows k(random, 70, 2, 96, 0, type, order);
            const TestRows v(random, 70, 2, 96, 1, type, order);
            const AppendRows batch[] = {{id, 70, k.rows(), v.rows()}};
            cache.append(0, batch);
            const SequenceView view = cache.view(0, id);
            for (int token = 0; token < 70; ++token)
                for (int head = 0; head < 2; ++head)
                    for (const bool key : {true, false}) {
                        const PageRun& run = token < 32 ? view.sink : view.recent;
                        ASSERT_EQ(std::memcmp(f16_row(config, run, key, head, token),
                                              (key ? k : v).expected(token, head), 96 * 2),
                                  0);
                    }
        }
    }
}

TEST(Append, AValueThatIsNotFiniteIsNamedAndNothingChanges) {
    CacheConfig config = small_config();
    config.transform = {KeyNormPolicy::prefill, true, true, true, 64};
    Cache cache(config);
    const SequenceId id = cache.create();
    TestSequence rows(config, 400);
    rows.append(cache, id, 0, 350); // the next append would calibrate and quantize six pages
    const Contents before = contents(cache, id);
    const std::size_t used = cache.usage().bytes_in_use;
    rows.v.poke(360, 1, 63, std::numeric_limits<float>::infinity());
    const AppendRows batch[] = {rows.rows(id, 350, 50)};
    std::string message;
    try {
        cache.append(0, batch);
    } catch (const InvalidArgument& error) {
        message = error.what();
    }
    EXPECT_EQ(message, "append: V of sequence 0, layer 0, token 360, KV head 1, channel 63 is inf; "
                       "values must be finite and within fp16 (65504)");
    EXPECT_TRUE(contents(cache, id) == before);
    EXPECT_EQ(cache.usage().bytes_in_use, used);
    rows.v.poke(360, 1, 63, 65504.0f);
    cache.append(0, batch);
    EXPECT_EQ(cache.length(id, 0), 400);
    EXPECT_EQ(cache.view(0, id).quantized.tokens, 192);
}

TEST(Append, WhatFp16RoundsToInfinityIsRefused) {
    const CacheConfig config = small_config();
    Cache cache(config);
    const SequenceId id = cache.create();
    TestSequence rows(config, 1);
    rows.k.poke(0, 0, 0, 65519.0f); // rounds to 65504
    const AppendRows batch[] = {rows.rows(id, 0, 1)};
    EXPECT_NO_THROW(cache.append(0, batch));
    rows.k.poke(0, 0, 0, 65520.0f);
    EXPECT_THROW(cache.append(0, batch), InvalidArgument);
}

TEST(Append, ValuesThatTheTransformTakesOutOfFp16Saturate) {
    CacheConfig config = small_config("k8v8");
    config.sink_tokens = 0;
    config.recent_tokens = 0;
    for (const bool rotate : {false, true}) {
        config.transform = {KeyNormPolicy::prefill, true, rotate, true, 32};
        Cache cache(config);
        const SequenceId id = cache.create();
        TestSequence rows(config, 97);
        for (int token = 0; token < 97; ++token)
            for (int c = 0; c < 64; ++c) {
                const float tiny = c % 2 == 0 ? 1e-6f : -1.0f;
                const float large = c % 3 == 0 ? 65504.0f : -65504.0f;
                rows.k.poke(token, 0, c, token < 32 ? tiny * static_cast<float>(token) : large);
                rows.v.poke(token, 0, c, token < 32 ? -65504.0f : large);
            }
        rows.append_all(cache, id, 1);
        const SequenceView view = cache.view(0, id);
        ASSERT_EQ(view.quantized.pages.size(), 3u);
        std::vector<float> k(32 * 64);
        std::vector<float> v(32 * 64);
        for (const std::byte* page : view.quantized.pages) {
            dequantize_page(config.format, page, k.data(), 64, v.data(), 64);
            for (const float value : k) ASSERT_TRUE(std::isfinite(value));
            for (const float value : v) ASSERT_TRUE(std::isfinite(value));
        }
        cache.truncate(id, 40); // back to fp16: finite as well
        for (int token = 32; token < 40; ++token) {
            const std::uint16_t* row = f16_row(config, cache.view(0, id).recent, true, 0, token);
            for (int c = 0; c < 64; ++c) ASSERT_TRUE(std::isfinite(float_from_f16(row[c])));
        }
    }
}

TEST(Append, DroppedOrIncompleteLeavesTheLayerAsItWas) {
    CacheConfig config = small_config();
    config.layers = 2;
    Cache cache(config);
    const SequenceId id = cache.create();
    const TestSequence rows(config, 250);
    rows.append(cache, id, 0, 200);
    const Contents before = contents(cache, id);
    const std::size_t used = cache.usage().bytes_in_use;
    const AppendRows batch[] = {rows.rows(id, 200, 50)};
    {
        Append append = cache.begin_append(0, batch);
        EXPECT_EQ(append.parts(), 2);
        EXPECT_GT(cache.usage().bytes_in_use, used);
        append.run(0);
        EXPECT_FALSE(append.commit()); // part 1 has not run
        EXPECT_TRUE(contents(cache, id) == before);
        EXPECT_THROW(append.run(2), InvalidArgument);
        // Another layer may go on; what touches this one may not.
        EXPECT_NO_THROW(cache.append(1, batch));
        EXPECT_THROW(cache.append(0, batch), InvalidArgument);
        EXPECT_THROW(cache.truncate(id, 10), InvalidArgument);
        EXPECT_THROW(cache.fork(id), InvalidArgument);
        EXPECT_THROW(cache.remove(id), InvalidArgument);
        EXPECT_THROW(cache.settle(id), InvalidArgument);
        EXPECT_THROW(cache.reserve(id, 1), InvalidArgument);
    }
    EXPECT_TRUE(contents(cache, id) == before);
    EXPECT_NO_THROW(cache.append(0, batch));
    cache.remove(id);
    EXPECT_EQ(cache.usage().bytes_in_use, 0u);
}

/// A page that was copied for the append is the sequence's then.
TEST(Append, RunAfterCommitIsRefused) {
    const CacheConfig config = small_config();
    Cache cache(config);
    const SequenceId id = cache.create();
    const TestSequence rows(config, 50);
    rows.append(cache, id, 0, 40);
    const SequenceId child = cache.fork(id);
    const AppendRows batch[] = {rows.rows(child, 40, 10)};
    Append append = cache.begin_append(0, batch);
    for (int part = 0; part < append.parts(); ++part) append.run(part);
    EXPECT_TRUE(append.commit());
    const Contents after = contents(cache, child);
    EXPECT_THROW(append.run(0), InvalidArgument);
    EXPECT_FALSE(append.commit());
    EXPECT_TRUE(contents(cache, child) == after);
}

TEST(Append, PartsOnThreadsGiveWhatOneThreadGives) {
    CacheConfig config = small_config("base", 64);
    config.kv_heads = 8;
    config.transform = {KeyNormPolicy::prefill, true, true, true, 64};
    const TestSequence rows(config, 600);
    Cache cache(config);
    const SequenceId alone = cache.create();
    const SequenceId together = cache.create();
    for (int first = 0; first < 600; first += 100) {
        rows.append(cache, alone, first, 100);
        const AppendRows batch[] = {rows.rows(together, first, 100)};
        Append append = cache.begin_append(0, batch);
        std::vector<std::thread> threads;
        threads.reserve(static_cast<std::size_t>(append.parts()));
        for (int part = 0; part < append.parts(); ++part)
            threads.emplace_back([&append, part] { append.run(part); });
        for (std::thread& thread : threads) thread.join();
        EXPECT_TRUE(append.commit());
    }
    EXPECT_TRUE(contents(cache, alone) == contents(cache, together));
}

TEST(Append, RunningOutOfPagesSaysWhatToDoAndChangesNothing) {
    CacheConfig config = small_config();
    config.max_tokens = 256;
    config.max_sequences = 1;
    config.max_append = 32;
    Cache cache(config);
    const SequenceId id = cache.create();
    const TestSequence rows(config, 2000);
    int length = 0;
    std::string message;
    while (message.empty() && length + 32 <= 2000) {
        const Contents before = contents(cache, id);
        const std::size_t used = cache.usage().bytes_in_use;
        try {
            rows.append(cache, id, length, 32);
            length += 32;
        } catch (const OutOfPages& error) {
            message = error.what();
            EXPECT_TRUE(contents(cache, id) == before);
            EXPECT_EQ(cache.usage().bytes_in_use, used);
        }
    }
    EXPECT_GE(length, 256);
    EXPECT_EQ(message, "an append to layer 0 needs 1 quantized pages; 0 of 4 are free; remove or "
                       "truncate a sequence, or make the cache with larger max_tokens, "
                       "max_sequences or max_append");
    EXPECT_THROW(cache.create(), OutOfPages);
    cache.truncate(id, 100);
    EXPECT_NO_THROW(rows.append(cache, id, 100, 32));
}

TEST(Append, ExactPrefillKeepsThePromptUntilItIsSettled) {
    CacheConfig config = small_config();
    config.exact_prefill = true;
    Cache cache(config);
    const SequenceId id = cache.create();
    const TestSequence rows(config, 700);
    for (int first = 0; first < 600; first += 100) rows.append(cache, id, first, 100);
    EXPECT_EQ(cache.view(0, id).quantized.tokens, 0);
    cache.settle(id);
    EXPECT_EQ(cache.view(0, id).quantized.tokens, 448);
    rows.append(cache, id, 600, 40);
    rows.append(cache, id, 640, 1);
    EXPECT_EQ(cache.view(0, id).quantized.tokens, 512);
}

} // namespace
} // namespace innerkv::test
