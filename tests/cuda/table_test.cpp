// SPDX-License-Identifier: Apache-2.0
// Both tables of kernels have every preset; other pairs of codecs are refused by name. No device is needed.
#include <gtest/gtest.h>

#include "cuda/kernels/table.h"
#include "cuda/prefill/kernels.h"
#include "fixture.h"
#include "innerkv/error.h"

namespace innerkv::test {
namespace {

TEST(CudaKernels, OfEveryPreset) {
    for (const std::string_view name : preset_names())
        for (const int head_dim : kHeadDims) {
            SCOPED_TRACE(testing::Message() << name << " " << head_dim);
            const PageFormat format = find_preset(name).format(head_dim);
            for (const bool packed : {true, false}) {
                const cuda::KernelEntry entry = cuda::find_kernel(format, packed);
                EXPECT_NE(entry.function, nullptr);
                if (!format.quantized()) continue;
                EXPECT_TRUE(entry.k == format.k && entry.v == format.v);
            }
        }
}

TEST(CudaKernels, OfEveryPresetForChunks) {
    if (cuda::prefill_plan_kernel().function == nullptr)
        GTEST_SKIP() << "no kernels for chunks in this program";
    for (const std::string_view name : preset_names())
        for (const int head_dim : kHeadDims) {
            SCOPED_TRACE(testing::Message() << name << " " << head_dim);
            const PageFormat format = find_preset(name).format(head_dim);
            EXPECT_NE(cuda::expand_kernel_of(format).function, nullptr);
            EXPECT_NE(cuda::attend_kernel_of(format.blocks()).function, nullptr);
        }
}

TEST(CudaKernels, OtherPairsAreRefused) {
    for (const auto& [k, v] : {std::pair{affine(2), affine(2)}, {affine(3), affine(4)}}) {
        const PageFormat format{k, v, 128};
        EXPECT_EQ(cuda::expand_kernel_of(format).function, nullptr);
        try {
            static_cast<void>(cuda::find_kernel(format, true));
            FAIL() << "not refused";
        } catch (const InvalidArgument& error) {
            const std::string expected = "keys of affine " + std::to_string(k.bits) +
                                         " and values of affine " + std::to_string(v.bits) +
                                         " bits; supported are";
            EXPECT_NE(std::string(error.what()).find(expected), std::string::npos) << error.what();
        }
    }
}

} // namespace
} // namespace innerkv::test
