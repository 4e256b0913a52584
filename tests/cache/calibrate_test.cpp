// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "innerkv/codec.h"
#include "innerkv/error.h"
#include "test_cache.h"

namespace innerkv::test {
namespace {

/// Two tokens of calibration, no sink; channel c of token 0 is low(c), of token 1 high(c).
template <typename Low, typename High>
SequenceView calibrated_view(Cache& cache, const CacheConfig& config, Low low, High high) {
    TestSequence rows(config, 64);
    for (int token = 0; token < 64; ++token)
        for (int head = 0; head < config.kv_heads; ++head)
            for (int c = 0; c < config.format.head_dim; ++c) {
                rows.k.poke(token, head, c, token % 2 == 0 ? low(c) : high(c));
                rows.v.poke(token, head, c, token % 2 == 0 ? high(c) : low(c));
            }
    const SequenceId id = cache.create();
    rows.append_all(cache, id, 64);
    cache.settle(id);
    return cache.view(0, id);
}

CacheConfig calibrating(TransformPolicy policy) {
    CacheConfig config = small_config();
    config.sink_tokens = 0;
    config.recent_tokens = 32;
    config.transform = policy;
    return config;
}

TEST(Calibrate, NormIsTheRootOfTheLargestMagnitude) {
    const CacheConfig config = calibrating({KeyNormPolicy::prefill, false, false, false, 2});
    Cache cache(config);
    const SequenceView view = calibrated_view(
        cache, config, [](int) { return 1.0f; },
        [](int c) { return c == 3   ? -16.0f
                           : c == 5 ? 9.0f
                                    : 0.5f; });
    ASSERT_EQ(view.transforms.size(), 2u);
    for (const KeyTransform& head : view.transforms) {
        ASSERT_NE(head.norm, nullptr);
        EXPECT_FALSE(head.centre || head.value_centre || head.rotate);
        for (int c = 0; c < 64; ++c) EXPECT_EQ(head.norm[c], c == 3 ? 4.0f : c == 5 ? 3.0f : 1.0f);
    }
}

float centre_at(const CentreRun& centres, std::size_t epoch, int channel) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, centres.epochs[epoch] + 2 * channel, sizeof bits);
    return float_from_f16(bits);
}

TEST(Calibrate, NormIsTakenFromCentredKeys) {
    const CacheConfig config = calibrating({KeyNormPolicy::prefill, true, true, true, 2});
    Cache cache(config);
    const SequenceView view = calibrated_view(
        cache, config, [](int c) { return 100.0f - static_cast<float>(c % 4 == 0 ? 9 : 1); },
        [](int c) { return 100.0f + static_cast<float>(c % 4 == 0 ? 9 : 1); });
    const KeyTransform& head = view.transforms[1];
    ASSERT_TRUE(head.norm && head.value_centre && head.rotate);
    EXPECT_EQ(head.centre, nullptr);
    ASSERT_EQ(view.centres.epochs.size(), 1u);
    for (int c = 0; c < 64; ++c) {
        EXPECT_EQ(centre_at(view.centres, 0, 64 + c), 100.0f); // the second head's
        EXPECT_EQ(head.value_centre[c], 100.0f);
        EXPECT_EQ(head.norm[c], c % 4 == 0 ? 3.0f : 1.0f);
    }
}

/// Each epoch's centre is the mean of the recent window and the page before it, from its first token on.
TEST(Calibrate, CentresFollowTheSequence) {
    CacheConfig config = calibrating({});
    config.transform.centre = true;
    config.transform.centre_epoch = 64;
    TestSequence rows(config, 256);
    for (int token = 0; token < 256; ++token)
        for (int head = 0; head < config.kv_heads; ++head)
            for (int c = 0, page = token / 32; c < config.format.head_dim; ++c)
                rows.k.poke(token, head, c, static_cast<float>(page + 10 * head));
    Cache cache(config);
    const SequenceId id = cache.create();
    rows.append(cache, id, 0, 200);
    rows.append(cache, id, 200, 1); // settles the first 160
    const CentreRun centres = cache.view(0, id).centres;
    ASSERT_EQ(cache.view(0, id).quantized.tokens, 160);
    EXPECT_EQ(centres.epoch_pages, 2);
    EXPECT_EQ(centres.first_page, 0);
    ASSERT_EQ(centres.epochs.size(), 3u);
    for (std::size_t epoch = 0; epoch < 3; ++epoch)
        for (int head = 0; head < config.kv_heads; ++head) {
            const float first = 2.0f * static_cast<float>(epoch) + 10.0f * static_cast<float>(head);
            EXPECT_EQ(centre_at(centres, epoch, 64 * head + 5), first + 0.5f);
        }
    // Cut where the third epoch begins: its centre goes. Forks share what is there.
    const SequenceId fork = cache.fork(id);
    cache.truncate(fork, 128);
    EXPECT_EQ(cache.view(0, fork).centres.epochs.size(), 2u);
    EXPECT_EQ(cache.view(0, fork).centres.epochs[1], cache.view(0, id).centres.epochs[1]);
    EXPECT_EQ(cache.view(0, id).centres.epochs.size(), 3u);
}

TEST(Calibrate, AFlatNormIsDropped) {
    const CacheConfig config = calibrating({KeyNormPolicy::prefill, false, false, false, 2});
    // The norm's ratio is the root: 1.43 gives 1.196, 1.45 gives 1.204; the threshold is 1.2.
    for (const auto& [largest, kept] : {std::pair(1.43f, false), std::pair(1.45f, true)}) {
        Cache cache(config);
        const float most = largest;
        const SequenceView view = calibrated_view(
            cache, config, [](int) { return 1.0f; },
            [most](int c) { return c == 9 ? most : 1.0f; });
        EXPECT_EQ(view.transforms[0].norm != nullptr, kept) << largest;
    }
}

TEST(Calibrate, ChannelsOfZerosHaveNormOneAndDoNotCount) {
    const CacheConfig config = calibrating({KeyNormPolicy::prefill, false, false, false, 2});
    Cache cache(config);
    const SequenceView flat = calibrated_view(
        cache, config, [](int c) { return c < 8 ? 0.0f : 4.0f; },
        [](int c) { return c < 8 ? 0.0f : 4.0f; });
    EXPECT_EQ(flat.transforms[0].norm, nullptr);
    const SequenceView uneven = calibrated_view(
        cache, config, [](int c) { return c < 8 ? 0.0f : 4.0f; },
        [](int c) { return c < 8    ? 0.0f
                           : c < 16 ? 9.0f
                                    : 4.0f; });
    ASSERT_NE(uneven.transforms[0].norm, nullptr);
    EXPECT_EQ(uneven.transforms[0].norm[0], 1.0f);
    EXPECT_EQ(uneven.transforms[0].norm[8], 3.0f);
    EXPECT_EQ(uneven.transforms[0].norm[16], 2.0f);
}

/// A cache that has seen 40 keys and queries: k(c), -k(c), k(c) ... and q(c).
template <typename Key, typename Query>
std::vector<float> balanced_norm(Key k, Query q, bool with_queries = true) {
    CacheConfig config = calibrating({KeyNormPolicy::balanced, false, false, false, 40});
    Cache cache(config);
    TestSequence rows(config, 100);
    for (int token = 0; token < 100; ++token) {
        const float sign = token % 2 == 0 ? 1.0f : -1.0f;
        for (int c = 0; c < 64; ++c) {
            for (int head = 0; head < config.kv_heads; ++head)
                rows.k.poke(token, head, c, sign * k(c));
            // What comes behind the calibration tokens does not count.
            for (int head = 0; head < rows.q.heads(); ++head)
                rows.q.poke(token, head, c, token < 40 ? q(c) : 1000.0f);
        }
    }
    const SequenceId id = cache.create();
    AppendRows batch[] = {rows.rows(id, 0, 100)};
    if (!with_queries) batch[0].q = {};
    cache.append(0, batch);
    cache.settle(id);
    const KeyTransform& head = cache.view(0, id).transforms[1];
    return head.norm ? std::vector<float>(head.norm, head.norm + 64) : std::vector<float>();
}

TEST(Calibrate, BalancedNormSharesImbalanceBetweenKeysAndQueries) {
    const std::vector<float> norm = balanced_norm(
        [](int c) {
            return c == 3 ? 32.0f : c == 7 ? 0.25f : c == 9 ? 2.0f : c == 11 ? 0.0f : 1.0f;
        },
        [](int c) {
            return c == 3 ? 1.0f / 32.0f : c == 5 ? 16.0f : c == 11 ? 7.0f : c == 13 ? 0.0f : 1.0f;
        });
    ASSERT_EQ(norm.size(), 64u);
    EXPECT_NEAR(norm[3], 32.0f / 1.4f, 1e-4f); // sqrt(32 * 32), and closer to 1
    EXPECT_NEAR(norm[5], 1.4f / 4.0f, 1e-5f);
    EXPECT_NEAR(norm[7], 1.4f / 2.0f, 1e-5f);
    EXPECT_NEAR(norm[9], std::sqrt(2.0f) / 1.4f, 1e-5f);
    EXPECT_EQ(norm[11], 1.0f);
    EXPECT_EQ(norm[13], 1.0f);
    EXPECT_EQ(norm[0], 1.0f);
}

TEST(Calibrate, BalancedNormIsDroppedWhereNothingIsOutOfBalance) {
    EXPECT_TRUE(balanced_norm([](int c) { return c < 20 ? 1.9f : 1.0f; }, [](int) { return 3.0f; })
                    .empty());
}

TEST(Calibrate, BalancedNormWithoutQueriesBoundsOutliers) {
    const std::vector<float> norm = balanced_norm(
        [](int c) {
            return c == 3 ? 400.0f : c == 4 ? 16.0f : c == 5 ? 0.0f : 4.0f;
        },
        [](int) { return 1.0f; }, false);
    ASSERT_EQ(norm.size(), 64u);
    EXPECT_EQ(norm[3], 25.0f); // 400 / (4 * 4)
    EXPECT_EQ(norm[4], 1.0f);
    EXPECT_EQ(norm[5], 1.0f);
    EXPECT_EQ(norm[0], 1.0f);
}

TEST(Calibrate, NormsFromMagnitudes) {
    // The lower median of 1, 2, 2, 3, 90, those above 0, is 2: what is above 8 comes down to it.
    std::vector<float> channels = {0.0f, 2.0f, 90.0f, 3.0f, 1.0f, 2.0f, 0.0f};
    norms_from_magnitudes(channels);
    EXPECT_EQ(channels, (std::vector<float>{1.0f, 1.0f, 90.0f / 8.0f, 1.0f, 1.0f, 1.0f, 1.0f}));
    std::vector<float> silent(64, 0.0f);
    norms_from_magnitudes(silent);
    EXPECT_EQ(silent, std::vector<float>(64, 1.0f));
    std::vector<float> many(257, 1.0f);
    EXPECT_THROW(norms_from_magnitudes(many), InvalidArgument);
}

TEST(Calibrate, QueriesThatAreNotFiniteAreRefused) {
    const CacheConfig config = calibrating({KeyNormPolicy::balanced, false, false, false, 40});
    Cache cache(config);
    TestSequence rows(config, 10);
    rows.q.poke(7, 3, 9, NAN);
    const SequenceId id = cache.create();
    try {
        rows.append(cache, id, 0, 10);
        ADD_FAILURE() << "accepted";
    } catch (const InvalidArgument& error) {
        EXPECT_NE(std::string(error.what())
                      .find("Q of sequence 0, layer 0, token 7, query head 3, "
                            "channel 9 is nan"),
                  std::string::npos)
            << error.what();
    }
    EXPECT_EQ(cache.length(id, 0), 0);
}

TEST(Calibrate, WaitsForItsTokensAndTheRecentWindow) {
    CacheConfig config = small_config();
    config.transform = {KeyNormPolicy::prefill, false, false, false, 100};
    const TestSequence rows(config, 300);
    Cache cache(config);
    const SequenceId id = cache.create();
    for (int length = 1; length <= 300; ++length) {
        rows.append(cache, id, length - 1, 1);
        const bool ready = length - 1 >= 32 + 100 + 96;
        ASSERT_EQ(cache.view(0, id).transforms.size(), ready ? 2u : 0u) << length;
        ASSERT_EQ(cache.view(0, id).quantized.tokens > 0, ready) << length;
    }
}

TEST(Calibrate, GivenTransformsAreCopiedAndUsedPerLayerAndHead) {
    CacheConfig config = small_config("k8v8");
    config.layers = 2;
    config.transform.norm = KeyNormPolicy::calibrated;
    std::vector<float> norms(4 * 64);
    std::iota(norms.begin(), norms.end(), 1.0f);
    for (int i = 0; i < 4; ++i) config.calibrated.push_back({norms.data() + 64 * i});
    config.calibrated[3].rotate = true;
    Cache cache(config);
    norms.assign(norms.size(), NAN);
    const SequenceId id = cache.create();
    for (int layer = 0; layer < 2; ++layer) {
        const SequenceView view = cache.view(layer, id);
        ASSERT_EQ(view.transforms.size(), 2u);
        for (int head = 0; head < 2; ++head) {
            EXPECT_EQ(view.transforms[static_cast<std::size_t>(head)].norm[5],
                      static_cast<float>(64 * (2 * layer + head) + 6));
            EXPECT_EQ(view.transforms[static_cast<std::size_t>(head)].rotate, layer + head == 2);
        }
    }
    const TestSequence rows(config, 200);
    rows.append_all(cache, id, 100);
    cache.settle(id);
    EXPECT_EQ(cache.view(0, id).quantized.tokens, 64);
    // They belong to the cache, not to a sequence.
    const CacheUsage usage = cache.usage();
    const PageFormat f16{kF16, kF16, 64};
    EXPECT_EQ(usage.bytes_in_use,
              2 * (static_cast<std::size_t>(usage.quantized_pages) * config.format.page_bytes() +
                   static_cast<std::size_t>(usage.f16_pages) * f16.page_bytes()));
}

} // namespace
} // namespace innerkv::test
