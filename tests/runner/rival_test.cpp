// SPDX-License-Identifier: Apache-2.0
// Sessions on caches of others: simulated ones do not depend on chunks, and agree with libllama's own.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "comparison.h"
#include "models.h"
#include "reference.h"

namespace innerkv::runner::test {
namespace {

constexpr int kTokens = 400;

SessionOptions rival_options(std::string_view name, int context = kTokens) {
    SessionOptions options = make_options(name, context);
    options.threads = 1;
    return options;
}

std::vector<float> all_logits(const std::shared_ptr<Model>& model, std::span<const Token> tokens,
                              const SessionOptions& options) {
    std::vector<float> all;
    Session session(model, options);
    session.evaluate(tokens, 0, [&](std::int64_t, std::span<const float> logits) {
        all.insert(all.end(), logits.begin(), logits.end());
    });
    return all;
}

double mean_kld(const Model& model, std::span<const float> expected,
                std::span<const float> actual) {
    Agreement agreement(model.info().vocabulary_size);
    agreement.add(expected, actual);
    return agreement.mean_kld();
}

struct Case {
    const char* model;
    const char* rival;
};

class RivalSession : public testing::TestWithParam<Case> {};

/// Single tokens and chunks are other sums, whose last bits move a code now and then; that is little beside
/// what the cache itself does.
TEST_P(RivalSession, ChunksAndSingleTokensAgree) {
    const std::shared_ptr<Model> model = Model::load(random_model(GetParam().model));
    const std::vector<Token> tokens = random_tokens(kTokens, model->info().vocabulary_size, 3);
    SessionOptions options = rival_options(GetParam().rival);
    const std::vector<float> chunks = all_logits(model, tokens, options);
    std::vector<float> single;
    Session session(model, options);
    for (const Token token : tokens) {
        session.decode(token);
        single.insert(single.end(), session.logits().begin(), session.logits().end());
    }
    const std::vector<float> f16 = all_logits(model, tokens, rival_options("f16"));
    EXPECT_LT(mean_difference(chunks, single), 0.25 * mean_difference(f16, chunks));
    EXPECT_EQ(session.cache_report().tokens, kTokens);
}

TEST_P(RivalSession, ClearedIsNew) {
    const std::shared_ptr<Model> model = Model::load(random_model(GetParam().model));
    const std::vector<Token> tokens = random_tokens(300, model->info().vocabulary_size, 5);
    Session session(model, rival_options(GetParam().rival));
    session.prompt(tokens);
    const std::vector<float> first(session.logits().begin(), session.logits().end());
    session.clear();
    EXPECT_EQ(session.length(), 0);
    session.prompt(tokens);
    EXPECT_LT(mean_difference(first, session.logits()), 1e-6);
}

INSTANTIATE_TEST_SUITE_P(
    Rivals, RivalSession,
    testing::Values(Case{"llama", "sim:q4_0"}, Case{"llama", "sim:q4_0+rot"},
                    Case{"llama", "sim:q4_1+rot+windows"}, Case{"llama", "sim:kivi2"},
                    Case{"llama", "sim:turbo3"}, Case{"gemma3", "sim:q4_0"},
                    Case{"gemma3", "sim:kivi2"}, Case{"gemma3", "sim:turbo3+windows"},
                    Case{"llama", "llama:q4_0"}, Case{"gemma3", "llama:q4_0+rot"}),
    [](const auto& test) {
        std::string name = std::string(test.param.model) + "_" + test.param.rival;
        std::replace_if(
            name.begin(), name.end(), [](char c) { return std::isalnum(c) == 0; }, '_');
        return name;
    });

class SimulationTest : public testing::TestWithParam<Case> {};

/// The simulation has exact queries where ggml rounds them to 8 bits. Channels in another order, another
/// rotation or another moment of rounding would be as far from libllama as f16 is.
TEST_P(SimulationTest, AgreesWithLibllama) {
    const std::shared_ptr<Model> model = Model::load(random_model(GetParam().model));
    const std::vector<Token> tokens = random_tokens(kTokens, model->info().vocabulary_size, 8);
    const std::string type = GetParam().rival;
    const std::vector<float> real =
        all_logits(model, tokens, rival_options(std::string("llama:").append(type)));
    const std::vector<float> simulated =
        all_logits(model, tokens, rival_options(std::string("sim:").append(type)));
    const std::vector<float> f16 = all_logits(model, tokens, rival_options("f16"));
    EXPECT_LT(mean_kld(*model, real, simulated), 0.25 * mean_kld(*model, real, f16));
}

INSTANTIATE_TEST_SUITE_P(
    Types, SimulationTest,
    testing::Values(Case{"llama", "q4_0"}, Case{"llama", "q4_0+rot"}, Case{"llama", "q4_1"},
                    Case{"llama", "q5_0"}, Case{"llama", "q4_1+rot"}, Case{"llama", "q5_1"},
                    Case{"mistral", "q4_0+rot"}, Case{"gemma3", "q4_0"}, Case{"gemma3", "q4_0+rot"},
                    Case{"gemma3", "q4_1"}, Case{"gemma3", "q4_1+rot"}),
    [](const auto& test) {
        std::string name = std::string(test.param.model) + "_" + test.param.rival;
        std::replace(name.begin(), name.end(), '+', '_');
        return name;
    });

TEST(LibllamaTest, F16IsOurs) {
    const std::shared_ptr<Model> model = Model::load(random_model("llama"));
    const std::vector<Token> tokens = random_tokens(kTokens, model->info().vocabulary_size, 2);
    const std::vector<float> real = all_logits(model, tokens, rival_options("llama:f16"));
    EXPECT_LT(mean_kld(*model, all_logits(model, tokens, rival_options("f16")), real), 1e-4);
}

TEST(LibllamaTest, TruncatesAndReports) {
    const std::shared_ptr<Model> model = Model::load(random_model("llama"));
    const std::vector<Token> tokens = random_tokens(100, model->info().vocabulary_size, 2);
    Session session(model, rival_options("llama:q8_0"));
    session.prompt(tokens);
    const std::vector<float> before(session.logits().begin(), session.logits().end());
    session.truncate(60);
    EXPECT_EQ(session.length(), 60);
    session.prompt(std::span(tokens).subspan(60));
    EXPECT_LT(mean_difference(before, session.logits()), 1e-3);
    const CacheReport report = session.cache_report();
    EXPECT_EQ(report.tokens, 100);
    EXPECT_EQ(report.bits_per_value, 8.5);
    EXPECT_EQ(report.bytes * 32, report.f16_bytes * 17);
    EXPECT_GT(report.quantized_pages, 0);
}

std::string refusal(const std::function<void()>& call) {
    try {
        call();
    } catch (const InvalidArgument& error) {
        return error.what();
    }
    ADD_FAILURE() << "nothing was thrown";
    return "";
}

TEST(RivalNames, UnknownOnesAreRefusedWithTheList) {
    for (const char* name :
         {"sim:q3_0", "sim:", "sim:q4_0+windows+rot", "sim:q4_0+rot+rot", "sim:kivi2+rot",
          "sim:kivi2+windows", "sim:kivi3", "sim:turbo4+rot", "sim:f16", "llama:q4_0+windows",
          "llama:f16+rot", "llama:kivi2", "llama:q4_K"}) {
        const std::string message = refusal([&] { make_options(name, 64); });
        EXPECT_NE(message.find(std::string("'").append(name).append("'")), std::string::npos)
            << message;
        for (const char* known : {"base", "paper:PRESET", "sim:q4_0[+rot][+windows]", "sim:kivi2",
                                  "sim:turbo3[+windows]", "llama:q8_0[+rot]", "llama:f16"}) {
            EXPECT_NE(message.find(known), std::string::npos) << known << " in: " << message;
        }
    }
    EXPECT_NE(refusal([] { make_options("paper:sim:q4_0", 64); }).find("sim:q4_0"),
              std::string::npos);
}

TEST(RivalNames, PapersCodecs) {
    const SessionOptions paper = make_options("paper:base", 64);
    EXPECT_EQ(paper.preset.k, symmetric(3));
    EXPECT_EQ(paper.preset.v, symmetric(3));
    EXPECT_EQ(paper.transform.norm, KeyNormPolicy::prefill);
    EXPECT_FALSE(paper.transform.centre || paper.transform.rotate);
    EXPECT_TRUE(paper.rival.empty());
    EXPECT_NE(make_options("base", 64).preset.k, paper.preset.k);
}

TEST(RivalShapes, HeadDimensionsThatDoNotFit) {
    const auto message = [](const char* model, const char* rival) {
        const std::shared_ptr<Model> loaded = Model::load(random_model(model));
        return refusal([&] { Session(loaded, rival_options(rival, 64)); });
    };
    for (const char* rival : {"sim:q4_0", "llama:q4_0", "sim:kivi2"}) {
        const std::string text = message("llama-head80", rival);
        EXPECT_NE(text.find("80"), std::string::npos) << text;
        EXPECT_NE(text.find("32"), std::string::npos) << text;
    }
    for (const char* rival : {"sim:q4_0+rot", "llama:q4_0+rot"}) {
        const std::string text = message("llama-head96", rival);
        EXPECT_NE(text.find("multiples of 64, not 96"), std::string::npos) << text;
    }
    EXPECT_NO_THROW(
        Session(Model::load(random_model("llama-head80")), rival_options("sim:turbo4", 64)));
    SessionOptions exact = rival_options("sim:q4_0", 64);
    exact.exact_prefill = true;
    EXPECT_NE(refusal([&] { Session(Model::load(random_model("llama")), exact); }).find("sim:q4_0"),
              std::string::npos);
}

} // namespace
} // namespace innerkv::runner::test
