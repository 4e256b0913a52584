// SPDX-License-Identifier: Apache-2.0
// What `run` tells after the text.
#include <string>

#include <gtest/gtest.h>

#include "run_report.h"

namespace innerkv::cli {
namespace {

RunReport report_of(const std::string& text) {
    RunReport report;
    report.cache = "small";
    report.generation.text = text;
    report.generation.tokens = {1, 2, 3};
    report.compared_cache = "f16";
    return report;
}

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

TEST(RunReport, TextsThatPart) {
    RunReport report = report_of("One two\nthree");
    report.comparison.emplace();
    report.comparison->parted = true;
    report.comparison->common_tokens = 2;
    report.comparison->common_text = "One two";
    report.comparison->generation.text = "One two four";
    report.comparison->score.same_top = 0.5;
    const std::string text = to_text(report);
    EXPECT_TRUE(contains(text, "same top-1  mean KLD\nsmall")) << text;
    EXPECT_TRUE(contains(text, "50.0%")) << text;
    EXPECT_TRUE(contains(text, "The texts part after 2 tokens:\n"
                               "  both    One two\n"
                               "  small   three\n"
                               "  f16     four\n"))
        << text;
    report.comparison->generation.text = "One two";
    EXPECT_TRUE(contains(to_text(report), "  f16     (ends)\n"));
    report.comparison->generation.finish = Finish::interrupted;
    EXPECT_TRUE(contains(to_text(report), "  f16     (interrupted)\n"));
}

TEST(RunReport, OneTokenInCommon) {
    RunReport report = report_of("One two");
    report.comparison.emplace();
    report.comparison->parted = true;
    report.comparison->common_tokens = 1;
    EXPECT_TRUE(contains(to_text(report), "The texts part after 1 token:\n"));
}

TEST(RunReport, APromptThatWasNotReadWhole) {
    RunReport report = report_of("");
    report.generation.prompt_tokens = 512;
    report.generation.prompt_length = 7000;
    EXPECT_TRUE(contains(to_text(report), "\nprompt  512 of 7000 tokens, ")) << to_text(report);
    report.generation.prompt_tokens = 7000;
    EXPECT_TRUE(contains(to_text(report), "\nprompt  7000 tokens, ")) << to_text(report);
}

TEST(RunReport, NoSpeedOfNothing) {
    RunReport report = report_of("");
    report.comparison.emplace();
    EXPECT_TRUE(
        contains(to_text(report), "f16    0 bytes    0.00x              0.0                -\n"))
        << to_text(report);
    report.comparison->generation.decoded_tokens = 3;
    report.comparison->generation.decode_seconds = 2;
    EXPECT_TRUE(contains(to_text(report), " 1.5\n")) << to_text(report);
}

TEST(RunReport, TextsThatAreTheSame) {
    RunReport report = report_of("One");
    report.comparison.emplace();
    EXPECT_TRUE(contains(to_text(report), "f16 generates the same text.\n"));
    EXPECT_FALSE(to_json(report)["compare"]["texts_part"]);
}

TEST(RunReport, InterruptedComparisonTellsNothing) {
    const RunReport report = report_of("One");
    const std::string text = to_text(report);
    EXPECT_TRUE(text.ends_with("\ncomparison interrupted\n")) << text;
    EXPECT_FALSE(contains(text, "top-1"));
    EXPECT_TRUE(to_json(report)["compare"].is_null());
}

TEST(RunReport, WithoutComparison) {
    RunReport report = report_of("One");
    report.compared_cache.clear();
    EXPECT_FALSE(contains(to_text(report), "comparison"));
    EXPECT_FALSE(to_json(report).contains("compare"));
}

} // namespace
} // namespace innerkv::cli
