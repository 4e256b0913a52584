// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <string>

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

TEST(Settings, AreRefusedByName) {
    for (const std::string setting : {"sink", "sink=", "sink=4x", "sink=99999999999", "norm=on",
                                      "rotate=1", "windows", "", "Sink=4"}) {
        SCOPED_TRACE(setting);
        try {
            make_options("base+" + setting, 100);
            FAIL() << "accepted";
        } catch (const InvalidArgument& error) {
            EXPECT_NE(std::string(error.what()).find("no setting '" + setting + "'"),
                      std::string::npos)
                << error.what();
        }
    }
}

} // namespace
} // namespace innerkv::runner
