// SPDX-License-Identifier: Apache-2.0
// Chunks multiply by weights expanded to fp32: as the same model with fp32 weights does.
#include <vector>

#include <gtest/gtest.h>

#include "comparison.h"
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
    return layer_keys(session, model->info(), model->info().layers - 1);
}

TEST(ExpandedWeights, MultiplyAsFloats) {
    const std::vector<float> floats = last_layer_keys("llama-q4_1-as-f32", 96, true);
    ASSERT_EQ(floats.size(), std::size_t{kTokens} * 2 * 64);
    for (const int chunk : {96, 64, 32}) {
        EXPECT_LT(mean_difference(floats, last_layer_keys("llama-q4_1", chunk, true)), 2e-4)
            << "chunk " << chunk;
    }
    // Otherwise activations are rounded to 8 bits.
    EXPECT_GT(mean_difference(floats, last_layer_keys("llama-q4_1", 96, false)), 2e-3);
}

} // namespace
} // namespace innerkv::runner::test
