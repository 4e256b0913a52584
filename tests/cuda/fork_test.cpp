// SPDX-License-Identifier: Apache-2.0
// Slots that share pages and change places hold what the host's forks hold, and go on apart.
#include <gtest/gtest.h>

#include <string>

#include "both_caches.h"

namespace innerkv::test {
namespace {

class DeviceCacheForks : public OnDevice {
protected:
    static CacheConfig config_of(const std::string& preset) {
        CacheConfig config = CacheConfig::from_preset(find_preset(preset), 2, 2, 64);
        config.max_tokens = 2700;
        config.max_sequences = 3;
        config.max_append = 400;
        config.sliding_window = {0, 300};
        return config;
    }
};

TEST_F(DeviceCacheForks, GoOnApart) {
    for (const char* preset : {"base", "hybrid", "k8v8", "f16"}) {
        SCOPED_TRACE(preset);
        BothCaches both(config_of(preset), 900);
        both.append({400, 250, 300});
        both.append({31, 20, 1});
        both.reorder({1, 1, 0});
        both.expect_same();
        both.append({100, 150, 33});
        both.append({1, 1, 1});
        both.expect_same();
        both.reorder({2, 0, 1});
        both.append({40, 2, 3});
        both.append({1, 1, 1});
        both.expect_same();
    }
}

TEST_F(DeviceCacheForks, OneBeginsAnew) {
    BothCaches both(config_of("base"), 900);
    both.append({400, 400, 10});
    both.append({1, 1, 1});
    both.reorder({0, 0, 1});
    both.truncate(0, 0);
    both.append({300, 1, 1});
    both.append({100, 50, 60});
    both.append({1, 1, 1});
    both.expect_same();
}

/// Slots change places with some that were never in use.
TEST_F(DeviceCacheForks, BesideSlotsThatWereNeverUsed) {
    cuda::DeviceCache cache(config_of("base"));
    EXPECT_EQ(cache.create(), 0);
    EXPECT_EQ(cache.create(), 1);
    cache.reserve(1, 40);
    const int second[] = {1};
    cache.reorder(second);
    EXPECT_EQ(cache.length(0, 0), 0);
    EXPECT_THROW(static_cast<void>(cache.length(1, 0)), InvalidArgument);
    EXPECT_EQ(cache.create(), 1);
    EXPECT_EQ(cache.create(), 2);
    EXPECT_EQ(cache.usage().quantized_pages, 0);
}

/// Pages that only removed slots share are free for the forks of the one that stays.
TEST_F(DeviceCacheForks, TakePagesThatRemovedSlotsShared) {
    CacheConfig config = config_of("base");
    config.transform = {};
    config.max_tokens = 32 * 47; // of which as many page groups are quantized
    config.sliding_window = {0, 0};
    const auto tokens_of = [&](int pages) {
        return config.sink_tokens + config.recent_tokens + 32 * pages;
    };
    cuda::DeviceCache cache(config);
    BothCaches rows(config, 400); // for its memory
    EXPECT_EQ(cache.create(), 0);
    cache.reserve(0, tokens_of(8));
    for (const int tokens : {tokens_of(8), 1}) {
        rows.write_rows({tokens, 0, 0}, tokens);
        for (int layer = 0; layer < 2; ++layer) cache.append(rows.device_append(layer, tokens));
    }
    cache.verify();
    EXPECT_EQ(cache.fork(0), 1); // the same 8 groups
    EXPECT_EQ(cache.create(), 2);
    cache.reserve(2, tokens_of(22)); // 17 are left
    const int last_twice[] = {2, 2};
    cache.reorder(last_twice);
    cache.remove(0);
    cache.remove(1);
    EXPECT_EQ(cache.create(), 0);
    cache.reserve(0, config.max_tokens); // all have come back
}

TEST_F(DeviceCacheForks, AllBeginAnew) {
    BothCaches both(config_of("base"), 900);
    both.append({400, 400, 10});
    both.reorder({0, 0, 0});
    both.device.truncate(std::vector{2, 0, 1}, std::vector<std::int64_t>{0, 0, 0});
    for (const SequenceId id : both.ids) both.host.truncate(id, 0);
    both.rewind({0, 0, 0});
    both.append({300, 1, 1});
    both.append({200, 50, 60});
    both.append({1, 1, 1});
    both.expect_same();
}

TEST_F(DeviceCacheForks, WithoutPagesForAllNoneBeginsAnew) {
    CacheConfig config = config_of("base");
    config.max_sequences = 4;
    config.max_tokens = 32 * 97; // of which as many page groups are quantized, 24 for each slot
    BothCaches both(config, 900);
    both.append({400, 1, 1, 1});
    both.append({200, 1, 1, 1});
    both.device.remove(1);
    both.device.remove(2);
    EXPECT_EQ(both.device.fork(0), 1);
    EXPECT_EQ(both.device.fork(0), 2);
    both.device.reserve(3, 1100); // what is left is for one more slot
    EXPECT_THROW(both.device.truncate(std::vector{0, 1, 2}, std::vector<std::int64_t>{599, 0, 0}),
                 OutOfPages);
    for (const int slot : {0, 1, 2}) EXPECT_EQ(both.device.length(slot, 0), 600);
    both.device.truncate(std::vector{0, 1}, std::vector<std::int64_t>{599, 0});
    EXPECT_EQ(both.device.length(0, 0), 599);
    EXPECT_EQ(both.device.length(1, 0), 0);
}

TEST_F(DeviceCacheForks, Refused) {
    CacheConfig config = config_of("base");
    config.max_tokens = 1000;
    cuda::DeviceCache cache(config);
    EXPECT_THROW(cache.fork(0), InvalidArgument);
    EXPECT_EQ(cache.create(), 0);
    cache.reserve(0, 900);
    EXPECT_THROW(cache.fork(0), OutOfPages); // nothing is filled, so nothing is shared
    const int twice[] = {0, 0};
    EXPECT_THROW(cache.reorder(twice), OutOfPages);
    EXPECT_EQ(cache.create(), 1);
    EXPECT_EQ(cache.create(), 2);
    EXPECT_THROW(cache.fork(1), OutOfPages);
    const int four[] = {0, 1, 2, 0};
    EXPECT_THROW(cache.reorder(four), OutOfPages);
    const int none[] = {3};
    EXPECT_THROW(cache.reorder(none), InvalidArgument);
    const int last[] = {2};
    cache.reorder(last);
    cache.reserve(0, 900); // slot 0 went, and its pages with it
    EXPECT_EQ(cache.create(), 1);
}

} // namespace
} // namespace innerkv::test
