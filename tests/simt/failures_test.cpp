// SPDX-License-Identifier: Apache-2.0
// Calls of the CUDA runtime that fail in the middle of ours: slots and pages are as they were.
#include <gtest/gtest.h>

#include "both_caches.h"
#include "failures.h"

namespace innerkv::test {
namespace {

class DeviceFailures : public OnDevice {
protected:
    void TearDown() override { simt::writes_until_failure = -1; }

    static CacheConfig config() {
        CacheConfig config = CacheConfig::from_preset(find_preset("base"), 2, 2, 64);
        config.max_tokens = 1400;
        config.max_sequences = 2;
        config.sliding_window = {0, 300};
        return config;
    }

    /// Fails at each of its copies in turn, then succeeds; every time all that slot 0 does not have is there for
    /// another slot.
    static void expect_nothing_is_left(BothCaches& both, const std::function<int()>& call) {
        const std::size_t before = both.device.usage().bytes_in_use;
        for (int writes = 0;; ++writes) {
            SCOPED_TRACE(writes);
            ASSERT_LT(writes, 200);
            simt::writes_until_failure = writes;
            try {
                const int slot = call();
                const bool failed = simt::writes_until_failure < 0;
                simt::writes_until_failure = -1;
                ASSERT_FALSE(failed);
                both.device.remove(slot);
                break; // there is no such copy
            } catch (const cuda::DeviceError&) {
            }
            simt::writes_until_failure = -1;
            EXPECT_EQ(both.device.usage().bytes_in_use, before);
            const int other = both.device.create();
            both.device.reserve(other, 600);
            both.device.remove(other);
        }
    }
};

TEST_F(DeviceFailures, AForkLeavesNothing) {
    BothCaches both(config(), 700);
    both.append({400, 1});
    both.append({1, 1});
    both.device.remove(1);
    expect_nothing_is_left(both, [&] { return both.device.fork(0); });
}

TEST_F(DeviceFailures, ALoadLeavesNothing) {
    BothCaches both(config(), 700);
    both.append({400, 300});
    both.append({1, 1});
    both.device.remove(1);
    const SequenceView views[] = {both.host.view(0, both.ids[1]), both.host.view(1, both.ids[1])};
    expect_nothing_is_left(both, [&] { return both.device.load(views); });
}

} // namespace
} // namespace innerkv::test
