// SPDX-License-Identifier: Apache-2.0
// A build without CUDA: says so, everywhere.
#include <gtest/gtest.h>

#include "innerkv/cuda_cache.h"

namespace innerkv::test {
namespace {

TEST(WithoutCuda, ThereAreNoDevices) {
    EXPECT_TRUE(cuda::devices().empty());
    EXPECT_NE(cuda::unavailable_reason().find("no CUDA"), std::string::npos);
}

TEST(WithoutCuda, ObjectsAreRefusedWithTheReason) {
    const AttentionShape shape{4, 2, find_preset("base").format(64)};
    try {
        const cuda::Attention attention(shape, {});
        FAIL() << "an Attention was made";
    } catch (const cuda::Unavailable& error) {
        EXPECT_NE(std::string(error.what()).find(cuda::unavailable_reason()), std::string::npos);
    }
    EXPECT_THROW(cuda::DeviceSequences(shape, {}), cuda::Unavailable);
    EXPECT_THROW(cuda::DeviceCache(CacheConfig::from_preset(find_preset("base"), 2, 2, 64)),
                 cuda::Unavailable);
}

} // namespace
} // namespace innerkv::test
