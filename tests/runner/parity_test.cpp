// SPDX-License-Identifier: Apache-2.0
// Our graphs against libllama's on the same random models, with the f16 preset.
#include <gtest/gtest.h>

#include <algorithm>

#include "models.h"
#include "reference.h"

namespace innerkv::runner::test {
namespace {

constexpr int kTokens = 512;

std::vector<Token> tokens_for(const Model& model) {
    return random_tokens(kTokens, model.info().vocabulary_size, 7);
}

class Parity : public testing::TestWithParam<const char*> {};

TEST_P(Parity, LogitsAgreeWithLibllama) {
    const std::string path = random_model(GetParam());
    const std::shared_ptr<Model> model = Model::load(path);
    Reference reference(path, kTokens, true);
    const Agreement agreement = compare(model, tokens_for(*model), reference);
    record("", agreement);
    EXPECT_EQ(agreement.rows(), kTokens);
    EXPECT_LT(agreement.mean_kld(), 1e-4);
    EXPECT_GT(agreement.top1(), 0.995);
}

INSTANTIATE_TEST_SUITE_P(Models, Parity,
                         testing::Values("llama", "llama-head80", "llama-head96", "llama-factors",
                                         "llama-biases", "llama-fused", "llama-linear",
                                         "llama-yarn", "mistral", "qwen2", "qwen2-output-bias",
                                         "qwen3", "qwen3-yarn", "gemma2", "gemma3", "gemma3-caps",
                                         "gemma3-linear", "gemma3-bases", "gemma3-no-window"),
                         [](const auto& test) {
                             std::string name = test.param;
                             std::replace(name.begin(), name.end(), '-', '_');
                             return name;
                         });

/// With weights narrower than F32 ggml rounds activations too (to 8 bits where weights are
/// quantized), so that a last-bit difference in attention flips roundings in every product after it:
/// libllama does not agree with itself to 1e-4 either. We must not be further from it than it is from
/// itself.
class RoundedParity : public testing::TestWithParam<const char*> {};

TEST_P(RoundedParity, LogitsAgreeAsWellAsLibllamaWithItself) {
    const std::string path = random_model(GetParam());
    const std::shared_ptr<Model> model = Model::load(path);
    Reference flash(path, kTokens, true);
    Reference plain(path, kTokens, false);
    const auto [ours, itself] = compare(model, tokens_for(*model), flash, plain);
    record("", ours);
    record("libllama_with_itself_", itself);
    EXPECT_EQ(ours.rows(), kTokens);
    EXPECT_LT(ours.mean_kld(), std::max(1e-4, itself.mean_kld()));
    EXPECT_GT(ours.top1(), std::min(0.995, itself.top1() - 0.005));
}

INSTANTIATE_TEST_SUITE_P(Models, RoundedParity,
                         testing::Values("llama-f16", "llama-bf16", "gemma3-list", "llama-q8_0",
                                         "llama-q4_0", "llama-q4_1", "llama-q5_0", "qwen2-q8_0",
                                         "qwen3-q4_0"),
                         [](const auto& test) {
                             std::string name = test.param;
                             std::replace(name.begin(), name.end(), '-', '_');
                             return name;
                         });

} // namespace
} // namespace innerkv::runner::test
