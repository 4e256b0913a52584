// SPDX-License-Identifier: Apache-2.0
// Models that tools/make_outlier_gguf.py gave outlier channels: the same function, other keys.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>

#include "comparison.h"
#include "models.h"
#include "reference.h"
#include "runner/calibrator.h"

namespace innerkv::runner::test {
namespace {

constexpr int kTokens = 64;
constexpr int kPairs = 3;
constexpr float kFactor = 32.0f;

struct Trace {
    std::vector<float> logits;
    std::vector<float> keys; ///< [layers, tokens, kv_heads, head_dim]
};

Trace trace(const std::shared_ptr<Model>& model) {
    const ModelInfo& info = model->info();
    SessionOptions options = make_options("f16", kTokens);
    options.threads = 1;
    Session session(model, options);
    Trace result;
    session.evaluate(random_tokens(kTokens, info.vocabulary_size, 5), 0,
                     [&](std::int64_t, std::span<const float> rows) {
                         result.logits.insert(result.logits.end(), rows.begin(), rows.end());
                     });
    for (int layer = 0; layer < info.layers; ++layer) {
        const std::vector<float> keys = layer_keys(session, info, layer);
        result.keys.insert(result.keys.end(), keys.begin(), keys.end());
    }
    return result;
}

std::shared_ptr<Model> load_and_remove(const std::string& path) {
    std::shared_ptr<Model> model = Model::load(path);
    std::remove(path.c_str()); // stays mapped
    return model;
}

void expect_near(const std::vector<float>& expected, const std::vector<float>& actual) {
    ASSERT_EQ(expected.size(), actual.size());
    float largest = 0.0f;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        largest = std::max(largest, std::abs(expected[i] - actual[i]));
    }
    EXPECT_LT(largest, 1e-3f);
}

/// In every layer and head both channels of kPairs pairs are `factor` times as large, all others as they
/// were. Keys here have rope pairs half a head apart, whatever the file's order.
void expect_outliers(const ModelInfo& info, const std::vector<float>& before,
                     const std::vector<float>& after) {
    ASSERT_EQ(before.size(), after.size());
    const auto dim = static_cast<std::size_t>(info.head_dim);
    const auto heads = static_cast<std::size_t>(info.kv_heads);
    const std::size_t rows = before.size() / dim;
    for (std::size_t head = 0; head < static_cast<std::size_t>(info.layers) * heads; ++head) {
        const std::size_t first = head / heads * kTokens * heads + head % heads;
        std::vector<bool> scaled(dim);
        for (std::size_t c = 0; c < dim; ++c) {
            double square = 0.0;
            double square_after = 0.0;
            for (std::size_t row = first; row < rows && row < first + kTokens * heads;
                 row += heads) {
                square += std::pow(double{before[row * dim + c]}, 2);
                square_after += std::pow(double{after[row * dim + c]}, 2);
            }
            const double ratio = std::sqrt(square_after / square);
            scaled[c] = ratio > 2.0;
            EXPECT_NEAR(ratio, scaled[c] ? kFactor : 1.0f, scaled[c] ? 0.1 : 0.01) << c;
        }
        EXPECT_EQ(std::count(scaled.begin(), scaled.end(), true), 2 * kPairs) << head;
        for (std::size_t c = 0; c < dim / 2; ++c) {
            EXPECT_EQ(scaled[c], scaled[c + dim / 2]) << c;
        }
    }
}

class OutlierModel : public testing::TestWithParam<const char*> {};

TEST_P(OutlierModel, SameFunctionOtherKeys) {
    const std::shared_ptr<Model> model = Model::load(random_model(GetParam()));
    const std::shared_ptr<Model> changed =
        load_and_remove(make_outliers(random_model(GetParam()), kFactor, kPairs));
    const Trace before = trace(model);
    const Trace after = trace(changed);
    expect_near(before.logits, after.logits);
    expect_outliers(model->info(), before.keys, after.keys);
}

INSTANTIATE_TEST_SUITE_P(Models, OutlierModel,
                         testing::Values("llama", "llama-biases", "llama-fused", "qwen2", "qwen3",
                                         "gemma2", "gemma3"),
                         [](const auto& test) {
                             std::string name = test.param;
                             std::replace(name.begin(), name.end(), '-', '_');
                             return name;
                         });

/// --f32: the same values; what differs is that no product rounds activations to 8 bits.
TEST(OutlierModel, AllWeightsInF32) {
    const std::shared_ptr<Model> quantized = Model::load(random_model("llama-q4_1"));
    const std::shared_ptr<Model> changed = load_and_remove(make_f32(random_model("llama-q4_1")));
    EXPECT_EQ(changed->info().weight_type, "F32");
    EXPECT_GT(changed->info().file_bytes, 4 * changed->info().parameters);
    EXPECT_EQ(changed->info().parameters, quantized->info().parameters);
    EXPECT_LT(mean_difference(trace(quantized).logits, trace(changed).logits), 0.05);
}

/// Quantized weights: against the same tensors stored as F32, which --factor 1 makes.
TEST(OutlierModel, RealSmolLM2) {
    const std::string path = real_model("smollm2");
    ASSERT_FALSE(path.empty());
    const std::shared_ptr<Model> plain = load_and_remove(make_outliers(path, 1.0f, kPairs));
    const std::shared_ptr<Model> changed = load_and_remove(make_outliers(path, kFactor, kPairs));
    const Trace before = trace(plain);
    const Trace after = trace(changed);
    // A key that is subnormal in one model alone may move an activation to another of its 8-bit codes.
    EXPECT_LT(mean_difference(before.logits, after.logits), 1e-3);
    expect_outliers(plain->info(), before.keys, after.keys);
}

/// Predictions of the second half of `tokens`, [rows, vocabulary].
std::vector<float> second_half(const std::shared_ptr<Model>& model, std::span<const Token> tokens,
                               SessionOptions options) {
    options.threads = 1;
    std::vector<float> all;
    Session session(model, options);
    session.evaluate(tokens, static_cast<std::int64_t>(tokens.size() / 2),
                     [&](std::int64_t, std::span<const float> rows) {
                         all.insert(all.end(), rows.begin(), rows.end());
                     });
    return all;
}

/// Mean divergence of predictions from those of an f16 cache.
double divergence(const std::shared_ptr<Model>& model, std::span<const float> f16,
                  std::span<const float> logits) {
    Agreement agreement(model->info().vocabulary_size);
    agreement.add(f16, logits);
    return agreement.mean_kld();
}

/// What a norm is for: without one, rotation spreads an outlier over all channels of its key.
TEST(OutlierModel, RealSmolLM2NeedsANorm) {
    const std::string path = real_model("smollm2");
    ASSERT_FALSE(path.empty());
    const std::shared_ptr<Model> model = load_and_remove(make_outliers(path, kFactor, kPairs));
    const std::vector<Token> text = model->tokenize(sample_text(8000), false, false);
    constexpr std::size_t window = 640;
    ASSERT_GT(text.size(), 2 * window);
    Calibrator calibrator(model, window, 1);
    calibrator.add(std::span(text).first(window));
    const std::span<const Token> other = std::span(text).subspan(window, window);
    const std::vector<float> f16 = second_half(model, other, make_options("f16", window));
    SessionOptions options = make_options("k4v4", window);
    options.transform.norm = KeyNormPolicy::none;
    const double without = divergence(model, f16, second_half(model, other, options));
    options.calibration = std::make_shared<Calibration>(calibrator.result());
    const double with = divergence(model, f16, second_half(model, other, options));
    EXPECT_LT(with, 0.3 * without) << without;
}

/// What `base` loses on a model with outlier channels, by the norm of its keys.
struct Losses {
    double balanced = 0; ///< the default
    double none = 0;
    double prefill = 0;
};

/// Of this factor on the second half of one window. What 4-bit weights do to any cache, `k8v8`'s divergence, is taken
/// off.
Losses losses_at(const std::string& path, float factor) {
    constexpr std::size_t window = 1280;
    const std::shared_ptr<Model> model = load_and_remove(make_outliers(path, factor, kPairs));
    const std::vector<Token> text = model->tokenize(sample_text(8000), false, false);
    EXPECT_GE(text.size(), window);
    const std::span<const Token> tokens = std::span(text).first(window);
    const std::vector<float> f16 = second_half(model, tokens, make_options("f16", window));
    const auto of = [&](const char* preset, std::optional<KeyNormPolicy> norm = {}) {
        SessionOptions options = make_options(preset, window);
        if (norm) options.transform.norm = *norm;
        return divergence(model, f16, second_half(model, tokens, options));
    };
    const double floor = of("k8v8");
    return {of("base") - floor, of("base", KeyNormPolicy::none) - floor,
            of("base", KeyNormPolicy::prefill) - floor};
}

/// The norm of the presets balances keys against queries, so such a change undoes itself; with no norm the loss grows
/// thirtyfold. With and without outliers it is at most a tenth worse than the better of the single norms.
TEST(OutlierModel, RealSmolLM2LosesLittleWithTheDefaultNorm) {
    const std::string path = real_model("smollm2");
    ASSERT_FALSE(path.empty());
    const Losses plain = losses_at(path, 1.0f);
    const Losses outliers = losses_at(path, kFactor);
    EXPECT_GT(plain.balanced, 0.0);
    EXPECT_LT(outliers.balanced, 1.2 * plain.balanced);
    EXPECT_GT(outliers.none, 10.0 * plain.none);
    for (const Losses& losses : {plain, outliers}) {
        SCOPED_TRACE(losses.balanced);
        EXPECT_LT(losses.balanced, 1.1 * losses.none);
        EXPECT_LT(losses.balanced, 1.1 * losses.prefill);
    }
}

} // namespace
} // namespace innerkv::runner::test
