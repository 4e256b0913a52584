// SPDX-License-Identifier: Apache-2.0
#include "comparison.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>

#include "innerkv/codec.h"

namespace innerkv::runner::test {

double mean_difference(std::span<const float> expected, std::span<const float> actual) {
    EXPECT_EQ(expected.size(), actual.size());
    double square = 0.0;
    double wrong = 0.0;
    for (std::size_t i = 0; i < std::min(expected.size(), actual.size()); ++i) {
        square += std::pow(double{expected[i]}, 2);
        wrong += std::pow(double{expected[i]} - double{actual[i]}, 2);
    }
    return std::sqrt(wrong / square);
}

std::vector<float> layer_keys(const Session& session, const ModelInfo& info, int layer) {
    std::vector<float> keys;
    const auto dim = static_cast<std::size_t>(info.head_dim);
    const SequenceView view = session.view(layer);
    for (const PageRun* run : {&view.sink, &view.recent}) {
        for (std::int64_t row = 0; row < run->tokens; ++row) {
            for (int head = 0; head < info.kv_heads; ++head) {
                const auto* const key =
                    reinterpret_cast<const std::uint16_t*>(
                        run->pages[static_cast<std::size_t>(row / kPageTokens)] +
                        static_cast<std::size_t>(head) * run->head_stride) +
                    static_cast<std::size_t>(row % kPageTokens) * dim;
                std::transform(key, key + dim, std::back_inserter(keys), float_from_f16);
            }
        }
    }
    return keys;
}

} // namespace innerkv::runner::test
