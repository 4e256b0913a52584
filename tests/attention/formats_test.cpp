// SPDX-License-Identifier: Apache-2.0
// Scalar kernels against the fp64 reference: every codec at every head dimension, every transform.
#include <gtest/gtest.h>

#include <cmath>
#include <tuple>

#include "batches.h"

namespace innerkv::test {
namespace {

class Formats : public testing::TestWithParam<std::tuple<std::size_t, int>> {};

TEST_P(Formats, MatchReference) {
    const auto [index, head_dim] = GetParam();
    const NamedFormat format = all_formats(head_dim)[index];
    Batch batch(shape_of(format.format, 4, 2));
    SequenceSpec spec = spec_for(format.format, 224);
    batch.add(spec);
    spec.sink = spec.recent = 0;
    if (format.format.quantized()) batch.add(spec); // quantized pages alone
    expect_close_to_reference(batch);
}

std::string format_test_name(const testing::TestParamInfo<std::tuple<std::size_t, int>>& info) {
    const auto [index, head_dim] = info.param;
    return all_formats(head_dim)[index].name + "_" + std::to_string(head_dim);
}

INSTANTIATE_TEST_SUITE_P(All, Formats,
                         testing::Combine(testing::Range(std::size_t{0}, all_formats(64).size()),
                                          testing::ValuesIn(kHeadDims)),
                         format_test_name);

class Transforms : public testing::TestWithParam<int> {};

TEST_P(Transforms, MatchReference) {
    const int bits = GetParam();
    for (const int head_dim : {64, 80, 192}) {
        for (const char* name : {"base", "hybrid", "k8v8"}) {
            SCOPED_TRACE(std::string(name) + " " + std::to_string(head_dim));
            Batch batch = transformed(find_preset(name).format(head_dim), bits);
            expect_close_to_reference(batch);
        }
    }
}

INSTANTIATE_TEST_SUITE_P(AllCombinations, Transforms, testing::Range(0, 16));

/// The centre is inside the logit when the cap is applied to it.
TEST(Transforms, CentreUnderSoftCap) {
    Batch batch(shape_of(find_preset("k4v4").format(64), 4, 2));
    batch.shape.soft_cap = 2.0f;
    SequenceSpec spec;
    spec.quantized = 256;
    spec.transform = {true, true, true, true};
    batch.add(spec, 2);
    expect_close_to_reference(batch);
}

/// Runs that begin and end inside an epoch, of one page and of more epochs than one call takes.
TEST(Transforms, CentresByEpoch) {
    for (const EpochCase& tested : kEpochCases) {
        for (const int head_dim : {64, 80}) {
            SCOPED_TRACE(testing::Message() << tested.epoch_pages << " pages from "
                                            << tested.first_page << ", dimension " << head_dim);
            Batch batch = with_epochs(tested, head_dim);
            expect_close_to_reference(batch);
        }
    }
}

/// docs/kernels.md has this table: int8 queries move a logit by half a percent of its spread, so the
/// error of weights, and of outputs, grows with the spread until single tokens carry all the weight.
TEST(IntegerArithmetic, ErrorBySpreadOfLogits) {
    struct Bound {
        float spread;
        double error;
    };
    for (const Bound& bound :
         {Bound{0.5f, 0.006}, Bound{1.0f, 0.01}, Bound{2.0f, 0.016}, Bound{4.0f, 0.025}}) {
        const float spread = bound.spread;
        Batch batch(shape_of(find_preset("base").format(128), 16, 2));
        SequenceSpec spec;
        spec.sink = spec.recent = 0;
        spec.quantized = 1024;
        batch.add(spec, 8, [spread](std::mt19937& random, std::vector<float>& row) {
            gaussian(random, row);
            for (float& value : row) value *= spread;
        });
        const Result expected = reference(batch);
        const double error = mean_error(attend(batch, Arithmetic::integer), expected);
        RecordProperty("spread " + std::to_string(spread), std::to_string(error));
        EXPECT_LT(error, bound.error) << "spread " << spread;
        EXPECT_GT(error, bound.error / 4) << "spread " << spread; // a bound that means something
    }
}

/// The reference itself, where the result is known: one visible token gives its value.
TEST(Reference, OneTokenGivesItsValue) {
    Batch batch(shape_of(find_preset("f16").format(64), 2, 1));
    batch.shape.sliding_window = 1;
    SequenceSpec spec;
    spec.sink = 0;
    spec.recent = 5;
    spec.v = [value = 0.0f](std::mt19937&, std::vector<float>& row) mutable {
        std::fill(row.begin(), row.end(), value);
        value += 1.0f;
    };
    batch.add(spec, 5);
    const Result result = reference(batch);
    for (std::size_t row = 0; row < result.out.size(); ++row) {
        const std::size_t token = row / 2; // two heads
        EXPECT_EQ(result.out[row], std::vector<float>(64, static_cast<float>(token)));
    }
}

/// Equal keys: the mean of the values, and the logarithm of their number above the logit.
TEST(Reference, EqualKeysGiveTheMean) {
    Batch batch(shape_of(find_preset("f16").format(64), 1, 1));
    batch.shape.scale = 0.5f;
    SequenceSpec spec;
    spec.sink = 0;
    spec.recent = 4;
    const auto ones = [](std::mt19937&, std::vector<float>& row) {
        std::fill(row.begin(), row.end(), 1.0f);
    };
    spec.k = ones;
    spec.v = [value = 0.0f](std::mt19937&, std::vector<float>& row) mutable {
        std::fill(row.begin(), row.end(), value);
        value += 1.0f;
    };
    batch.add(spec, 1, ones);
    const Result result = reference(batch);
    EXPECT_FLOAT_EQ(result.out[0][0], 1.5f);
    EXPECT_FLOAT_EQ(result.log_sum_exp[0], 0.5f * 64.0f + std::log(4.0f));
}

} // namespace
} // namespace innerkv::test
