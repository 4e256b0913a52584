// SPDX-License-Identifier: Apache-2.0
// What a device cache refuses, with a message that names the fault, and that it goes on afterwards.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>

#include "both_caches.h"
#include "cuda/cache/state.h"

namespace innerkv::test {
namespace {

class DeviceCacheArguments : public OnDevice {
protected:
    static CacheConfig config() {
        CacheConfig config = small_config("base", 64);
        config.max_sequences = 2;
        return config;
    }
    /// Whose norms take queries too.
    static CacheConfig balanced_config(int layers) {
        CacheConfig config = DeviceCacheArguments::config();
        config.layers = layers;
        config.transform = TransformPolicy::from_preset(find_preset("base"));
        return config;
    }
};

TEST_F(DeviceCacheArguments, Configs) {
    const auto make = [](const std::function<void(CacheConfig&)>& change) {
        return [change] {
            CacheConfig config = DeviceCacheArguments::config();
            change(config);
            const cuda::DeviceCache cache(config);
        };
    };
    expect_refused<InvalidArgument>(make([](auto& c) { c.exact_prefill = true; }), "exact_prefill");
    expect_refused<InvalidArgument>(make([](auto& c) { c.layer_codecs = {codecs_of_bits(3, 3)}; }),
                                    "layer_codecs is not supported, all layers have one format");
    expect_refused<InvalidArgument>(
        make([](auto& c) { c.format.v = find_preset("k8v8").format(64).v; }),
        "bits; supported are those of the presets");
    expect_refused<InvalidArgument>(make([](auto& c) { c.max_sequences = 257; }), "1 to 256");
    expect_refused<InvalidArgument>(make([](auto& c) { c.max_tokens = 0; }), "max_tokens is 0");
    expect_refused<InvalidArgument>(make([](auto& c) { c.kv_heads = 0; }), "kv_heads");
    expect_refused<InvalidArgument>(
        [] { const cuda::DeviceCache cache(DeviceCacheArguments::config(), 99); }, "device 99");
    expect_refused<cuda::DeviceError>(make([](auto& c) {
                                          c.max_tokens = 1 << 24;
                                          c.layers = 100;
                                      }),
                                      "bytes for a cache on device 0");
}

/// Without a device: of two layers, two slots, two KV heads of 64 channels, 2000 tokens in 63 pages.
TEST(DeviceCachePlan, BytesOfAllThatIsTaken) {
    CacheConfig config = CacheConfig::from_preset(find_preset("base"), 2, 2, 64);
    config.max_tokens = 2000;
    config.max_sequences = 2;
    config.max_append = 512;
    config.transform.norm = KeyNormPolicy::balanced;
    config.transform.centre = config.transform.value_centre = true;
    config.transform.calibration_tokens = 128;
    config.transform.centre_epoch = 64; // 32 epochs, the last of one page
    const auto lines = [](std::size_t bytes) { return (bytes + 63) / 64 * 64; };
    const std::size_t states = lines(4 * sizeof(cuda::SlotState)) +
                               lines(4 * sizeof(cuda::Sequence)) + lines(2 * sizeof(cuda::Fault)) +
                               lines(4 * sizeof(std::int32_t));
    // An append may find 128 + 96 - 1 tokens behind the sink and 512 of the append before, and bring 512: 39 pages, and
    // one that is partly theirs. The table names each twice, that of epochs one more.
    const std::size_t tables = lines(8) + lines(8 * 2 * 40) + lines(8 * 63) + lines(8 * 33);
    const std::size_t channels = 2 * 64 * sizeof(float);
    // Two sums of queries, norm, value centre; which heads have a norm.
    const std::size_t transforms = 4 * channels + lines(2 * sizeof(std::int32_t));
    const std::size_t slot = (1 + 40) * paging::f16_group_bytes(config) + tables + transforms;
    const std::size_t pools =
        63 * paging::quantized_group_bytes(config) + (32 + 2) * paging::centre_group_bytes(config);
    EXPECT_EQ(paging::f16_group_bytes(config), 2u * 2 * 32 * 64 * 2);
    EXPECT_EQ(cuda::DeviceCache::plan(config), states + 2 * (2 * slot + pools));
}

TEST(DeviceCachePlan, Refusals) {
    const auto plan = [](const std::function<void(CacheConfig&)>& change) {
        return [change] {
            CacheConfig config = small_config("base", 64);
            change(config);
            static_cast<void>(cuda::DeviceCache::plan(config));
        };
    };
    EXPECT_NO_THROW(plan([](auto&) {})());
    expect_refused<InvalidArgument>(plan([](auto& c) { c.exact_prefill = true; }), "exact_prefill");
    expect_refused<InvalidArgument>(plan([](auto& c) { c.layer_codecs = {codecs_of_bits(3, 3)}; }),
                                    "layer_codecs is not supported, all layers have one format");
    expect_refused<InvalidArgument>(
        plan([](auto& c) { c.format.v = find_preset("k8v8").format(64).v; }),
        "bits; supported are those of the presets");
    expect_refused<InvalidArgument>(plan([](auto& c) { c.max_sequences = 257; }), "1 to 256");
    expect_refused<InvalidArgument>(plan([](auto& c) { c.max_tokens = (1 << 30) + 1; }),
                                    "max_tokens is 1073741825; supported are 1 to 2^30");
    expect_refused<InvalidArgument>(plan([](auto& c) { c.kv_heads = 0; }), "kv_heads");
}

TEST_F(DeviceCacheArguments, Slots) {
    cuda::DeviceCache cache(config());
    EXPECT_EQ(cuda::DeviceCache::plan(config()), cache.bytes());
    expect_refused<InvalidArgument>([&] { cache.reserve(0, 10); }, "slot 0 is not in use");
    EXPECT_EQ(cache.create(), 0);
    EXPECT_EQ(cache.create(), 1);
    expect_refused<OutOfPages>([&] { cache.create(); }, "max_sequences = 2");
    expect_refused<InvalidArgument>([&] { cache.reserve(0, -1); },
                                    "length is -1; supported are 0 to 2000");
    expect_refused<OutOfPages>([&] { cache.reserve(0, 3000); },
                               "3000 tokens asked of one sequence; the cache was made for");
    expect_refused<InvalidArgument>([&] { static_cast<void>(cache.length(0, 1)); }, "layer is 1");
    expect_refused<InvalidArgument>([&] { cache.truncate(2, 0); }, "slot 2");
    cache.reserve(0, 1900);
    expect_refused<OutOfPages>([&] { cache.reserve(1, 1900); }, "quantized page groups");
    cache.remove(0);
    cache.reserve(1, 1900);
    EXPECT_EQ(cache.create(), 0);
}

TEST_F(DeviceCacheArguments, Appends) {
    BothCaches both(config(), 300);
    both.write_rows({1, 1}, 1);
    std::vector<float> host(1000);
    const auto append = [&](const std::function<void(cuda::DeviceAppend&)>& change) {
        return [&both, change] {
            cuda::DeviceAppend changed = both.device_append(0, 1);
            change(changed);
            both.device.append(changed);
        };
    };
    expect_refused<InvalidArgument>(append([](auto& a) { a.layer = 1; }), "layer is 1");
    expect_refused<InvalidArgument>(append([](auto& a) { a.max_tokens = 0; }), "max_tokens is 0");
    expect_refused<InvalidArgument>(append([](auto& a) { a.max_tokens = 513; }), "1 to 512");
    expect_refused<InvalidArgument>(append([&](auto& a) { a.k.data = host.data(); }),
                                    "k is not device memory");
    expect_refused<InvalidArgument>(append([&](auto& a) { a.v.data = nullptr; }), "v");
    expect_refused<InvalidArgument>(append([](auto& a) { a.k.type = static_cast<RowType>(9); }),
                                    "k's type is RowType 9; supported are f32, f16 and bf16");
    expect_refused<InvalidArgument>(append([](auto& a) { a.k.head_stride = 63; }),
                                    "k's head_stride is 63");
    expect_refused<InvalidArgument>(
        append([](auto& a) { a.k.data = static_cast<const std::byte*>(a.k.data) + 2; }),
        "k does not begin at a multiple of the 4 bytes");
    expect_refused<InvalidArgument>(append([](auto& a) { a.q_heads = 3; }), "3 query heads for 2");
    both.append({1, 1});
    both.expect_same();
}

/// A slot with a value that fp16 cannot hold stays as it was; the other one goes on.
TEST_F(DeviceCacheArguments, ValuesBeyondF16) {
    for (const float bad : {INFINITY, -INFINITY, NAN, 70000.0f}) {
        BothCaches both(config(), 400);
        both.append({300, 300});
        both.poke(1, 303, 1, 5, bad);
        both.write_rows({10, 10}, 10);
        both.device.append(both.device_append(0, 10));
        both.device.append(both.device_append(0, 10)); // the faulty slot takes none of these either
        expect_refused<InvalidArgument>([&] { both.device.verify(); },
                                        "slot 1, layer 0, K of token 303, head 1, channel 5 is ");
        both.device.verify();
        EXPECT_EQ(both.device.length(0, 0), 320);
        EXPECT_EQ(both.device.length(1, 0), 300);
        both.device.truncate(0, 300);
        both.poke(1, 303, 1, 5, 1.0f);
        both.append({10, 10});
        both.expect_same();
    }
}

/// Of three layers the second refuses five tokens of slot 1, which has `before`; the step is repeated, and both caches
/// go on until they have calibrated.
void expect_step_undone(BothCaches& both, int before) {
    both.write_rows({5, 5}, 5);
    both.device.append(both.device_append(0, 5));
    both.poke(1, before + 3, 1, 5, NAN);
    both.write_rows({5, 5}, 5);
    both.device.append(both.device_append(1, 5));
    both.device.append(both.device_append(2, 5));
    expect_refused<InvalidArgument>([&] { both.device.fork(1); }, "verify() tells what");
    expect_refused<InvalidArgument>([&] { both.device.verify(); }, "slot 1, layer 1, K of");
    both.device.verify();
    for (int layer = 0; layer < 3; ++layer) {
        EXPECT_EQ(both.device.length(0, layer), before + 5);
        EXPECT_EQ(both.device.length(1, layer), before);
    }
    both.poke(1, before + 3, 1, 5, 1.0f);
    both.write_rows({0, 5}, 5);
    for (int layer = 0; layer < 3; ++layer) both.device.append(both.device_append(layer, 5));
    both.device.verify();
    both.write_rows({5, 5}, 5);
    both.append_to_host({5, 5});
    for (int i = 0; i < 4; ++i) both.append({60, 60});
    both.expect_same();
}

/// What one layer refuses, all others give back: the step can be repeated, and its queries count once.
TEST_F(DeviceCacheArguments, LayersGoBackToOneLength) {
    for (const int before : {0, 60, 300}) {
        SCOPED_TRACE(before);
        BothCaches both(balanced_config(3), 600);
        if (before > 0) both.append({before, before});
        expect_step_undone(both, before);
    }
}

/// A slot whose tokens came without queries has none after a step is undone, whatever its memory holds.
TEST_F(DeviceCacheArguments, LayersGoBackToNoQueries) {
    for (const bool loaded : {false, true}) {
        SCOPED_TRACE(loaded);
        BothCaches both(balanced_config(3), 600);
        both.append({70, 70}); // sums of another sequence's queries, in both buffers
        both.append({5, 5});
        for (const int slot : {0, 1}) both.truncate(slot, 0);
        both.rewind({0, 0});
        both.with_queries = false;
        both.append({60, 60});
        both.with_queries = true;
        if (loaded) {
            std::vector<SequenceView> views;
            for (int layer = 0; layer < 3; ++layer)
                views.push_back(both.host.view(layer, both.ids[1]));
            both.device.remove(1);
            ASSERT_EQ(both.device.load(views), 1);
            both.device.reserve(1, 600);
        }
        expect_step_undone(both, 60);
    }
}

/// An append from before a truncation is not undone in place of one that brought no queries.
TEST_F(DeviceCacheArguments, LayersKeepQueriesOfTokensThatWereCut) {
    BothCaches both(balanced_config(3), 600);
    both.append({60, 60});
    both.append({5, 5});
    for (const int slot : {0, 1}) both.truncate(slot, 60);
    both.rewind({60, 60});
    both.with_queries = false;
    expect_step_undone(both, 60);
}

/// A layer that is many steps ahead cannot go back: the slot takes nothing, and is not silent about it.
TEST_F(DeviceCacheArguments, LayersThatCannotGoBack) {
    CacheConfig config = DeviceCacheArguments::config();
    config.layers = 2;
    BothCaches both(config, 600);
    both.write_rows({200, 200}, 200);
    for (int i = 0; i < 3; ++i) both.device.append(both.device_append(0, 200));
    both.device.append(both.device_append(1, 200));
    both.poke(1, 3, 1, 5, INFINITY);
    both.write_rows({200, 200}, 200);
    both.device.append(both.device_append(1, 200));
    expect_refused<InvalidArgument>([&] { both.device.verify(); },
                                    "is inf; values must be finite and within fp16 (65504); the "
                                    "layers of slot 1 have different lengths");
    for (int i = 0; i < 2; ++i)
        expect_refused<InvalidArgument>([&] { both.device.verify(); }, "truncate the slot to 0");
    both.poke(1, 3, 1, 5, 1.0f);
    both.write_rows({0, 1}, 1);
    both.device.append(both.device_append(1, 1));
    EXPECT_EQ(both.device.length(1, 1), 200);
    both.device.truncate(1, 0);
    both.device.truncate(0, 0);
    both.append({200, 200});
    both.append({200, 200});
    both.expect_same();
}

/// Nor can one that has counted the queries of two steps more, or they would count twice; in the sink none count.
TEST_F(DeviceCacheArguments, QueriesOfTwoStepsCannotGoBack) {
    for (const int before : {0, 60}) {
        SCOPED_TRACE(before);
        BothCaches both(balanced_config(2), 600);
        if (before > 0) both.append({before, before});
        both.write_rows({0, 20}, 20);
        for (int i = 0; i < 2; ++i) both.device.append(both.device_append(0, 20));
        both.poke(1, before + 3, 1, 5, NAN);
        both.write_rows({0, 20}, 20);
        both.device.append(both.device_append(1, 20));
        const std::string uneven = "the layers of slot 1 have different lengths";
        if (before == 0) {
            expect_refused<InvalidArgument>([&] { both.device.verify(); }, "slot 1, layer 1, K of");
            both.device.verify();
        } else {
            for (int i = 0; i < 2; ++i)
                expect_refused<InvalidArgument>([&] { both.device.verify(); }, uneven);
            EXPECT_EQ(both.device.length(1, 0), before + 40);
            both.truncate(1, 0);
            both.rewind({before, 0});
        }
        for (int layer = 0; layer < 2; ++layer) EXPECT_EQ(both.device.length(1, layer), 0);
        both.poke(1, before + 3, 1, 5, 1.0f);
        for (int i = 0; i < 5; ++i) both.append({60, 60});
        both.expect_same();
    }
}

TEST_F(DeviceCacheArguments, NumbersOfTokens) {
    BothCaches both(config(), 300);
    both.append({20, 20});
    for (const int wrong : {-1, 11, 1 << 30}) {
        both.write_rows({10, 10}, 10);
        const int counts[] = {10, wrong};
        DeviceBuffer tokens(sizeof counts);
        tokens.write(counts, sizeof counts);
        cuda::DeviceAppend append = both.device_append(0, 10);
        append.tokens = tokens.as<std::int32_t>();
        both.device.append(append);
        expect_refused<InvalidArgument>(
            [&] { both.device.verify(); },
            "slot 1, layer 0, brought " + std::to_string(wrong) +
                " tokens at token 20; supported are 0 to max_tokens, 10");
        both.device.verify();
        EXPECT_EQ(both.device.length(1, 0), 20);
        both.device.truncate(0, 20);
    }
    both.append({5, 100});
    both.expect_same();
}

TEST_F(DeviceCacheArguments, RemovedSlotsHaveNothingToTell) {
    BothCaches both(config(), 300);
    both.poke(1, 0, 0, 0, NAN);
    both.write_rows({1, 1}, 1);
    both.device.append(both.device_append(0, 1));
    both.device.remove(1);
    both.device.verify();
    EXPECT_EQ(both.device.length(0, 0), 1);
}

/// A host's long chunk fills the window that the device has: fewer tokens at a time find room.
TEST_F(DeviceCacheArguments, WindowsThatAreFull) {
    CacheConfig config = DeviceCacheArguments::config();
    config.max_append = 64;
    BothCaches both(config, 600);
    both.device.remove(0);
    const TestSequence source(config, 600, 3);
    bool refused = false;
    for (int length = 600; !refused; length -= 8) {
        ASSERT_GT(length, 100);
        Cache host(config);
        const SequenceId id = host.create();
        const AppendRows rows = source.rows(id, 0, length);
        host.append(0, {&rows, 1});
        const SequenceView view = host.view(0, id);
        int slot = 0;
        try {
            slot = both.device.load({&view, 1});
        } catch (const InvalidArgument& error) {
            EXPECT_NE(std::string(error.what()).find("pages with the next token"),
                      std::string::npos);
            continue;
        }
        ASSERT_EQ(slot, 0);
        both.device.reserve(0, 700);
        both.write_rows({64, 0}, 64);
        both.device.append(both.device_append(0, 64));
        expect_refused<OutOfPages>([&] { both.device.verify(); }, "append fewer at a time");
        refused = true;
        for (int i = 0; i < 70; ++i) {
            both.write_rows({1, 0}, 1);
            both.device.append(both.device_append(0, 1));
        }
        both.device.verify();
        EXPECT_EQ(both.device.length(0, 0), length + 70);
    }
}

TEST_F(DeviceCacheArguments, PagesThatWereNotReserved) {
    cuda::DeviceCache cache(config());
    BothCaches rows(config(), 600); // for its memory
    cache.create();
    rows.write_rows({200, 0}, 200);
    cache.append(rows.device_append(0, 200));
    cache.verify(); // what stays in fp16 needs none
    cache.append(rows.device_append(0, 200));
    expect_refused<OutOfPages>([&] { cache.verify(); }, "slot 0, layer 0, at token 200");
    EXPECT_EQ(cache.length(0, 0), 200);
    cache.reserve(0, 600);
    cache.append(rows.device_append(0, 200));
    cache.verify();
    EXPECT_EQ(cache.length(0, 0), 400);
}

/// More tokens than the cache was made for are a lack of pages too, also where no window is a ring.
TEST_F(DeviceCacheArguments, PagesBeyondMaxTokens) {
    CacheConfig config = small_config("f16", 64);
    config.max_sequences = 2;
    BothCaches rows(config, 600); // for its memory
    config.max_tokens = 512;
    cuda::DeviceCache cache(config);
    cache.create();
    cache.reserve(0, 512);
    rows.write_rows({480, 0}, 480);
    cache.append(rows.device_append(0, 480));
    cache.verify();
    rows.write_rows({100, 0}, 100);
    cache.append(rows.device_append(0, 100));
    expect_refused<OutOfPages>([&] { cache.verify(); },
                               "slot 0, layer 0, at token 480 had no pages; reserve() them before");
    EXPECT_EQ(cache.length(0, 0), 480);
    rows.write_rows({32, 0}, 32);
    cache.append(rows.device_append(0, 32));
    cache.verify();
    EXPECT_EQ(cache.length(0, 0), 512);
}

/// A slot whose tables still name the pages and centres of the sequence before, which are another's now.
TEST_F(DeviceCacheArguments, PagesThatAreAnotherSequences) {
    CacheConfig config = DeviceCacheArguments::config();
    config.transform = CacheConfig::from_preset(find_preset("base"), 1, 2, 64).transform;
    config.transform.centre_epoch = 64;
    for (const int tokens : {200, 20}) { // in two launches, and in one
        SCOPED_TRACE(tokens);
        cuda::DeviceCache cache(config);
        BothCaches rows(config, 600); // for its memory
        const auto append = [&](const std::vector<int>& counts, int most) {
            rows.write_rows(counts, most);
            cache.append(rows.device_append(0, most));
        };
        EXPECT_EQ(cache.create(), 0);
        cache.reserve(0, 600);
        cache.remove(0);
        EXPECT_EQ(cache.create(), 0);
        EXPECT_EQ(cache.create(), 1);
        cache.reserve(1, 600);
        append({0, 400}, 400);
        append({300, 160}, 300);
        append({0, 1}, 1);
        cache.verify();
        const Contents before = contents(config, cache.fetch(1).view(0));
        append({tokens, 0}, tokens);
        expect_refused<OutOfPages>([&] { cache.verify(); }, "slot 0, layer 0, at token 300");
        EXPECT_TRUE(contents(config, cache.fetch(1).view(0)) == before);
    }
}

TEST_F(DeviceCacheArguments, Truncate) {
    BothCaches both(config(), 500);
    both.append({400, 20});
    both.append({10, 10});
    expect_refused<InvalidArgument>([&] { both.device.truncate(0, 200); },
                                    "its tokens from 288 on are in fp16");
    const auto refused = [&](std::vector<int> slots, std::vector<std::int64_t> lengths,
                             const char* text) {
        expect_refused<InvalidArgument>([&] { both.device.truncate(slots, lengths); }, text);
        EXPECT_EQ(both.device.length(0, 0), 410);
        EXPECT_EQ(both.device.length(1, 0), 30);
    };
    refused({1, 0}, {0, 200}, "its tokens from 288 on are in fp16");
    refused({1, 1}, {20, 10}, "slot 1 is named twice");
    refused({1, 0}, {20}, "lengths");
    both.device.truncate(std::vector<int>(), std::vector<std::int64_t>());
    both.device.truncate(std::vector{1, 0}, std::vector<std::int64_t>{20, 409});
    EXPECT_EQ(both.device.length(0, 0), 409);
    EXPECT_EQ(both.device.length(1, 0), 20);
    both.device.truncate(0, 0);
    EXPECT_EQ(both.device.length(0, 0), 0);
}

TEST_F(DeviceCacheArguments, ViewsOfAnotherConfig) {
    BothCaches both(config(), 500);
    both.append({400, 20});
    both.append({1, 1});
    SequenceView view = both.host.view(0, both.ids[0]);
    both.device.remove(0);
    expect_refused<InvalidArgument>([&] { both.device.load({}); }, "0 views to load");
    SequenceView changed = view;
    changed.length = 3000;
    expect_refused<InvalidArgument>([&] { both.device.load({&changed, 1}); }, "layer 0");
    changed = view;
    changed.quantized.tokens -= 1;
    expect_refused<InvalidArgument>([&] { both.device.load({&changed, 1}); }, "layer 0");
    EXPECT_EQ(both.device.load({&view, 1}), 0);
    both.append({5, 5});
    both.expect_same();
}

/// Every part of a view that could lead load() or attention astray.
TEST_F(DeviceCacheArguments, ViewsThatNoCacheShows) {
    CacheConfig config = DeviceCacheArguments::config();
    config.transform = CacheConfig::from_preset(find_preset("base"), 1, 2, 64).transform;
    config.transform.centre_epoch = 64;
    BothCaches both(config, 500);
    both.append({400, 20});
    both.append({1, 1});
    const SequenceView view = both.host.view(0, both.ids[0]);
    ASSERT_GT(view.quantized.pages.size(), 2u);
    ASSERT_EQ(view.transforms.size(), 2u);
    both.device.remove(0);
    std::vector<const std::byte*> pages(view.quantized.pages.begin(), view.quantized.pages.end());
    std::vector<KeyTransform> transforms(view.transforms.begin(), view.transforms.end());
    const std::vector<float> channels(64, 1.0f);
    const auto expect_not_loaded = [&](const std::string& message,
                                       const std::function<void(SequenceView&)>& change) {
        SequenceView changed = view;
        change(changed);
        expect_refused<InvalidArgument>([&] { both.device.load({&changed, 1}); }, message);
    };
    expect_not_loaded("1 key transforms for 2 KV heads",
                      [&](auto& v) { v.transforms = v.transforms.first(1); });
    expect_not_loaded("head stride", [](auto& v) {
        v.quantized.head_stride = v.quantized.page_bytes - kPageAlignment;
    });
    expect_not_loaded("head stride", [](auto& v) { v.recent.head_stride = 0; });
    expect_not_loaded("bytes a KV head as its quantized run where a page has",
                      [](auto& v) { v.quantized.page_bytes += kPageAlignment; });
    expect_not_loaded("bytes a KV head as its recent run",
                      [](auto& v) { v.recent.page_bytes = 0; });
    pages[1] = nullptr;
    expect_not_loaded("null page", [&](auto& v) { v.quantized.pages = pages; });
    pages[1] = view.quantized.pages[1] + 1;
    expect_not_loaded("multiples of 64", [&](auto& v) { v.quantized.pages = pages; });
    expect_not_loaded("length is -1", [](auto& v) { v.length = -1; });
    expect_not_loaded("no whole pages behind a sink", [](auto& v) {
        v.sink = {};
        v.quantized.first_token = 0;
    });
    expect_not_loaded("here nothing is dropped", [](auto& v) { v.sink = {}; });
    expect_not_loaded("here nothing is dropped", [](auto& v) {
        v.sink = {};
        v.quantized.pages = v.quantized.pages.subspan(2);
        v.quantized.first_token += 64;
        v.quantized.tokens -= 64;
    });
    expect_not_loaded("recent run", [](auto& v) { v.recent.tokens -= 1; });
    expect_not_loaded("quantized run", [](auto& v) {
        v.quantized.pages = v.quantized.pages.first(v.quantized.pages.size() - 1);
        v.quantized.tokens -= kPageTokens;
        v.recent.first_token -= kPageTokens;
        v.centres.first_page = 0;
        v.quantized.tokens += kPageTokens;
    });
    expect_not_loaded("centres for epochs of 3 pages", [](auto& v) { v.centres.epoch_pages += 1; });
    expect_not_loaded("centres of keys where", [](auto& v) { v.centres = {}; });
    expect_not_loaded("other transforms", [](auto& v) { v.transforms = {}; });
    for (KeyTransform& head : transforms) head.rotate = !head.rotate;
    expect_not_loaded("other transforms", [&](auto& v) { v.transforms = transforms; });
    transforms.assign(view.transforms.begin(), view.transforms.end());
    transforms[1].rotate = !transforms[1].rotate;
    expect_not_loaded("rotate all or none", [&](auto& v) { v.transforms = transforms; });
    transforms[1] = view.transforms[1];
    transforms[1].centre = channels.data();
    expect_not_loaded("centre besides", [&](auto& v) { v.transforms = transforms; });
    EXPECT_EQ(both.device.load({&view, 1}), 0);
    both.append({5, 5});
    both.expect_same();
}

/// With 4 KV heads of 128 channels they are as far apart in the host's pool.
TEST_F(DeviceCacheArguments, PagesOfAnotherPreset) {
    const auto config = [](std::string_view preset) {
        CacheConfig result = CacheConfig::from_preset(find_preset(preset), 1, 4, 128);
        result.max_tokens = 500;
        result.max_sequences = 1;
        return result;
    };
    BothCaches both(config("k8v8"), 500);
    both.append({400});
    both.append({1});
    const SequenceView view = both.host.view(0, both.ids[0]);
    ASSERT_FALSE(view.quantized.pages.empty());
    cuda::DeviceCache other(config("small"));
    expect_refused<InvalidArgument>(
        [&] {
            other.load({&view, 1});
        },
        "pages of 8704 bytes a KV head as its quantized run where a page has 3072");
}

/// A window drops what no query will see, and no token more.
TEST_F(DeviceCacheArguments, ViewsThatLackTokensOfTheirWindow) {
    CacheConfig config = DeviceCacheArguments::config();
    config.sliding_window = {256};
    BothCaches both(config, 500);
    both.append({400, 100});
    both.append({1, 1});
    const SequenceView view = both.host.view(0, both.ids[0]);
    ASSERT_EQ(view.quantized.first_token, 128); // of the 145 that the append found outside
    const SequenceView inside = both.host.view(0, both.ids[1]);
    both.device.remove(0);
    SequenceView changed = view;
    changed.quantized.pages = changed.quantized.pages.subspan(1);
    changed.quantized.first_token += kPageTokens;
    changed.quantized.tokens -= kPageTokens;
    expect_refused<InvalidArgument>(
        [&] {
            both.device.load({&changed, 1});
        },
        "lacks its first 160 tokens, and here no more than 146 is");
    changed = inside;
    changed.sink = {};
    expect_refused<InvalidArgument>(
        [&] {
            both.device.load({&changed, 1});
        },
        "lacks its first 32 tokens, and here nothing is dropped");
    EXPECT_EQ(both.device.load({&view, 1}), 0);
    both.append({5, 5});
    both.expect_same();
}

/// Nor views of a config with other calibrated transforms: attention takes those of the cache.
TEST_F(DeviceCacheArguments, ViewsThatNoCacheShowsOfThisCalibration) {
    std::vector<float> channels(3 * 64);
    for (std::size_t i = 0; i < channels.size(); ++i)
        channels[i] = 0.5f + 0.01f * static_cast<float>(i);
    CacheConfig config = DeviceCacheArguments::config();
    config.layers = 2;
    config.transform.norm = KeyNormPolicy::calibrated;
    for (int head = 0; head < 4; ++head) // the second layer's keys have no centre
        config.calibrated.push_back({channels.data(), head < 2 ? channels.data() + 64 : nullptr,
                                     channels.data() + 128, true});
    BothCaches both(config, 500);
    both.append({400, 20});
    both.append({1, 1});
    const SequenceView views[] = {both.host.view(0, both.ids[0]), both.host.view(1, both.ids[0])};
    ASSERT_GT(views[1].quantized.tokens, 0);
    const cuda::HostSequence fetched = both.device.fetch(0);
    both.device.remove(0);
    const auto expect_not_loaded = [&](const std::string& message,
                                       const std::function<void(KeyTransform&)>& change) {
        std::vector<KeyTransform> transforms(views[1].transforms.begin(),
                                             views[1].transforms.end());
        change(transforms[1]);
        SequenceView changed[] = {views[0], views[1]};
        changed[1].transforms = transforms;
        expect_refused<InvalidArgument>([&] { both.device.load(changed); }, message);
    };
    const std::string another = "the view of layer 1 went through another calibration";
    std::vector<float> other(channels.begin(), channels.begin() + 64);
    other[63] += 0.01f;
    expect_not_loaded(another, [&](auto& head) { head.norm = other.data(); });
    expect_not_loaded(another, [](auto& head) { head.norm = nullptr; });
    expect_not_loaded(another, [&](auto& head) { head.centre = other.data(); });
    expect_not_loaded(another, [](auto& head) { head.value_centre = head.norm; });
    SequenceView untransformed[] = {views[0], views[1]};
    untransformed[1].transforms = {};
    expect_refused<InvalidArgument>([&] { both.device.load(untransformed); },
                                    "the view of layer 1 went through other transforms");
    // A device shows a centre of zeros where there is none.
    const SequenceView shown[] = {fetched.view(0), fetched.view(1)};
    EXPECT_EQ(both.device.load(shown), 0);
    both.device.remove(0);
    EXPECT_EQ(both.device.load(views), 0);
    both.append({5, 5});
    EXPECT_TRUE(contents(config, both.device.fetch(0).view(1)).quantized ==
                contents(both.host, both.ids[0], 1).quantized);
}

} // namespace
} // namespace innerkv::test
