// SPDX-License-Identifier: Apache-2.0
#include "innerkv/plan.h"

#include <gtest/gtest.h>

#include <limits>
#include <ostream>

#include "innerkv/error.h"
#include "test_cache.h"

namespace innerkv::test {
namespace {

struct PlanCase {
    const char* name;
    const char* preset;
    int head_dim;
    int sink;
    int recent;
    std::vector<int> windows;
    TransformPolicy transform;
    int max_sequences = 4;
    std::vector<LayerCodecs> layer_codecs = {};
};
void PrintTo(const PlanCase& tested, std::ostream* out) { *out << tested.name; }

CacheConfig config_of(const PlanCase& plan) {
    CacheConfig config = small_config(plan.preset, plan.head_dim);
    config.layers = static_cast<int>(plan.windows.size());
    config.sliding_window = plan.windows;
    config.sink_tokens = plan.sink;
    config.recent_tokens = plan.recent;
    config.transform = plan.transform;
    config.max_sequences = plan.max_sequences;
    config.layer_codecs = plan.layer_codecs;
    config.max_tokens = 700;
    config.max_append = 64;
    return config;
}

class Plan : public testing::TestWithParam<PlanCase> {};

TEST_P(Plan, SequenceBytesAreWhatACacheUses) {
    const CacheConfig config = config_of(GetParam());
    const TestSequence rows(config, 600);
    Cache cache(config);
    const SequenceId id = cache.create();
    EXPECT_EQ(sequence_bytes(config, 0), 0u);
    for (int length = 1; length <= 600; ++length) {
        rows.append(cache, id, length - 1, 1);
        ASSERT_EQ(cache.usage().bytes_in_use, sequence_bytes(config, length)) << length;
    }
}

/// The promise of plan_cache: max_tokens fit, over any number of sequences, in appends of any sizes to
/// max_append, with no more memory than planned.
TEST_P(Plan, TokensItWasMadeForFit) {
    const CacheConfig config = config_of(GetParam());
    const CachePlan plan = plan_cache(config);
    for (int seed = 1; seed <= 20; ++seed) {
        Random random(static_cast<std::uint64_t>(seed));
        const TestSequence rows(config, config.max_append);
        Cache cache(config);
        std::vector<SequenceId> ids;
        for (int i = random.between(1, config.max_sequences); i > 0; --i)
            ids.push_back(cache.create());
        for (auto left = static_cast<int>(config.max_tokens); left > 0;) {
            const SequenceId id =
                ids[static_cast<std::size_t>(random.between(0, static_cast<int>(ids.size()) - 1))];
            const int count = std::min(left, random.between(1, config.max_append));
            ASSERT_NO_THROW(rows.append(cache, id, 0, count)) << "seed " << seed;
            left -= count;
        }
        for (const SequenceId id : ids) ASSERT_NO_THROW(cache.settle(id));
        const CacheUsage usage = cache.usage();
        EXPECT_LE(usage.bytes_in_use, plan.total());
        EXPECT_LE(usage.bytes_reserved, plan.total());
        // A fresh cache of this plan also promises all of it to one sequence.
        for (const SequenceId id : ids) cache.remove(id);
        EXPECT_NO_THROW(cache.reserve(cache.create(), static_cast<int>(config.max_tokens)));
    }
}

INSTANTIATE_TEST_SUITE_P(
    Cache, Plan,
    testing::Values(
        PlanCase{"base", "base", 64, 32, 96, {0, 0}, {}},
        PlanCase{"norm", "base", 128, 32, 96, {0}, {KeyNormPolicy::prefill}},
        PlanCase{
            "all", "hybrid", 80, 4, 32, {0, 0}, {KeyNormPolicy::prefill, true, true, true, 77}},
        PlanCase{"centres", "base", 64, 32, 96, {0, 250}, {KeyNormPolicy::none, true}},
        PlanCase{"window_over_three_epochs",
                 "base",
                 64,
                 32,
                 96,
                 {250},
                 {KeyNormPolicy::none, true, false, false, 1, 96},
                 1},
        PlanCase{"short_epochs",
                 "small",
                 80,
                 0,
                 64,
                 {100, 0, 300, 40},
                 {KeyNormPolicy::none, true, true, false, 1, 64}},
        PlanCase{"windows", "k4v3", 64, 40, 32, {64, 0, 200, 33, 1}, {}},
        PlanCase{"windows_norm", "k8v8", 64, 0, 32, {50, 33, 100, 300}, {KeyNormPolicy::prefill}},
        PlanCase{"late_calibration",
                 "base",
                 64,
                 32,
                 32,
                 {0},
                 {KeyNormPolicy::prefill, false, false, false, 300},
                 1},
        PlanCase{"one_window", "base", 64, 32, 32, {200}, {}, 1},
        PlanCase{"by_layer",
                 "base",
                 80,
                 32,
                 32,
                 {0, 0, 0},
                 {KeyNormPolicy::prefill, true},
                 4,
                 {codecs_of_bits(2, 4), codecs_of_bits(2, 2), codecs_of_bits(8, 3)}},
        PlanCase{"by_layer_windows",
                 "base",
                 64,
                 40,
                 32,
                 {64, 0, 200, 33, 150},
                 {},
                 4,
                 {codecs_of_bits(2, 2), codecs_of_bits(3, 2), codecs_of_bits(2, 3),
                  codecs_of_bits(4, 4), codecs_of_bits(2, 2)}},
        PlanCase{"f16", "f16", 96, 32, 96, {0}, {}},
        PlanCase{"f16_windows", "f16", 64, 4, 96, {0, 100, 20}, {}}),
    [](const auto& tested) { return std::string(tested.param.name); });

TEST(PlanBytes, AreThePageFormatsSums) {
    CacheConfig config = CacheConfig::from_preset(find_preset("base"), 30, 3, 64);
    config.transform = {};
    // 7000 tokens: the last append found 6999; 6871 behind sink and recent window, 214 pages of them.
    const std::size_t quantized = 214 * std::size_t{1792};
    const std::size_t f16 = (1 + 4) * std::size_t{32 * 64 * 2 * 2};
    EXPECT_EQ(sequence_bytes(config, 7000), 30 * 3 * (quantized + f16));
    EXPECT_EQ(f16_sequence_bytes(config, 7000), std::size_t{30} * 3 * 64 * 7000 * 2 * 2);
    config.sliding_window.assign(30, 0);
    config.sliding_window[0] = 512;
    EXPECT_EQ(f16_sequence_bytes(config, 7000), std::size_t{29 * 7000 + 512} * 3 * 64 * 2 * 2);
    EXPECT_EQ(f16_sequence_bytes(config, 100), std::size_t{30 * 100} * 3 * 64 * 2 * 2);
    EXPECT_THROW(sequence_bytes(config, -1), InvalidArgument);
    EXPECT_THROW(f16_sequence_bytes(config, -1), InvalidArgument);
    constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
    EXPECT_THROW(sequence_bytes(config, kMost), InvalidArgument);
    EXPECT_THROW(f16_sequence_bytes(config, kMost), InvalidArgument);
    config.layers = config.kv_heads = 1 << 20;
    config.sliding_window.clear();
    EXPECT_THROW(sequence_bytes(config, std::int64_t{1} << 40), InvalidArgument);
}

TEST(PlanBytes, ExactPrefillHasRoomForThePromptInFp16) {
    CacheConfig config = small_config();
    config.exact_prefill = true;
    EXPECT_GE(plan_cache(config).f16_bytes, f16_sequence_bytes(config, config.max_tokens));
    const TestSequence rows(config, 2000);
    Cache cache(config);
    const SequenceId id = cache.create();
    for (int first = 0; first < 2000; first += 500) rows.append(cache, id, first, 500);
    cache.settle(id);
    EXPECT_EQ(cache.view(0, id).quantized.tokens, 58 * 32);
}

/// Many layers with a window drop pages when they settle, and take as many new ones: each in its turn.
TEST(PlanBytes, SettlingAllWindowedLayersFits) {
    CacheConfig config = CacheConfig::from_preset(find_preset("base"), 18, 1, 64);
    config.transform = {};
    for (int layer = 0; layer < config.layers; ++layer)
        config.sliding_window.push_back(layer % 6 == 5 ? 0 : 512);
    config.max_tokens = 8192;
    config.max_append = 512;
    const TestSequence rows(config, 512);
    Cache cache(config);
    const SequenceId id = cache.create();
    for (int chunk = 0; chunk < 16; ++chunk) rows.append(cache, id, 0, 512);
    ASSERT_NO_THROW(cache.settle(id));
    // A query at 8192 sees token 7681 and later ones: 239 pages behind the sink lie before it, and 252
    // before the recent window.
    EXPECT_EQ(cache.view(0, id).quantized.tokens, (252 - 239) * 32);
    EXPECT_EQ(cache.view(5, id).quantized.tokens, 252 * 32);
    EXPECT_LE(cache.usage().bytes_in_use, plan_cache(config).total());
}

TEST(Reserve, RefusesWhatDoesNotFitAndChangesNothing) {
    CacheConfig config = small_config();
    config.max_tokens = 300;
    config.max_sequences = 1;
    config.max_append = 32;
    Cache cache(config);
    const SequenceId id = cache.create();
    EXPECT_NO_THROW(cache.reserve(id, 0));
    EXPECT_NO_THROW(cache.reserve(id, 300));
    EXPECT_THROW(cache.reserve(id, 400), OutOfPages);
    EXPECT_THROW(cache.reserve(id, -1), InvalidArgument);
    EXPECT_EQ(cache.usage().bytes_in_use, 0u);
}

/// Pages shared with a fork do not come back when one of the two lets go of them: a reserve that is
/// granted must hold all the same, however few pages are free.
class ReserveAfterFork : public testing::TestWithParam<int> {};

TEST_P(ReserveAfterFork, WhatIsGrantedFits) {
    CacheConfig config = small_config();
    config.sliding_window = {GetParam()};
    config.recent_tokens = 32;
    config.max_append = 32;
    config.max_tokens = 500;
    const TestSequence rows(config, 800);
    int granted = 0;
    int refused = 0;
    for (int filled = 0; filled <= 24; ++filled) {
        Cache cache(config);
        const SequenceId parent = cache.create();
        for (int first = 0; first < 416; first += 32) rows.append(cache, parent, first, 32);
        cache.settle(parent);
        const SequenceId child = cache.fork(parent);
        try { // takes so many fp16 pages away
            rows.append(cache, cache.create(), 0, 32 * filled);
        } catch (const OutOfPages&) {
            break;
        }
        try {
            cache.reserve(child, 320);
        } catch (const OutOfPages&) {
            ++refused;
            continue;
        }
        ++granted;
        // Steps that fill the recent window to its largest: 63 tokens, and 32 of an append.
        ASSERT_NO_THROW(rows.append(cache, child, 0, 31)) << "filled " << filled;
        for (int i = 0; i < 9; ++i)
            ASSERT_NO_THROW(rows.append(cache, child, 0, 32)) << "filled " << filled;
    }
    EXPECT_GT(refused, 0);
    // Without a window the child alone would need more quantized pages than there are left.
    EXPECT_EQ(granted > 0, GetParam() > 0 && GetParam() < 400);
}

INSTANTIATE_TEST_SUITE_P(Windows, ReserveAfterFork, testing::Values(0, 20, 120, 400));

} // namespace
} // namespace innerkv::test
