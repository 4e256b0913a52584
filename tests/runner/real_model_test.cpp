// SPDX-License-Identifier: Apache-2.0
// Real models against libllama: a copy with F32 weights strictly, the file itself within what
// libllama's own rounding does to it (parity_test.cpp says why).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "models.h"
#include "reference.h"

namespace innerkv::runner::test {
namespace {

constexpr int kTokens = 512;
constexpr int kFewerTokens = 256; ///< where two runs of libllama are compared too

std::vector<Token> text_tokens(const Model& model, int count) {
    std::vector<Token> tokens =
        model.tokenize(sample_text(static_cast<std::size_t>(count) * 8), true, false);
    tokens.resize(static_cast<std::size_t>(count));
    return tokens;
}

Agreement compare_with_ours(const std::string& path, int count) {
    const std::shared_ptr<Model> model = Model::load(path);
    Reference reference(path, count, true);
    return compare(model, text_tokens(*model, count), reference);
}

Agreement compare_with_itself(const std::string& path, int count) {
    const std::shared_ptr<Model> model = Model::load(path);
    const std::vector<Token> tokens = text_tokens(*model, count);
    Reference flash(path, count, true);
    Reference plain(path, count, false);
    Agreement agreement(model->info().vocabulary_size);
    constexpr std::size_t step = 128;
    for (std::size_t first = 0; first < tokens.size(); first += step) {
        const auto part = std::span(tokens).subspan(first, step);
        agreement.add(flash.decode(part), plain.decode(part));
    }
    return agreement;
}

/// A copy with weights as F32; removed at the end.
class F32Copy {
public:
    explicit F32Copy(const std::string& path) : path_(scratch_file("f32.gguf")) {
        llama_model_quantize_params params = llama_model_quantize_default_params();
        params.ftype = LLAMA_FTYPE_ALL_F32;
        params.allow_requantize = true;
        params.nthread = 2;
        made_ = llama_model_quantize(path.c_str(), path_.c_str(), &params) == 0;
    }
    ~F32Copy() { std::remove(path_.c_str()); }
    bool made() const { return made_; }
    const std::string& path() const { return path_; }

private:
    std::string path_;
    bool made_ = false;
};

class RealModel : public testing::TestWithParam<const char*> {
protected:
    void SetUp() override {
        path_ = real_model(GetParam());
        if (path_.empty()) {
            GTEST_SKIP() << "fetch it: tools/model.py " << GetParam();
        }
        set_log({});
    }
    std::string path_;
};

TEST_P(RealModel, F32CopyAgreesWithLibllama) {
    const F32Copy copy(path_);
    ASSERT_TRUE(copy.made());
    const Agreement agreement = compare_with_ours(copy.path(), kTokens);
    record("", agreement);
    EXPECT_EQ(agreement.rows(), kTokens);
    EXPECT_LT(agreement.mean_kld(), 1e-4);
    EXPECT_GT(agreement.top1(), 0.995);
}

TEST_P(RealModel, AgreesAsWellAsLibllamaWithItself) {
    const Agreement itself = compare_with_itself(path_, kFewerTokens);
    const Agreement agreement = compare_with_ours(path_, kFewerTokens);
    record("", agreement);
    record("libllama_with_itself_", itself);
    EXPECT_EQ(agreement.rows(), kFewerTokens);
    EXPECT_LT(agreement.mean_kld(), std::max(1e-4, 1.25 * itself.mean_kld()));
    EXPECT_GT(agreement.top1(), std::min(0.995, itself.top1() - 0.03));
}

INSTANTIATE_TEST_SUITE_P(Models, RealModel, testing::Values("smollm2", "gemma3"),
                         [](const auto& test) { return std::string(test.param); });

} // namespace
} // namespace innerkv::runner::test
