// SPDX-License-Identifier: Apache-2.0
// What a device cache refuses, with a message that names the fault, and that it goes on afterwards.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>

#include "both_caches.h"

namespace innerkv::test {
namespace {

class DeviceCacheArguments : public OnDevice {
protected:
    static CacheConfig config() {
        CacheConfig config = small_config("base", 64);
        config.max_sequences = 2;
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

TEST_F(DeviceCacheArguments, Slots) {
    cuda::DeviceCache cache(config());
    expect_refused<InvalidArgument>([&] { cache.reserve(0, 10); }, "slot 0 is not in use");
    EXPECT_EQ(cache.create(), 0);
    EXPECT_EQ(cache.create(), 1);
    expect_refused<OutOfPages>([&] { cache.create(); }, "max_sequences = 2");
    expect_refused<InvalidArgument>([&] { cache.reserve(0, -1); }, "length is -1");
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
    expect_refused<InvalidArgument>(append([](auto& a) { a.k.head_stride = 63; }),
                                    "k's head_stride is 63");
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
    both.device.truncate({}, {});
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

} // namespace
} // namespace innerkv::test
