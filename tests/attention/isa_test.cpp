// SPDX-License-Identifier: Apache-2.0
// Every instruction set that this machine has against scalar, and how one is chosen.
#include <gtest/gtest.h>

#include <cstdlib>
#include <tuple>

#include "fixture.h"
#include "innerkv/error.h"

namespace innerkv::test {
namespace {

/// fp32 sums of windows are added in another order.
constexpr double kDenseError = 2e-6;

class Isa : public testing::TestWithParam<std::string_view> {};

/// On quantized pages every operation is the same, in the same order, everywhere: the same bits.
void expect_equal_to_scalar(const Batch& batch, std::string_view isa) {
    const Result expected = attend(batch, Arithmetic::integer);
    const Result result = attend(batch, Arithmetic::integer, isa);
    for (std::size_t row = 0; row < expected.out.size(); ++row) {
        EXPECT_EQ(result.out[row], expected.out[row]) << "row " << row;
        EXPECT_EQ(result.log_sum_exp[row], expected.log_sum_exp[row]) << "row " << row;
    }
}

void expect_close_to_scalar(const Batch& batch, Arithmetic arithmetic, std::string_view isa) {
    const Result expected = attend(batch, arithmetic);
    const Result result = attend(batch, arithmetic, isa);
    EXPECT_LT(largest_error(result, expected), kDenseError);
    EXPECT_LT(log_sum_exp_error(result, expected), kDenseError);
}

SequenceSpec only_quantized(int tokens) {
    SequenceSpec spec;
    spec.sink = spec.recent = 0;
    spec.quantized = tokens;
    return spec;
}

TEST_P(Isa, EveryFormatAndHeadDimension) {
    for (const int head_dim : kHeadDims) {
        for (const NamedFormat& named : all_formats(head_dim)) {
            SCOPED_TRACE(named.name + " " + std::to_string(head_dim));
            Batch batch(shape_of(named.format, 3, 1));
            if (named.format.quantized()) {
                batch.add(only_quantized(130), 3);
                expect_equal_to_scalar(batch, GetParam());
            }
            if (named.name != "f16") continue;
            SequenceSpec spec;
            spec.recent = 117;
            batch.add(spec, 3);
            expect_close_to_scalar(batch, Arithmetic::integer, GetParam());
        }
    }
}

TEST_P(Isa, ExactArithmeticInEveryPreset) {
    for (const Preset& preset : presets()) {
        for (const int head_dim : {64, 80, 192}) {
            SCOPED_TRACE(std::string(preset.name) + " " + std::to_string(head_dim));
            Batch batch(shape_of(preset.format(head_dim), 3, 1));
            SequenceSpec spec = spec_for(batch.shape.format, 70);
            spec.recent -= 60;
            batch.add(spec, 3);
            expect_close_to_scalar(batch, Arithmetic::exact, GetParam());
        }
    }
}

TEST_P(Isa, EveryNumberOfRows) {
    for (int rows = 1; rows <= 20; ++rows) {
        SCOPED_TRACE(rows);
        for (const Preset& preset : presets()) {
            if (!preset.k.quantized()) continue;
            SCOPED_TRACE(preset.name);
            Batch batch(shape_of(preset.format(128), rows, 1));
            // Several batches of pages, the last not full; centres change inside of one.
            SequenceSpec spec = only_quantized(37 * kPageTokens);
            spec.transform = {true, true, true, true};
            spec.epoch_pages = 3;
            spec.first_page = 2;
            batch.add(spec);
            expect_equal_to_scalar(batch, GetParam());
        }
        Batch batch(shape_of(find_preset("f16").format(112), rows, 1));
        batch.add({});
        expect_close_to_scalar(batch, Arithmetic::integer, GetParam());
    }
}

TEST_P(Isa, MasksCapsAndTransforms) {
    for (const int window : {0, 1, 40, 150}) {
        for (const float cap : {0.0f, 3.0f}) {
            SCOPED_TRACE(testing::Message() << "window " << window << ", cap " << cap);
            Batch batch(shape_of(find_preset("hybrid").format(96), 6, 2));
            batch.shape.sliding_window = window;
            batch.shape.soft_cap = cap;
            SequenceSpec spec;
            spec.quantized = 175;
            spec.transform = {true, true, true, true};
            spec.epoch_pages = window == 40 ? 2 : 0;
            spec.first_page = window == 40 ? 1 : 0;
            batch.add(spec, 37);
            batch.poison_unseen();
            expect_close_to_scalar(batch, Arithmetic::integer, GetParam());
            expect_close_to_scalar(batch, Arithmetic::exact, GetParam());
        }
    }
}

/// What surrounds the integer arithmetic is fp32: products with centres, caps, masks, transforms.
TEST_P(Isa, CentresCapsAndTransformsOfQuantizedPages) {
    for (const char* preset : {"base", "hybrid", "k8v8"}) {
        for (const int head_dim : {64, 80, 256}) {
            for (const float cap : {0.0f, 3.0f}) {
                SCOPED_TRACE(testing::Message() << preset << " " << head_dim << ", cap " << cap);
                Batch batch(shape_of(find_preset(preset).format(head_dim), 3, 1));
                batch.shape.soft_cap = cap;
                SequenceSpec spec = only_quantized(32 * 21 + 15);
                spec.transform = {true, true, true, true};
                spec.epoch_pages = 4;
                spec.first_page = 3;
                batch.add(spec, 5);
                expect_equal_to_scalar(batch, GetParam());
            }
        }
    }
}

/// Codes at both ends of their range and queries at theirs: sums that saturate would show.
TEST_P(Isa, ExtremesOfCodesAndQueries) {
    const auto extremes = [](std::mt19937& random, std::vector<float>& row) {
        for (float& value : row) value = random() % 4 == 0 ? -1.0f : 1.0f;
    };
    const auto ones = [](std::mt19937&, std::vector<float>& row) {
        std::fill(row.begin(), row.end(), 1.0f);
    };
    for (const NamedFormat& named : all_formats(64)) {
        if (!named.format.quantized()) continue;
        SCOPED_TRACE(named.name);
        Batch batch(shape_of(named.format, 2, 1));
        SequenceSpec spec = only_quantized(96);
        spec.k = spec.v = extremes;
        batch.add(spec, 1, ones);
        spec.k = ones;
        batch.add(spec, 1, extremes);
        spec.v = ones;
        batch.add(spec, 1, ones);
        expect_equal_to_scalar(batch, GetParam());
        EXPECT_LT(mean_error(attend(batch, Arithmetic::integer, GetParam()), reference(batch)),
                  0.01);
    }
}

INSTANTIATE_TEST_SUITE_P(Available, Isa, testing::ValuesIn(available_isas()),
                         [](const auto& test) { return std::string(test.param); });

class IsaChoice : public testing::Test {
protected:
    IsaChoice() : batch_(shape_of(find_preset("base").format(64), 2, 1)) {
        SequenceSpec spec;
        spec.quantized = 64;
        batch_.add(spec);
    }
    std::string refusal(std::string_view isa) const {
        try {
            attend(batch_, Arithmetic::integer, isa);
        } catch (const InvalidArgument& error) {
            return error.what();
        }
        return "";
    }

    Batch batch_;
};

TEST_F(IsaChoice, ScalarIsAlwaysThereAndLast) {
    ASSERT_FALSE(available_isas().empty());
    EXPECT_EQ(available_isas().back(), "scalar");
}

TEST_F(IsaChoice, UnknownNameIsRefusedWithTheNamesThereAre) {
    const std::string message = refusal("sse9");
    EXPECT_NE(message.find("option isa"), std::string::npos) << message;
    EXPECT_NE(message.find("'sse9'"), std::string::npos) << message;
    for (const std::string_view isa : available_isas())
        EXPECT_NE(message.find(isa), std::string::npos) << message;
}

/// It is read once: in processes of their own.
TEST_F(IsaChoice, EnvironmentIsUsedUnlessTheOptionIsGiven) {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    const auto exits_with = [&](const char* variable, const auto& check) {
        setenv("INNERKV_ISA", variable, 1);
        std::_Exit(check() ? 0 : 1);
    };
    EXPECT_EXIT(exits_with("sse9",
                           [&] {
                               return refusal("scalar").empty() &&
                                      refusal("").find("environment variable INNERKV_ISA: "
                                                       "instruction set 'sse9'") == 0;
                           }),
                testing::ExitedWithCode(0), "");
    EXPECT_EXIT(exits_with("scalar", [&] { return refusal("").empty(); }),
                testing::ExitedWithCode(0), "");
}

} // namespace
} // namespace innerkv::test
