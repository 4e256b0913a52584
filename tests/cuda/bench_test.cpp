// SPDX-License-Identifier: Apache-2.0
// `innerkv bench attention --device cuda` judges what the device computes; no times are asserted.
#include <gtest/gtest.h>

#include "device.h"
#include "device_bench.h"

namespace innerkv::test {
namespace {

class DeviceBench : public OnDevice {};

/// The first sequence and the last are judged, each on what its own slot holds.
TEST_F(DeviceBench, JudgesEverySequenceOfABatch) {
    for (const int tokens : {1, 3})
        for (const int batch : {1, 2, 3}) {
            SCOPED_TRACE(testing::Message() << batch << " sequences, " << tokens << " tokens");
            bench::AttentionBenchOptions options;
            options.attention.head_dim = 64;
            options.attention.q_heads = 4;
            options.attention.kv_heads = 2;
            options.attention.context = 300;
            options.attention.batch = batch;
            options.attention.tokens = tokens;
            options.presets = {"base", "f16"};
            options.repeats = 1;
            const bench::AttentionBenchResult result = bench::run_device_attention_bench(options);
            ASSERT_EQ(result.results.size(), 2u);
            for (const bench::ContenderResult& preset : result.results) {
                EXPECT_GT(preset.cosine, 0.9) << preset.name;
                EXPECT_GE(preset.arithmetic_error, 0) << preset.name;
                EXPECT_LT(preset.arithmetic_error, 0.01) << preset.name;
            }
        }
}

} // namespace
} // namespace innerkv::test
