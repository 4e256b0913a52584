// SPDX-License-Identifier: Apache-2.0
// Kernels on a device against the fp64 reference: every preset, head dimension, group of query heads, transform.
#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "batches.h"
#include "device.h"

namespace innerkv::test {
namespace {

using Format = std::tuple<std::string_view, int>;
std::string format_name(const testing::TestParamInfo<Format>& info) {
    return std::string(std::get<0>(info.param)) + "_" + std::to_string(std::get<1>(info.param));
}

class DeviceFormats : public OnDevice, public testing::WithParamInterface<Format> {
protected:
    static PageFormat format() {
        return find_preset(std::get<0>(GetParam())).format(std::get<1>(GetParam()));
    }
};

INSTANTIATE_TEST_SUITE_P(All, DeviceFormats,
                         testing::Combine(testing::ValuesIn(preset_names()),
                                          testing::ValuesIn(kHeadDims)),
                         format_name);

TEST_P(DeviceFormats, EveryGroupSizeFrom1To16) {
    for (int group = 1; group <= 16; ++group) {
        SCOPED_TRACE(group);
        Batch batch(shape_of(format(), 2 * group, 2));
        SequenceSpec spec = spec_for(format(), 32 * (group % 5) + 224);
        if (format().quantized()) spec.transform = {true, true, true, true};
        spec.epoch_pages = 3;
        batch.add(spec);
        spec.sink = spec.recent = 0;
        if (format().quantized()) batch.add(spec); // quantized pages alone
        expect_device_close_to_reference(batch);
    }
}

TEST_P(DeviceFormats, ChunksOf1To16QueryTokens) {
    for (int tokens = 1; tokens <= 16; ++tokens) {
        SCOPED_TRACE(tokens);
        Batch batch(shape_of(format(), 4, 2));
        batch.add(spec_for(format(), 96), tokens);
        expect_device_close_to_reference(batch);
    }
}

class DeviceTransforms : public OnDevice, public testing::WithParamInterface<int> {};
INSTANTIATE_TEST_SUITE_P(AllCombinations, DeviceTransforms, testing::Range(0, 16));

TEST_P(DeviceTransforms, MatchReference) {
    const int bits = GetParam();
    for (const int head_dim : {64, 80, 192, 256})
        for (const char* name : {"base", "hybrid", "k8v8"}) {
            SCOPED_TRACE(std::string(name) + " " + std::to_string(head_dim));
            Batch batch = transformed(find_preset(name).format(head_dim), bits);
            expect_device_close_to_reference(batch);
        }
}

class DeviceEpochs : public OnDevice {};

TEST_F(DeviceEpochs, OfAnyLengthBeginningAnywhere) {
    for (const EpochCase& tested : kEpochCases) {
        for (const int head_dim : {64, 80}) {
            SCOPED_TRACE(testing::Message() << tested.epoch_pages << " pages from "
                                            << tested.first_page << ", dimension " << head_dim);
            Batch batch = with_epochs(tested, head_dim);
            expect_device_close_to_reference(batch);
        }
    }
}

/// One block of threads takes more epochs than it keeps offsets for: 264 blocks, 32 KV heads.
TEST_F(DeviceEpochs, MoreThanABlockKeepsAtATime) {
    Batch batch(shape_of(find_preset("base").format(64), 64, 64));
    SequenceSpec spec;
    spec.quantized = 32 * 300;
    spec.epoch_pages = 1;
    spec.transform = {false, true, true, false};
    batch.add(spec);
    batch.add(spec);
    expect_device_close_to_reference(batch);
}

class DeviceRowTypes : public OnDevice {};

/// Queries that fp16 and bf16 hold exactly: then what is computed is the same, and only outputs are rounded.
TEST_F(DeviceRowTypes, QueriesAndOutputsInF16AndBf16) {
    for (const RowType type : {RowType::f16, RowType::bf16}) {
        Batch batch(shape_of(find_preset("base").format(128), 8, 2));
        SequenceSpec spec;
        spec.quantized = 320;
        batch.add(spec, 2, [](std::mt19937& random, std::vector<float>& row) {
            for (float& value : row)
                value = static_cast<float>(static_cast<int>(random() % 255) - 127) / 64.0f;
        });
        const Result expected = attend_on_device(batch);
        const Result result = attend_on_device(batch, type);
        EXPECT_LT(largest_error(result, expected), type == RowType::f16 ? 1e-3 : 5e-3);
        EXPECT_EQ(result.log_sum_exp, expected.log_sum_exp);
    }
}

} // namespace
} // namespace innerkv::test
