// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "innerkv/error.h"
#include "innerkv/plan.h"
#include "test_cache.h"

namespace innerkv::test {
namespace {

TEST(Config, PresetsMakeCaches) {
    for (const Preset& preset : presets()) {
        for (const int head_dim : kHeadDims) {
            CacheConfig config = CacheConfig::from_preset(preset, 2, 1, head_dim);
            config.max_tokens = 100;
            EXPECT_EQ(config.sink_tokens, preset.sink_tokens);
            EXPECT_EQ(config.recent_tokens, preset.recent_tokens);
            EXPECT_EQ(config.transform.norm, preset.key_norm);
            EXPECT_NO_THROW(Cache{config}) << preset.name << " " << head_dim;
        }
    }
}

/// Refused by the constructor and by plan_cache, with a message that has `part` in it.
void expect_refused(const char* part, const std::function<void(CacheConfig&)>& edit) {
    CacheConfig config = small_config();
    edit(config);
    for (const bool plan : {false, true}) {
        try {
            if (plan) {
                plan_cache(config);
            } else {
                const Cache cache(config);
            }
            ADD_FAILURE() << "accepted: " << part;
        } catch (const InvalidArgument& error) {
            EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
        }
    }
}

TEST(Config, WhatIsNotSupportedIsRefused) {
    expect_refused("layers is 0", [](CacheConfig& c) { c.layers = 0; });
    expect_refused("kv_heads is -1", [](CacheConfig& c) { c.kv_heads = -1; });
    expect_refused("max_tokens is 0", [](CacheConfig& c) { c.max_tokens = 0; });
    expect_refused("max_sequences is 0", [](CacheConfig& c) { c.max_sequences = 0; });
    expect_refused("max_append is 0", [](CacheConfig& c) { c.max_append = 0; });
    expect_refused("sink_tokens is -1", [](CacheConfig& c) { c.sink_tokens = -1; });
    expect_refused("recent_tokens is 40", [](CacheConfig& c) { c.recent_tokens = 40; });
    expect_refused("recent_tokens is -32", [](CacheConfig& c) { c.recent_tokens = -32; });
    expect_refused("sliding_window has 2 entries", [](CacheConfig& c) {
        c.sliding_window = {1, 2};
    });
    expect_refused("sliding_window is -5", [](CacheConfig& c) { c.sliding_window = {-5}; });
    expect_refused("head dimension", [](CacheConfig& c) { c.format.head_dim = 72; });
    expect_refused("f16", [](CacheConfig& c) { c.format.v = kF16; });
    expect_refused("2^31", [](CacheConfig& c) { c.max_tokens = std::int64_t{1} << 40; });
    expect_refused("calibration_tokens is 0", [](CacheConfig& c) {
        c.transform = {KeyNormPolicy::prefill, false, false, false, 0};
    });
    expect_refused("norm_threshold", [](CacheConfig& c) { c.transform.norm_threshold = NAN; });
}

/// Counts at which sums and products of them would not fit their types.
TEST(Config, WhatIsTooLargeToCountIsRefused) {
    constexpr int kMost = std::numeric_limits<int>::max();
    expect_refused("max_tokens is 9223372036854775807; supported are 1 to 1099511627776",
                   [](CacheConfig& c) {
                       c.layers = 64;
                       c.max_tokens = std::numeric_limits<std::int64_t>::max();
                   });
    expect_refused("layers is 2147483647", [](CacheConfig& c) { c.layers = kMost; });
    expect_refused("kv_heads is 16777217", [](CacheConfig& c) { c.kv_heads = (1 << 24) + 1; });
    expect_refused("sink_tokens is 2147483647", [](CacheConfig& c) { c.sink_tokens = kMost; });
    expect_refused("recent_tokens is 2147483616",
                   [](CacheConfig& c) { c.recent_tokens = kMost - 31; });
    expect_refused("max_append is 2147483647", [](CacheConfig& c) { c.max_append = kMost; });
    expect_refused("sliding_window is 2147483647",
                   [](CacheConfig& c) { c.sliding_window = {kMost}; });
    expect_refused("calibration_tokens is 2147483647", [](CacheConfig& c) {
        c.transform = {KeyNormPolicy::prefill, false, false, false, kMost};
    });
    expect_refused("2^62", [](CacheConfig& c) {
        c.kv_heads = 1 << 24;
        c.max_tokens = std::int64_t{1} << 32;
    });
}

TEST(Config, TheLargestSinglyAreCounted) {
    for (int field = 0; field < 5; ++field) {
        CacheConfig config = small_config();
        config.transform.norm = KeyNormPolicy::prefill;
        config.max_sequences = 1;
        int* const fields[] = {&config.kv_heads, &config.sink_tokens, &config.recent_tokens,
                               &config.max_append, &config.transform.calibration_tokens};
        *fields[field] = 1 << 24;
        EXPECT_GT(plan_cache(config).total(), sequence_bytes(config, 1)) << field;
        EXPECT_LT(plan_cache(config).total(), std::size_t{1} << 50) << field;
    }
}

TEST(Config, LayerCodecsAreChecked) {
    const auto two_layers = [](CacheConfig& c, LayerCodecs first, LayerCodecs second) {
        c.layers = 2;
        c.layer_codecs = {first, second};
    };
    const LayerCodecs good = codecs_of_bits(3, 2);
    expect_refused("layer_codecs has 2 entries for 1 layers; give one per layer",
                   [&](CacheConfig& c) {
                       c.layer_codecs = {good, good};
                   });
    expect_refused("layer_codecs[1]: K codec has 5 bits", [&](CacheConfig& c) {
        two_layers(c, good, {affine(5), affine(2)});
    });
    expect_refused("layer_codecs[0]: one of K and V is f16", [&](CacheConfig& c) {
        two_layers(c, {affine(3), kF16}, good);
    });
    expect_refused("layer_codecs[1]: f16 beside quantized codecs", [&](CacheConfig& c) {
        two_layers(c, good, {kF16, kF16});
    });
    expect_refused("layer_codecs[0]: f16 beside quantized codecs", [&](CacheConfig& c) {
        c.format.k = c.format.v = kF16;
        two_layers(c, good, good);
    });
}

TEST(Config, FormatOfALayer) {
    CacheConfig config = small_config("base", 128);
    config.layers = 2;
    EXPECT_EQ(config.layer_format(1), config.format);
    EXPECT_EQ(config.bits_per_value(), 3.5);
    config.layer_codecs = {codecs_of_bits(2, 3), codecs_of_bits(4, 8)};
    EXPECT_EQ(config.layer_format(0), (PageFormat{affine(2), affine(3), 128}));
    EXPECT_EQ(config.layer_format(1), (PageFormat{affine(4), symmetric(8), 128}));
    EXPECT_EQ(config.bits_per_value(), (2.5 + 3.5 + 4.5 + 8.5) / 4);
    EXPECT_THROW(codecs_of_bits(5, 2), InvalidArgument);
    EXPECT_THROW(codecs_of_bits(2, 16), InvalidArgument);
}

/// A layer's pages are the bytes that they are in a cache where all layers have its format.
TEST(Config, LayersHaveThePagesOfUniformCaches) {
    const LayerCodecs plan[] = {codecs_of_bits(3, 3), codecs_of_bits(2, 4), codecs_of_bits(4, 2)};
    CacheConfig config = small_config("base", 96);
    config.layers = 3;
    config.transform = {KeyNormPolicy::balanced, true, true};
    const TestSequence rows(config, 500);
    config.layer_codecs = {std::begin(plan), std::end(plan)};
    Cache mixed(config);
    const SequenceId id = mixed.create();
    rows.append_all(mixed, id, 77);
    config.layer_codecs.clear();
    for (int layer = 0; layer < config.layers; ++layer) {
        config.format.k = plan[layer].k;
        config.format.v = plan[layer].v;
        Cache uniform(config);
        const SequenceId same = uniform.create();
        rows.append_all(uniform, same, 77);
        EXPECT_EQ(contents(mixed, id, layer), contents(uniform, same, layer));
    }
}

TEST(Config, EpochsAreWholePages) {
    for (const int tokens : {0, 31, 48, -32}) {
        SCOPED_TRACE(tokens);
        expect_refused(("centre_epoch is " + std::to_string(tokens)).c_str(),
                       [tokens](CacheConfig& c) {
                           c.transform.centre = true;
                           c.transform.centre_epoch = tokens;
                       });
    }
}

TEST(Config, CalibratedTransformsAreChecked) {
    static std::vector<float> array(64, 1.0f);
    const auto calibrated = [](CacheConfig& c) {
        c.transform.norm = KeyNormPolicy::calibrated;
        c.calibrated.assign(2, KeyTransform{array.data()});
    };
    CacheConfig good = small_config();
    calibrated(good);
    EXPECT_NO_THROW(Cache{good});
    expect_refused("calibrated has 1 transforms", [&](CacheConfig& c) {
        calibrated(c);
        c.calibrated.pop_back();
    });
    expect_refused("calibrated has 2 transforms", [&](CacheConfig& c) {
        calibrated(c);
        c.transform.norm = KeyNormPolicy::none;
    });
    expect_refused("leave the policy's unset", [&](CacheConfig& c) {
        calibrated(c);
        c.transform.rotate = true;
    });
    for (const float bad : {0.0f, -1.0f, 1e-30f, NAN, INFINITY}) {
        static std::vector<float> norm(64, 1.0f);
        norm[7] = bad;
        expect_refused("calibrated[1].norm[7]", [&](CacheConfig& c) {
            calibrated(c);
            c.calibrated[1].norm = norm.data();
        });
        if (std::isfinite(bad)) continue;
        expect_refused("calibrated[0].value_centre[7]", [&](CacheConfig& c) {
            calibrated(c);
            c.calibrated[0].value_centre = norm.data();
        });
    }
}

} // namespace
} // namespace innerkv::test
