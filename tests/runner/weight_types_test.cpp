// SPDX-License-Identifier: Apache-2.0
// Weights of every type that ggml can read.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>

#include "gguf_editor.h"
#include "models.h"

namespace innerkv::runner::test {
namespace {

std::vector<float> logits_of(const std::string& path) {
    SessionOptions options = make_options("f16", 64);
    options.threads = 1;
    Session session(Model::load(path), options);
    session.prompt(random_tokens(40, 288, 5));
    return {session.logits().begin(), session.logits().end()};
}

double cosine(const std::vector<float>& a, const std::vector<float>& b) {
    double product = 0.0;
    double a_square = 0.0;
    double b_square = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        product += double{a[i]} * double{b[i]};
        a_square += double{a[i]} * double{a[i]};
        b_square += double{b[i]} * double{b[i]};
    }
    return product / std::sqrt(a_square * b_square);
}

/// Bytes that are numbers of about 1 in every type: codes of all kinds, and scales that are finite.
std::vector<std::uint8_t> random_bytes(std::size_t count) {
    std::mt19937 random(3);
    std::vector<std::uint8_t> bytes(count);
    for (std::uint8_t& byte : bytes) {
        byte = static_cast<std::uint8_t>(random() % 64);
    }
    return bytes;
}

/// With embeddings of that type, or with the same ones as F32: their rows are looked up, and they are
/// the output's matrix.
std::vector<float> logits_with(ggml_type type, bool as_f32) {
    const std::string path = scratch_file("weight-type.gguf");
    GgufEditor(random_model("llama-biases")).write(path, [&](ggml_tensor& tensor) {
        if (std::strcmp(tensor.name, "token_embd.weight") != 0) {
            return true;
        }
        const std::vector<std::uint8_t> bytes = random_bytes(
            ggml_row_size(type, tensor.ne[0]) * static_cast<std::size_t>(tensor.ne[1]));
        if (as_f32) {
            ggml_get_type_traits(type)->to_float(bytes.data(), static_cast<float*>(tensor.data),
                                                 ggml_nelements(&tensor));
        } else {
            std::memcpy(tensor.data, bytes.data(), bytes.size());
            GgufEditor::set_type(tensor, type);
        }
        return true;
    });
    std::vector<float> logits = logits_of(path);
    std::remove(path.c_str());
    return logits;
}

TEST(WeightTypes, EveryOneThatGgmlReads) {
    int types = 0;
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const auto type = static_cast<ggml_type>(i);
        if (ggml_get_type_traits(type)->to_float) {
            EXPECT_GT(cosine(logits_with(type, true), logits_with(type, false)), 0.99)
                << ggml_type_name(type);
            ++types;
        }
    }
    EXPECT_GE(types, 25);
}

} // namespace
} // namespace innerkv::runner::test
