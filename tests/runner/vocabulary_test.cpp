// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <set>

#include "models.h"

namespace innerkv::runner::test {
namespace {

std::string pieces(const Model& model, std::span<const Token> tokens) {
    std::string text;
    for (const Token token : tokens) {
        text += model.piece(token);
    }
    return text;
}

TEST(Vocabulary, SentencePiece) {
    const auto model = Model::load(random_model("llama-spm"));
    EXPECT_EQ(model->tokenize("the", true, false).size(), 2u); // with the space before it
    const std::string text = "then \xe4\xb8\xad q\n";
    EXPECT_EQ(pieces(*model, model->tokenize(text, false, false)), " " + text);
}

TEST(Vocabulary, RoundTrip) {
    const auto model = Model::load(random_model("llama-q8_0"));
    std::string every_byte;
    for (int byte = 1; byte < 128; ++byte) {
        every_byte += static_cast<char>(byte);
    }
    for (const std::string& text : {std::string("the inner cache, hé?"), every_byte,
                                    std::string("\xe4\xb8\xad\xe6\x96\x87 \xf0\x9f\x98\x80"),
                                    std::string("a\0b", 3), std::string()}) {
        EXPECT_EQ(pieces(*model, model->tokenize(text, false, false)), text);
    }
}

TEST(Vocabulary, SpecialTokens) {
    const auto model = Model::load(random_model("llama-q8_0"));
    ASSERT_TRUE(model->bos().has_value());
    EXPECT_EQ(model->piece(*model->bos()), "<|start|>");
    const std::vector<Token> with_bos = model->tokenize("in", true, false);
    ASSERT_EQ(with_bos.size(), 2u);
    EXPECT_EQ(with_bos[0], model->bos());
    const std::vector<Token> special = model->tokenize("<|end|>", false, true);
    ASSERT_EQ(special.size(), 1u);
    EXPECT_TRUE(model->is_end(special[0]));
    EXPECT_FALSE(model->is_end(with_bos[1]));
    EXPECT_GT(model->tokenize("<|end|>", false, false).size(), 1u);
}

TEST(ModelInfo, SaysWhatTheMetadataSay) {
    const ModelInfo info = inspect_model(random_model("gemma3"));
    EXPECT_EQ(info.name, "random gemma3");
    EXPECT_EQ(info.architecture, "gemma3");
    EXPECT_EQ(info.weight_type, "F32");
    EXPECT_EQ(info.layers, 7);
    EXPECT_EQ(info.q_heads, 4);
    EXPECT_EQ(info.kv_heads, 1);
    EXPECT_EQ(info.head_dim, 256);
    EXPECT_EQ(info.embedding_dim, 320);
    EXPECT_EQ(info.vocabulary_size, 288);
    EXPECT_EQ(info.context_length, 1024);
    EXPECT_EQ(info.sliding_window, (std::vector<int>{48, 48, 48, 48, 48, 0, 48}));
    EXPECT_FALSE(info.has_chat_template);
    EXPECT_EQ(inspect_model(random_model("llama-q4_0")).weight_type, "Q4_0");
    EXPECT_EQ(inspect_model(random_model("gemma3-list")).sliding_window,
              (std::vector<int>{64, 0, 64, 0}));
}

TEST(Sampler, GreedyAndSeeded) {
    const auto model = Model::load(random_model("llama-q8_0"));
    std::vector<float> logits(288, 0.0f);
    logits[17] = 1.0f;
    EXPECT_EQ(Sampler(*model, {}).sample(logits), 17);

    SamplerOptions options;
    options.temperature = 1.0f;
    options.seed = 5;
    Sampler first(*model, options);
    Sampler second(*model, options);
    std::set<Token> seen;
    for (int i = 0; i < 50; ++i) {
        const Token token = first.sample(logits);
        EXPECT_EQ(second.sample(logits), token);
        seen.insert(token);
    }
    EXPECT_GT(seen.size(), 5u);
    EXPECT_LE(seen.size(), 40u); // top_k
}

TEST(Sampler, WithoutLimitsEveryTokenComes) {
    const auto model = Model::load(random_model("llama-q8_0"));
    std::vector<float> logits(288, 0.0f);
    logits[17] = 5.0f; // 148 times as likely as another, which min_p forbids
    SamplerOptions options;
    options.temperature = 1.0f;
    options.top_k = 0;
    options.top_p = 1.0f;
    const auto distinct = [&] {
        Sampler sampler(*model, options);
        std::set<Token> seen;
        for (int i = 0; i < 300; ++i) {
            seen.insert(sampler.sample(logits));
        }
        return seen.size();
    };
    EXPECT_EQ(distinct(), 1u);
    options.min_p = 0.0f;
    EXPECT_GT(distinct(), 100u);
}

TEST(RealVocabulary, SmolLM2ChatTemplate) {
    const std::string path = real_model("smollm2");
    if (path.empty()) {
        GTEST_SKIP() << "fetch it: tools/model.py smollm2";
    }
    const auto model = Model::load(path);
    EXPECT_EQ(model->info().weight_type, "Q4_1");
    EXPECT_EQ(model->info().parameters, 134515008u);
    EXPECT_EQ(model->info().context_length, 8192);
    const ChatMessage messages[] = {{"system", "Be brief."}, {"user", "Hello!"}};
    EXPECT_EQ(model->chat_prompt(messages), "<|im_start|>system\nBe brief.<|im_end|>\n"
                                            "<|im_start|>user\nHello!<|im_end|>\n"
                                            "<|im_start|>assistant\n");
    const std::vector<Token> end = model->tokenize("<|im_end|>", false, true);
    ASSERT_EQ(end.size(), 1u);
    EXPECT_TRUE(model->is_end(end[0]));
}

TEST(RealVocabulary, Gemma3SentencePiece) {
    const std::string path = real_model("gemma3");
    if (path.empty()) {
        GTEST_SKIP() << "fetch it: tools/model.py gemma3";
    }
    const auto model = Model::load(path);
    EXPECT_EQ(model->info().architecture, "gemma3");
    const std::string text = sample_text(2000);
    EXPECT_EQ(pieces(*model, model->tokenize(text, false, false)), text);
}

} // namespace
} // namespace innerkv::runner::test
