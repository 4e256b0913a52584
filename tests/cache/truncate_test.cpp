// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <ostream>
#include <vector>

#include "innerkv/codec.h"
#include "innerkv/error.h"
#include "innerkv/plan.h"
#include "test_cache.h"

namespace innerkv::test {
namespace {

class Truncate : public testing::TestWithParam<int> {};

TEST_P(Truncate, OutsideQuantizedPagesItIsAsIfTheRestWasNeverThere) {
    const CacheConfig config = small_config();
    const TestSequence rows(config, 300);
    Cache cache(config);
    const SequenceId cut = cache.create();
    rows.append_all(cache, cut, 300);
    cache.truncate(cut, GetParam());
    const SequenceId fresh = cache.create();
    rows.append(cache, fresh, 0, GetParam());
    EXPECT_TRUE(contents(cache, cut) == contents(cache, fresh));
    rows.append(cache, cut, GetParam(), 300 - GetParam());
    rows.append(cache, fresh, GetParam(), 300 - GetParam());
    EXPECT_TRUE(contents(cache, cut) == contents(cache, fresh));
}

INSTANTIATE_TEST_SUITE_P(Lengths, Truncate,
                         testing::Values(0, 1, 31, 32, 33, 63, 64, 100, 159, 250, 299, 300));

struct CutPage {
    const char* name;
    TransformPolicy transform;
    int head_dim;
};
void PrintTo(const CutPage& tested, std::ostream* out) { *out << tested.name; }

class TruncateQuantized : public testing::TestWithParam<CutPage> {};

TEST_P(TruncateQuantized, TheCutPagesTokensComeBackThroughTheInverseTransform) {
    CacheConfig config = small_config("k8v8", GetParam().head_dim);
    config.transform = GetParam().transform;
    const TestSequence rows(config, 400);
    Cache cache(config);
    const SequenceId id = cache.create();
    rows.append_all(cache, id, 1);
    const SequenceId other = cache.fork(id);
    const Contents shared = contents(cache, other);
    ASSERT_EQ(cache.view(0, id).quantized.tokens, 256);
    cache.truncate(id, 32 + 2 * 32 + 11);
    const SequenceView view = cache.view(0, id);
    ASSERT_EQ(view.quantized.tokens, 64);
    ASSERT_EQ(view.recent.tokens, 11);
    ASSERT_EQ(view.recent.first_token, 96);
    for (int token = 96; token < 107; ++token)
        for (int head = 0; head < 2; ++head)
            for (const bool key : {true, false}) {
                const std::uint16_t* got = f16_row(config, view.recent, key, head, token);
                const std::uint16_t* given = (key ? rows.k : rows.v).expected(token, head);
                for (int c = 0; c < GetParam().head_dim; ++c)
                    // 8 bits of values to 16: the largest step is about 16 / 127.
                    ASSERT_NEAR(float_from_f16(got[c]), float_from_f16(given[c]), 0.2f);
            }
    // The fork still has its own, page for page.
    EXPECT_TRUE(contents(cache, other) == shared);
    rows.append(cache, id, 107, 200);
    cache.settle(id);
    EXPECT_EQ(cache.view(0, id).quantized.tokens, 160);
    EXPECT_TRUE(contents(cache, other) == shared);
}

INSTANTIATE_TEST_SUITE_P(
    Cache, TruncateQuantized,
    testing::Values(CutPage{"plain", {}, 64},
                    CutPage{"norm", {KeyNormPolicy::prefill, false, false, false, 128}, 128},
                    CutPage{"rotated_padding", {KeyNormPolicy::none, false, true, false, 1}, 80},
                    CutPage{"all", {KeyNormPolicy::prefill, true, true, true, 100}, 112}),
    [](const auto& tested) { return std::string(tested.param.name); });

TEST(TruncateRules, AtAPageBoundaryNothingIsDequantized) {
    const CacheConfig config = small_config();
    const TestSequence rows(config, 400);
    Cache cache(config);
    const SequenceId id = cache.create();
    rows.append_all(cache, id, 1);
    const std::int64_t f16_pages = cache.usage().f16_pages;
    cache.truncate(id, 96);
    EXPECT_EQ(cache.view(0, id).quantized.tokens, 64);
    EXPECT_EQ(cache.view(0, id).recent.tokens, 0);
    EXPECT_EQ(cache.usage().f16_pages, 1);
    EXPECT_GT(f16_pages, 1);
}

TEST(TruncateRules, TransformsStayWhereCalibrationTokensAreTruncated) {
    CacheConfig config = small_config();
    config.transform = {KeyNormPolicy::prefill, false, false, false, 128};
    const TestSequence rows(config, 400);
    const TestSequence others(config, 400, 99);
    Cache cache(config);
    const SequenceId id = cache.create();
    rows.append_all(cache, id, 100);
    const std::vector<float> before = contents(cache, id).transforms;
    ASSERT_FALSE(before.empty());
    cache.truncate(id, 0);
    EXPECT_EQ(contents(cache, id).transforms, before);
    others.append_all(cache, id, 100);
    EXPECT_EQ(contents(cache, id).transforms, before);
    EXPECT_GT(cache.view(0, id).quantized.tokens, 0);
}

TEST(TruncateRules, ShorterLayersStay) {
    CacheConfig config = small_config();
    config.layers = 2;
    const TestSequence rows(config, 100);
    Cache cache(config);
    const SequenceId id = cache.create();
    const AppendRows longer[] = {rows.rows(id, 0, 80)};
    const AppendRows shorter[] = {rows.rows(id, 0, 20)};
    cache.append(0, longer);
    cache.append(1, shorter);
    cache.truncate(id, 50);
    EXPECT_EQ(cache.length(id, 0), 50);
    EXPECT_EQ(cache.length(id, 1), 20);
}

TEST(TruncateRules, LevelsBeyondFp16ComeBackAsItsLargest) {
    CacheConfig config =
        small_config(); // 3 bits: 65504 / 3 as fp16 is 21840, and 3 * 21840 is 65520
    TestSequence rows(config, 200);
    for (int token = 0; token < 200; ++token) rows.k.poke(token, 1, 5, -65504.0f);
    Cache cache(config);
    const SequenceId id = cache.create();
    rows.append_all(cache, id, 1);
    cache.truncate(id, 40);
    for (int token = 32; token < 40; ++token)
        EXPECT_EQ(float_from_f16(f16_row(config, cache.view(0, id).recent, true, 1, token)[5]),
                  -65504.0f);
}

TEST(TruncateRules, WithoutAFreePageForTheCutOneNothingChanges) {
    CacheConfig config = small_config();
    config.max_tokens = 256;
    config.max_sequences = 3;
    config.max_append = 32;
    const TestSequence rows(config, 600);
    Cache cache(config);
    const SequenceId id = cache.create();
    rows.append(cache, id, 0, 256);
    cache.settle(id);
    const SequenceId other = cache.fork(id); // so no recent page is id's own
    const SequenceId filler = cache.create();
    const std::int64_t capacity = static_cast<std::int64_t>(
        plan_cache(config).f16_bytes / (2 * PageFormat{kF16, kF16, 64}.page_bytes()));
    const auto room = 32 * static_cast<int>(capacity - cache.usage().f16_pages);
    rows.append(cache, filler, 0, room);
    ASSERT_EQ(cache.usage().f16_pages, capacity);
    const Contents before = contents(cache, id);
    EXPECT_THROW(cache.truncate(id, 40), OutOfPages);
    EXPECT_TRUE(contents(cache, id) == before);
    cache.remove(other);
    EXPECT_NO_THROW(cache.truncate(id, 40));
    EXPECT_EQ(cache.view(0, id).recent.tokens, 8);
}

TEST(TruncateBatch, IsOneAfterTheOther) {
    const CacheConfig config = small_config();
    const TestSequence rows(config, 300);
    Cache together(config);
    Cache apart(config);
    for (Cache* const cache : {&together, &apart}) {
        const SequenceId id = cache->create();
        rows.append_all(*cache, id, 300);
        cache->settle(id);
        cache->fork(id); // shares a recent page: the batch takes one more than it needs
        cache->create();
    }
    const Truncation batch[] = {{SequenceId{0}, 70}, {SequenceId{1}, 75}, {SequenceId{2}, 10}};
    together.truncate(batch);
    for (const auto& [id, length] : batch) apart.truncate(id, length);
    for (const auto& [id, length] : batch)
        EXPECT_TRUE(contents(together, id) == contents(apart, id));
    EXPECT_EQ(together.usage().f16_pages, apart.usage().f16_pages);
    for (const auto& [id, length] : batch) together.remove(id);
    EXPECT_EQ(together.usage().f16_pages, 0);
}

TEST(TruncateBatch, WhereOneIsRefusedNoneChanges) {
    CacheConfig config = small_config();
    config.sliding_window = {100};
    const TestSequence rows(config, 400);
    Cache cache(config);
    const SequenceId small = cache.create();
    const SequenceId large = cache.create();
    rows.append(cache, small, 0, 50);
    rows.append_all(cache, large, 1);
    const auto refused = [&](std::vector<Truncation> batch) {
        EXPECT_THROW(cache.truncate(batch), InvalidArgument);
        EXPECT_EQ(cache.length(small, 0), 50);
        EXPECT_EQ(cache.length(large, 0), 400);
    };
    refused({{small, 20}, {large, 200}});
    refused({{small, 20}, {large, -1}});
    refused({{small, 20}, {SequenceId{7}, 0}});
    refused({{small, 20}, {large, 399}, {small, 10}});
    cache.truncate({});
    cache.truncate(std::vector<Truncation>{{small, 20}, {large, 399}});
    EXPECT_EQ(cache.length(small, 0), 20);
    EXPECT_EQ(cache.length(large, 0), 399);
}

} // namespace
} // namespace innerkv::test
