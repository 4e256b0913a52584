// SPDX-License-Identifier: Apache-2.0
// When rows of a simulated cache are rounded, and what its report counts.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "innerkv/codec.h"
#include "runner/rivals.h"

namespace innerkv::runner::simulated::test {
namespace {

constexpr int kHeads = 2;
constexpr int kDim = 64;
constexpr int kTokens = 420;
constexpr std::size_t kRow = std::size_t{kHeads} * kDim;

using Values = std::vector<float>;

ModelInfo one_layer(int sliding_window = 0) {
    ModelInfo info;
    info.layers = 1;
    info.kv_heads = kHeads;
    info.head_dim = kDim;
    info.sliding_window = {sliding_window};
    return info;
}

/// [kTokens, kHeads, kDim], numbers of fp16.
Values random_rows(unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    Values rows(kTokens * kRow);
    std::generate(rows.begin(), rows.end(),
                  [&] { return float_from_f16(f16_from_float(normal(random))); });
    return rows;
}

Rows rows_from(const Values& values, std::int64_t token) {
    return {.data = values.data() + static_cast<std::size_t>(token) * kRow,
            .type = RowType::f32,
            .token_stride = static_cast<std::ptrdiff_t>(kRow),
            .head_stride = kDim};
}

/// A row as attention sees it.
Values seen(const SequenceView& view, int head, bool keys, std::int64_t token) {
    const std::byte* const page = view.recent.pages[static_cast<std::size_t>(token / kPageTokens)] +
                                  static_cast<std::size_t>(head) * view.recent.head_stride;
    const auto* const row = reinterpret_cast<const std::uint16_t*>(page) +
                            (token % kPageTokens + (keys ? 0 : kPageTokens)) * kDim;
    Values values(kDim);
    std::transform(row, row + kDim, values.begin(), float_from_f16);
    return values;
}

Values original(const Values& rows, int head, std::int64_t token) {
    const auto first = rows.begin() + static_cast<std::ptrdiff_t>(token) * kRow + head * kDim;
    return {first, first + kDim};
}

/// Tokens appended as a session does, in steps of at most `largest`.
class StoreTest : public testing::Test {
protected:
    void append(Store& store, std::int64_t from, std::int64_t to, int largest) {
        for (std::int64_t token = from; token < to;) {
            const int tokens =
                store.step(token, static_cast<int>(std::min<std::int64_t>(to - token, largest)));
            store.reserve(tokens);
            const int parts = store.start_append(
                0, {.tokens = tokens, .k = rows_from(k_, token), .v = rows_from(v_, token)});
            ASSERT_EQ(parts, kHeads);
            for (int part = 0; part < parts; ++part) {
                store.run_part(part);
            }
            store.commit();
            token += tokens;
        }
    }

    /// A token whose first head is stored and whose second head's value is refused.
    void fail_to_append(Store& store, std::int64_t token) {
        Values broken = v_;
        broken[static_cast<std::size_t>(token) * kRow + kDim + 3] =
            std::numeric_limits<float>::infinity();
        store.reserve(1);
        store.start_append(0,
                           {.tokens = 1, .k = rows_from(k_, token), .v = rows_from(broken, token)});
        store.run_part(0);
        EXPECT_THROW(store.run_part(1), InvalidArgument);
        store.drop();
    }

    /// Tokens [from, to) are rounded, and no others of the first `length`.
    void expect_rounded(const Store& store, bool keys, std::int64_t from, std::int64_t to,
                        std::int64_t length) {
        const SequenceView view = store.view(0);
        EXPECT_EQ(view.length, length);
        EXPECT_EQ(view.recent.tokens, length);
        for (std::int64_t token = 0; token < length; ++token) {
            const bool changed = seen(view, 1, keys, token) != original(keys ? k_ : v_, 1, token);
            ASSERT_EQ(changed, token >= from && token < to)
                << (keys ? "K" : "V") << " of token " << token << " at length " << length;
        }
    }

    static void expect_same(const Store& store, const Store& other, std::int64_t length) {
        const SequenceView view = store.view(0);
        const SequenceView other_view = other.view(0);
        ASSERT_EQ(view.length, length);
        for (const bool keys : {true, false}) {
            for (int head = 0; head < kHeads; ++head) {
                for (std::int64_t token = 0; token < length; ++token) {
                    ASSERT_EQ(seen(view, head, keys, token), seen(other_view, head, keys, token))
                        << (keys ? "K" : "V") << " of token " << token << " of " << length;
                }
            }
        }
        EXPECT_EQ(store.report(length).bytes, other.report(length).bytes);
    }

    Values k_ = random_rows(1);
    Values v_ = random_rows(2);
};

/// KIVI's released code: 128 keys are rounded when they are there, after the last of them has attended; of
/// values the oldest when there are 129, likewise.
TEST_F(StoreTest, KiviRoundsKeysByBlocksAndValuesOneByOne) {
    Store store(one_layer(), parse_rival("sim:kivi2").cache);
    std::int64_t length = 0;
    for (const auto& [next, keys, values] : {std::tuple{128, 0, 0},
                                             {129, 128, 0},
                                             {130, 128, 1},
                                             {256, 128, 127},
                                             {257, 256, 128},
                                             {400, 384, 271}}) {
        append(store, length, next, 512);
        length = next;
        expect_rounded(store, true, 0, keys, length);
        expect_rounded(store, false, 0, values, length);
    }
}

/// Keys share a scale along tokens: the codec sees groups that begin at multiples of 32.
TEST_F(StoreTest, KiviRoundsWholeGroups) {
    Store store(one_layer(), parse_rival("sim:kivi4").cache);
    append(store, 0, 300, 64);
    Values group;
    for (std::int64_t token = 96; token < 128; ++token) {
        const Values row = original(k_, 1, token);
        group.insert(group.end(), row.begin(), row.end());
    }
    kivi_keys(4)->round(group, kDim);
    const Values actual = seen(store.view(0), 1, true, 101);
    for (std::size_t c = 0; c < kDim; ++c) {
        EXPECT_EQ(actual[c], float_from_f16(f16_from_float(group[5 * kDim + c])));
    }
}

TEST_F(StoreTest, LlamaRoundsAtOnce) {
    Store store(one_layer(), parse_rival("sim:q4_0").cache);
    append(store, 0, 1, 512);
    expect_rounded(store, true, 0, 1, 1);
    append(store, 1, 300, 512);
    expect_rounded(store, true, 0, 300, 300);
    expect_rounded(store, false, 0, 300, 300);
    EXPECT_EQ(store.step(0, 512), 512);
}

/// The same tokens that our own cache has in fp16, token by token.
TEST_F(StoreTest, WindowsAreOurs) {
    Store store(one_layer(), parse_rival("sim:q4_0+windows").cache);
    CacheConfig config = CacheConfig::from_preset(find_preset("k8v8"), 1, kHeads, kDim);
    config.transform = {};
    config.max_tokens = kTokens;
    Cache cache(config);
    const SequenceId sequence = cache.create();
    for (int token = 0; token < kTokens; ++token) {
        append(store, token, token + 1, 1);
        const AppendRows rows[] = {{.sequence = sequence,
                                    .tokens = 1,
                                    .k = rows_from(k_, token),
                                    .v = rows_from(v_, token)}};
        cache.append(0, rows);
        if (token % 7 == 0 || token > 400) {
            const std::int64_t quantized = cache.view(0, sequence).quantized.tokens;
            expect_rounded(store, true, 32, 32 + quantized, token + 1);
            expect_rounded(store, false, 32, 32 + quantized, token + 1);
        }
    }
    EXPECT_GT(cache.view(0, sequence).quantized.tokens, 200);
}

class RivalStoreTest : public StoreTest, public testing::WithParamInterface<const char*> {};

TEST_P(RivalStoreTest, ContentsDoNotDependOnSteps) {
    Store chunks(one_layer(), parse_rival(GetParam()).cache);
    Store single(one_layer(), parse_rival(GetParam()).cache);
    append(chunks, 0, 333, 256);
    append(single, 0, 333, 1);
    expect_same(chunks, single, 333);
}

/// A step ends before a token that would find more rows rounded than the step's first.
TEST_P(RivalStoreTest, EveryTokenOfAStepFindsTheSameHistory) {
    Store single(one_layer(), parse_rival(GetParam()).cache);
    Store steps(one_layer(), parse_rival(GetParam()).cache);
    for (std::int64_t token = 0; token < 400;) {
        const int tokens = steps.step(token, 400 - static_cast<int>(token));
        append(steps, token, token + tokens, 512);
        for (int i = 0; i < tokens; ++i, ++token) {
            append(single, token, token + 1, 1);
            if (i != 0 && i != tokens - 1 && i % 16 != 0) {
                continue; // first, last and some between
            }
            for (std::int64_t before = 0; before <= token; before += 3) {
                for (const bool keys : {true, false}) {
                    ASSERT_EQ(seen(single.view(0), 0, keys, before),
                              seen(steps.view(0), 0, keys, before))
                        << "token " << before << " for " << token;
                }
            }
        }
    }
}

TEST_P(RivalStoreTest, CutBackIsWhatItWas) {
    Store store(one_layer(), parse_rival(GetParam()).cache);
    append(store, 0, 300, 64);
    for (const std::int64_t length : {291, 257, 140, 129, 20, 0}) {
        Store fresh(one_layer(), parse_rival(GetParam()).cache);
        append(fresh, 0, length, 64);
        store.truncate(length);
        expect_same(store, fresh, length);
        // ... and goes on as one that was never longer.
        append(store, length, 300, 64);
        append(fresh, length, 300, 64);
        expect_same(store, fresh, 300);
    }
}

/// What a part had rounded before another failed is as it was, and not rounded twice. At these lengths the token
/// that fails is the one for which keys, values or windows have rows to round.
TEST_P(RivalStoreTest, AFailedAppendLeavesNoTrace) {
    for (const std::int64_t length : {256, 287, 288}) {
        Store store(one_layer(), parse_rival(GetParam()).cache);
        Store fresh(one_layer(), parse_rival(GetParam()).cache);
        append(store, 0, length, 64);
        append(fresh, 0, length, 64);
        fail_to_append(store, length);
        expect_same(store, fresh, length);
        append(store, length, 420, 64);
        append(fresh, length, 420, 64);
        expect_same(store, fresh, 420);
    }
}

/// ... also where the sequence is cut to before the rows that were rounded.
TEST_P(RivalStoreTest, CutBackAfterAFailedAppend) {
    for (const std::int64_t length : {256, 287, 288}) {
        Store store(one_layer(), parse_rival(GetParam()).cache);
        Store fresh(one_layer(), parse_rival(GetParam()).cache);
        append(store, 0, length, 64);
        append(fresh, 0, 200, 64);
        fail_to_append(store, length);
        store.truncate(200);
        expect_same(store, fresh, 200);
        append(store, 200, 420, 64);
        append(fresh, 200, 420, 64);
        expect_same(store, fresh, 420);
    }
}

TEST_P(RivalStoreTest, ClearedIsNew) {
    Store store(one_layer(), parse_rival(GetParam()).cache);
    append(store, 0, 420, 64);
    store.clear();
    append(store, 0, 300, 64);
    Store fresh(one_layer(), parse_rival(GetParam()).cache);
    append(fresh, 0, 300, 64);
    expect_same(store, fresh, 300);
}

INSTANTIATE_TEST_SUITE_P(Rivals, RivalStoreTest,
                         testing::Values("sim:q5_1", "sim:q4_0+rot", "sim:q4_0+rot+windows",
                                         "sim:kivi2", "sim:turbo3", "sim:turbo4+windows"),
                         [](const auto& test) {
                             std::string name = test.param + 4;
                             std::replace(name.begin(), name.end(), '+', '_');
                             return name;
                         });

TEST_F(StoreTest, ReportCountsWindows) {
    const auto total = [&](const char* name, int length, int sliding_window = 0) {
        Store store(one_layer(sliding_window), parse_rival(name).cache);
        append(store, 0, length, 64);
        const CacheReport report = store.report(length);
        EXPECT_EQ(report.tokens, length);
        return 16.0 * static_cast<double>(report.bytes) / static_cast<double>(report.f16_bytes);
    };
    EXPECT_DOUBLE_EQ(total("sim:q4_0", 400), 4.5);
    EXPECT_DOUBLE_EQ(total("sim:q8_0+rot", 400), 8.5);
    EXPECT_DOUBLE_EQ(total("sim:turbo3", 400), 3.25);
    // 384 of 400 keys and 271 of 400 values in 3 bits
    EXPECT_DOUBLE_EQ(total("sim:kivi2", 400), 16.0 - 13.0 * (384 + 271) / 800);
    // 256 of 400 tokens behind sink and before recent
    EXPECT_DOUBLE_EQ(total("sim:q4_0+windows", 400), 16.0 - 11.5 * 256 / 400);
    // of the 200 tokens that a sliding window shows, 88 are older than the newest 112
    EXPECT_DOUBLE_EQ(total("sim:q4_0+windows", 400, 200), 16.0 - 11.5 * 88 / 200);
}

TEST_F(StoreTest, ReportCountsPages) {
    Store store(one_layer(), parse_rival("sim:kivi2").cache);
    append(store, 0, 128, 64);
    EXPECT_EQ(store.report(128).quantized_pages, 0);
    EXPECT_EQ(store.report(128).bits_per_value, 3.0);
    append(store, 128, 400, 64);
    EXPECT_EQ(store.report(400).quantized_pages, (384 + 271 + 63) / 64);
}

TEST_F(StoreTest, ValuesBeyondFp16AreRefused) {
    for (const float bad : {65520.0f, std::numeric_limits<float>::quiet_NaN(),
                            -std::numeric_limits<float>::infinity()}) {
        Store store(one_layer(), parse_rival("sim:q4_0").cache);
        Values broken = v_;
        broken[kRow + 70] = bad;
        store.reserve(3);
        store.start_append(0, {.tokens = 3, .k = rows_from(k_, 0), .v = rows_from(broken, 0)});
        EXPECT_NO_THROW(store.run_part(0));
        EXPECT_THROW(store.run_part(1), InvalidArgument);
        store.drop();
        EXPECT_EQ(store.view(0).length, 0);
    }
}

} // namespace
} // namespace innerkv::runner::simulated::test
