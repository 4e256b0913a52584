// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>
#include <string>

#include <gtest/gtest.h>

#include "chart.h"
#include "svg.h"

namespace innerkv::cli {
namespace {

std::size_t count(const std::string& text, const std::string& part) {
    std::size_t found = 0;
    for (std::size_t place = 0; (place = text.find(part, place)) != std::string::npos; ++place)
        ++found;
    return found;
}

TEST(Axis, RoundNumbersAroundTheValues) {
    const Axis linear(0, 1023, false, 0, 100);
    EXPECT_EQ(linear.ticks(), (std::vector<double>{0, 500, 1000, 1500}));
    EXPECT_DOUBLE_EQ(linear.at(750), 50);
    const Axis logarithmic(0.003, 0.15, true, 100, 0);
    EXPECT_EQ(logarithmic.ticks().size(), 7U); // 0.002 to 0.2
    EXPECT_NEAR(logarithmic.at(0.02), 50, 1e-9);
}

TEST(Axis, AllValuesLieBetweenItsEnds) {
    for (const double low : {1e-9, 1e-4, 0.5, 1.0, 9.0})
        for (const double factor : {1.0, 1.7, 30.0, 1e6})
            for (const bool logarithmic : {false, true}) {
                const Axis axis(low, low * factor, logarithmic, 0, 1);
                for (const double value : {low, low * std::sqrt(factor), low * factor}) {
                    EXPECT_GE(axis.at(value), -1e-9);
                    EXPECT_LE(axis.at(value), 1 + 1e-9) << low << " " << factor;
                }
                EXPECT_GE(axis.ticks().size(), 2U);
                EXPECT_LE(axis.ticks().size(), 17U) << low << " " << factor;
            }
}

TEST(Chart, LogarithmicLinesLeaveOutWhatHasNoLogarithm) {
    LineChart chart{"t", "x", "y", true, {{"a", {{0, 0.0}, {1, 0.1}, {2, NAN}, {3, 0.2}}}}};
    EXPECT_EQ(count(draw_lines(chart), "<circle"), 2U);
    chart.log_y = false;
    EXPECT_EQ(count(draw_lines(chart), "<circle"), 3U);
    chart.series = {{"a", {}}};
    EXPECT_EQ(count(draw_lines(chart), "<circle"), 0U);
}

TEST(Chart, TextIsEscaped) {
    for (const std::string& svg :
         {draw_bars({"a<b & c>d", "v", {{"x<y", 0.5}, {"zero", 0.0}}}),
          draw_heat_map({"a<b & c>d", "x", "v", {"0", "1"}, {{"x<y", {0.0, 1.0}}}}),
          draw_lines({"a<b & c>d", "x", "y", false, {{"x<y", {{0, 1}}}}})}) {
        EXPECT_NE(svg.find(">a&lt;b &amp; c&gt;d<"), std::string::npos);
        EXPECT_NE(svg.find(">x&lt;y<"), std::string::npos);
        EXPECT_EQ(svg.find("nan"), std::string::npos);
        EXPECT_EQ(svg.find("inf"), std::string::npos);
    }
}

TEST(Chart, ColoursRunFromVioletToYellow) {
    EXPECT_EQ(viridis(0), "#440154");
    EXPECT_EQ(viridis(0.5), "#21908d");
    EXPECT_EQ(viridis(1), "#fde725");
    EXPECT_EQ(viridis(7), viridis(1));
}

} // namespace
} // namespace innerkv::cli
