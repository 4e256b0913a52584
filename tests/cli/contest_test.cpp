// SPDX-License-Identifier: Apache-2.0
// Caches side by side, on models with random weights.
#include <algorithm>
#include <memory>
#include <span>

#include <gtest/gtest.h>

#include "contest.h"
#include "errors.h"
#include "eval.h"
#include "options.h"

namespace innerkv::cli {
namespace {

using runner::Token;

std::shared_ptr<runner::Model> model(const std::string& name) {
    return runner::Model::load(std::string(INNERKV_TEST_MODELS) + "/" + name + ".gguf");
}

std::vector<Token> some_tokens(std::size_t count, std::uint32_t seed) {
    std::vector<Token> tokens;
    for (std::size_t index = 0; index < count; ++index) {
        seed = seed * 1664525 + 1013904223;
        tokens.push_back(static_cast<Token>(seed >> 24));
    }
    return tokens;
}

Contest make_contest(const std::string& name, const std::vector<std::string>& caches,
                     Contest::Counter counter = {}) {
    ContestOptions options;
    options.context = 1000;
    options.threads = 1;
    options.codec = kOwnCodec;
    return {model(name), caches, options, std::move(counter)};
}

void expect_same(std::span<const RowScore> rows, std::span<const RowScore> others) {
    ASSERT_EQ(rows.size(), others.size());
    for (std::size_t row = 0; row < rows.size(); ++row) {
        EXPECT_EQ(rows[row].log_likelihood, others[row].log_likelihood) << row;
        EXPECT_EQ(rows[row].divergence, others[row].divergence) << row;
    }
}

/// What `eval recall` rests on, with sliding windows or without.
TEST(Contest, AQuestionLeavesTheDocumentAsItWas) {
    for (const char* name : {"llama-long", "gemma3"}) {
        Contest contest = make_contest(name, {"f16", "base", "k8v8"});
        const std::vector<Token> document = some_tokens(608, 1);
        ASSERT_TRUE(contest.read(document));
        for (const std::uint32_t question : {2U, 3U, 4U, 2U}) {
            ASSERT_TRUE(contest.score(some_tokens(33, question), 20));
            ASSERT_TRUE(contest.go_back(document));
        }
        for (const Standing& standing : contest.standings()) {
            const std::span<const RowScore> rows(standing.rows);
            ASSERT_EQ(rows.size(), 4U * 13U);
            expect_same(rows.first(13), rows.last(13));
            EXPECT_NE(rows[0].log_likelihood, rows[13].log_likelihood);
        }
    }
}

/// Where cutting back would leave another cache, or a sliding window has dropped what is needed (the
/// question is longer than a page), the document is read again.
TEST(Contest, GoesBackWhereItCannotCut) {
    const std::vector<std::pair<const char*, std::size_t>> cases = {{"llama-long", 33},
                                                                    {"gemma3", 300}};
    for (const auto& [name, length] : cases) {
        Contest contest =
            make_contest(name, {"f16", "base+recent=0", "base+recent=32", "base+sink=4",
                                "base+calibration=512", "sim:kivi2", "sim:q4_0"});
        const std::vector<Token> document = some_tokens(608, 1);
        ASSERT_TRUE(contest.read(document));
        for (const std::uint32_t question : {2U, 3U, 2U}) {
            ASSERT_TRUE(contest.score(some_tokens(length, question), 20));
            ASSERT_TRUE(contest.go_back(document));
        }
        const std::size_t rows = length - 20;
        for (const Standing& standing : contest.standings()) {
            const std::span<const RowScore> all(standing.rows);
            ASSERT_EQ(all.size(), 3 * rows);
            expect_same(all.first(rows), all.last(rows));
        }
    }
}

TEST(Contest, RowsDoNotDependOnTheCuts) {
    Contest contest = make_contest("llama-long", {"f16", "base"});
    const std::vector<Token> tokens = some_tokens(700, 5);
    ASSERT_TRUE(contest.score(tokens, 1));
    const std::vector<Standing> whole = contest.standings();
    for (const std::size_t cut : {1U, 32U, 333U, 640U}) {
        contest.clear();
        ASSERT_TRUE(contest.score(std::span(tokens).first(cut + 1), 1));
        ASSERT_TRUE(contest.score(std::span(tokens).subspan(cut), 1));
        const std::vector<Standing> parts = contest.standings();
        for (std::size_t cache = 0; cache < whole.size(); ++cache)
            expect_same(parts[cache].rows, whole[cache].rows);
    }
    contest.clear();
    ASSERT_TRUE(contest.score(tokens, 450));
    for (std::size_t cache = 0; cache < whole.size(); ++cache)
        expect_same(contest.standings()[cache].rows, std::span(whole[cache].rows).last(250));
}

TEST(Contest, TheReferenceAgainstItself) {
    Contest contest = make_contest("llama-long", {"f16", "f16", "base"});
    ASSERT_TRUE(contest.score(some_tokens(500, 6), 250));
    const std::vector<CacheScore> scores = sum_up(contest.formats(), {contest.standings()});
    for (const CacheScore& score : scores) EXPECT_EQ(score.score.tokens, 250);
    EXPECT_EQ(scores[1].score.divergence_max, 0);
    EXPECT_EQ(scores[1].score.same_top, 1);
    EXPECT_EQ(scores[1].score.perplexity, scores[0].score.perplexity);
    EXPECT_GT(scores[2].score.divergence_mean, 0);
    EXPECT_FALSE(scores[2].never_quantized);
}

TEST(EvalInput, AStretchBeginsWithTheModelsOpening) {
    EvalInput input;
    input.model = model("llama-long");
    input.tokens = some_tokens(20, 9);
    ASSERT_TRUE(input.model->bos());
    const std::vector<Token> stretch = input.opened(5, 10);
    ASSERT_EQ(stretch.size(), 10U);
    EXPECT_EQ(stretch.front(), *input.model->bos());
    EXPECT_NE(stretch.front(), input.tokens[5]);
    EXPECT_TRUE(std::equal(stretch.begin() + 1, stretch.end(), input.tokens.begin() + 6));
}

/// Against a session that goes on alone.
TEST(Contest, GeneratesGreedily) {
    Contest contest = make_contest("llama-long", {"f16", "f16", "base"});
    const std::vector<Token> tokens = some_tokens(600, 7);
    ASSERT_TRUE(contest.read(tokens));
    ASSERT_TRUE(contest.generate(40));
    const std::vector<Standing> standings = contest.standings();

    const std::shared_ptr<runner::Model> alone = model("llama-long");
    std::vector<std::vector<Token>> texts;
    for (const char* cache : {"f16", "base"}) {
        runner::SessionOptions options = session_options(cache, 1000, "", kOwnCodec);
        options.threads = 1;
        runner::Session session(alone, options);
        session.prompt(tokens);
        texts.emplace_back();
        while (texts.back().size() < 40) {
            const auto logits = session.logits();
            texts.back().push_back(
                static_cast<Token>(std::ranges::max_element(logits) - logits.begin()));
            if (alone->is_end(texts.back().back())) break;
            session.decode(texts.back().back());
        }
    }
    const auto written = static_cast<std::int64_t>(texts[0].size());
    const auto parted = std::ranges::mismatch(texts[0], texts[1]).in1 - texts[0].begin();
    for (const Standing& standing : standings) EXPECT_EQ(standing.generated, written);
    EXPECT_EQ(standings[0].common, written);
    EXPECT_EQ(standings[1].common, written);
    EXPECT_EQ(standings[2].common, parted);
    EXPECT_EQ(contest.done(), 3 * (600 + 40));
}

TEST(Contest, StopsWhereItIsTold) {
    Contest contest =
        make_contest("llama-long", {"f16", "base"}, [](std::int64_t done) { return done < 600; });
    EXPECT_FALSE(contest.score(some_tokens(900, 8), 1));
    EXPECT_GE(contest.done(), 600);
    EXPECT_LT(contest.done(), 2 * 899);
}

/// Settings of windows stay; those of the key transform would be undone.
TEST(SessionOptions, PaperCodecRefusesSettingsOfTheKeyTransform) {
    for (const char* cache :
         {"base+norm=none", "base+centre=off", "k4v4+sink=4+rotate=off", "base+epoch=64",
          "base+calibration=64", "paper:base+norm=none", "base+centre=on", "base+rotate=on",
          "base+norm=balanced", "base+calibration=128", "base+epoch=256", "base+queries=on"}) {
        try {
            session_options(cache, 1000, "", kPaperCodec);
            ADD_FAILURE() << cache;
        } catch (const UsageError& error) {
            EXPECT_NE(std::string(error.what()).find(cache), std::string::npos) << error.what();
        }
        EXPECT_NO_THROW(session_options(cache, 1000, "", kOwnCodec)) << cache;
    }
    const runner::SessionOptions paper = session_options("base+sink=4", 1000, "", kPaperCodec);
    EXPECT_EQ(paper.preset.sink_tokens, 4);
    EXPECT_EQ(paper.preset.k, symmetric(3));
    EXPECT_NO_THROW(session_options("paper:base", 1000, "", kPaperCodec));
    EXPECT_NO_THROW(session_options("f16", 1000, "", kPaperCodec));
}

TEST(SessionOptions, KeyNormDoesNotOverrideANamedOne) {
    for (const char* cache : {"base+norm=balanced", "paper:base+sink=4+norm=none"}) {
        try {
            session_options(cache, 1000, "prefill", kOwnCodec);
            ADD_FAILURE() << cache;
        } catch (const UsageError& error) {
            EXPECT_NE(std::string(error.what()).find(cache), std::string::npos) << error.what();
        }
        EXPECT_NO_THROW(session_options(cache, 1000, "", kOwnCodec)) << cache;
    }
    EXPECT_EQ(session_options("base+sink=4", 1000, "none", kOwnCodec).transform.norm,
              KeyNormPolicy::none);
}

} // namespace
} // namespace innerkv::cli
