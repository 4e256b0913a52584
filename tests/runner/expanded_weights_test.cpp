// SPDX-License-Identifier: Apache-2.0
// Chunks multiply by weights expanded to fp32: as the same model with fp32 weights does.
#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include "innerkv/codec.h"
#include "models.h"
#include "runner/runner.h"

namespace innerkv::runner::test {
namespace {

constexpr int kTokens = 96;

/// The last layer's keys of a prompt, which all products but the output's have gone into.
std::vector<float> last_layer_keys(const char* model_name, int chunk, bool expand_weights) {
    const std::shared_ptr<Model> model = Model::load(random_model(model_name));
    SessionOptions options = make_options("f16", kTokens);
    options.threads = 2;
    options.chunk = chunk;
    options.expand_weights = expand_weights;
    Session session(model, options);
    session.prompt(random_tokens(kTokens, model->info().vocabulary_size, 5));
    std::vector<float> keys;
    const SequenceView view = session.view(model->info().layers - 1);
    for (const PageRun& run : {view.sink, view.recent}) {
        for (std::int64_t token = 0; token < run.tokens; ++token) {
            const auto* const row = reinterpret_cast<const std::uint16_t*>(
                run.pages[token / kPageTokens] +
                static_cast<std::size_t>(token % kPageTokens * model->info().head_dim) *
                    sizeof(std::uint16_t));
            for (int channel = 0; channel < model->info().head_dim; ++channel) {
                keys.push_back(float_from_f16(row[channel]));
            }
        }
    }
    return keys;
}

/// Root mean square of the difference against that of `expected`.
double difference(const std::vector<float>& expected, const std::vector<float>& actual) {
    EXPECT_EQ(expected.size(), actual.size());
    double wrong = 0.0;
    double square = 0.0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        wrong += std::pow(static_cast<double>(expected[i]) - actual[i], 2);
        square += std::pow(static_cast<double>(expected[i]), 2);
    }
    return std::sqrt(wrong / square);
}

TEST(ExpandedWeights, MultiplyAsFloats) {
    const std::vector<float> floats = last_layer_keys("llama-q4_1-as-f32", 96, true);
    ASSERT_EQ(floats.size(), std::size_t{kTokens} * 64);
    for (const int chunk : {96, 64, 32}) {
        EXPECT_LT(difference(floats, last_layer_keys("llama-q4_1", chunk, true)), 2e-4)
            << "chunk " << chunk;
    }
    // Otherwise activations are rounded to 8 bits.
    EXPECT_GT(difference(floats, last_layer_keys("llama-q4_1", 96, false)), 2e-3);
}

} // namespace
} // namespace innerkv::runner::test
