// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "innerkv/error.h"
#include "runner/runner.h"

namespace innerkv::runner {
namespace {

TEST(Settings, ChangeWhatTheyName) {
    const SessionOptions options =
        make_options("base+sink=4+recent=64+calibration=256+epoch=512+norm=none+rotate=off", 100);
    EXPECT_EQ(options.preset.name, "base");
    EXPECT_EQ(options.preset.sink_tokens, 4);
    EXPECT_EQ(options.preset.recent_tokens, 64);
    EXPECT_EQ(options.transform.calibration_tokens, 256);
    EXPECT_EQ(options.transform.centre_epoch, 512);
    EXPECT_EQ(options.transform.norm, KeyNormPolicy::none);
    EXPECT_FALSE(options.transform.rotate);
    EXPECT_TRUE(options.transform.centre);
}

TEST(Settings, StandBehindAnyPreset) {
    const SessionOptions paper = make_options("paper:small+centre=on", 100);
    EXPECT_EQ(paper.preset.k, symmetric(3));
    EXPECT_TRUE(paper.transform.centre);
    EXPECT_FALSE(paper.transform.rotate);
    EXPECT_EQ(paper.transform.norm, KeyNormPolicy::prefill);
}

TEST(Settings, BitsByLayer) {
    const SessionOptions options = make_options("small+layers=324482+sink=4", 100);
    EXPECT_EQ(options.layer_codecs,
              (std::vector<LayerCodecs>{codecs_of_bits(3, 2), codecs_of_bits(4, 4),
                                        codecs_of_bits(8, 2)}));
    EXPECT_TRUE(make_options("base", 100).layer_codecs.empty());
}

/// Values are not told apart from the preset's own by comparing.
TEST(Settings, OfTheKeyTransformAreToldByName) {
    using Names = std::vector<std::string>;
    EXPECT_EQ(make_options("base", 100).named_transform, Names());
    EXPECT_EQ(make_options("base+sink=32+recent=96", 100).named_transform, Names());
    EXPECT_EQ(make_options("base+centre=on+rotate=on+norm=balanced", 100).named_transform,
              (Names{"centre", "rotate", "norm"}));
    EXPECT_EQ(make_options("base+calibration=128+sink=4+epoch=256", 100).named_transform,
              (Names{"calibration", "epoch"}));
}

std::string refusal_of(const std::string& contender) {
    try {
        make_options(contender, 100);
    } catch (const InvalidArgument& error) {
        return error.what();
    }
    return "accepted";
}

TEST(Settings, UnknownOnesAreRefusedWithThoseThereAre) {
    for (const std::string setting : {"windows", "", "Sink=4", "sinks=4", "=4"}) {
        const std::string refusal = refusal_of("base+" + setting);
        EXPECT_NE(refusal.find("no setting '" + setting + "'"), std::string::npos) << refusal;
        EXPECT_NE(refusal.find("sink=N, recent=N"), std::string::npos) << refusal;
    }
}

TEST(Settings, ValuesAreRefusedWithWhatThereIs) {
    const std::pair<std::string, std::string> cases[] = {
        {"sink", "sink: '' is not a whole number of tokens from 0"},
        {"sink=", "sink=: '' is not a whole number"},
        {"sink=4x", "sink=4x: '4x' is not a whole number"},
        {"sink=-1", "'-1' is not a whole number of tokens from 0 to 16777216"},
        {"sink=99999999999", "'99999999999' is not"},
        {"sink=16777217", "'16777217' is not"},
        {"recent=33", "'33' is not a multiple of 32 tokens from 0"},
        {"calibration=0", "'0' is not a whole number of tokens from 1"},
        {"epoch=0", "'0' is not a multiple of 32 tokens from 32"},
        {"epoch=100", "'100' is not a multiple of 32"},
        {"norm=on", "'on' is not none, prefill or balanced"},
        {"rotate=1", "'1' is not on or off"},
        {"layers=", "'' is not two digits a layer"},
        {"layers=323", "'323' is not two digits a layer, bits of its keys and of its values"},
        {"layers=35", "'35' is not two digits a layer"},
        {"layers=3.", "'3.' is not two digits a layer"},
        {"sink=4+sink=8", "sink is named twice"},
        {"norm=none+epoch=64+norm=none", "norm is named twice"}};
    for (const auto& [settings, part] : cases) {
        const std::string refusal = refusal_of("base+" + settings);
        EXPECT_NE(refusal.find(part), std::string::npos) << settings << ": " << refusal;
    }
}

TEST(Settings, LayersAreForTheLibrarysOwnCodecs) {
    for (const std::string preset : {"paper:base", "k8v8"})
        EXPECT_NE(refusal_of(preset + "+layers=3322").find("layers= is for presets with codecs"),
                  std::string::npos)
            << preset;
}

TEST(Settings, AreNotForACacheThatQuantizesNothing) {
    EXPECT_NE(refusal_of("f16+sink=4").find("f16 quantizes nothing"), std::string::npos);
}

} // namespace
} // namespace innerkv::runner
