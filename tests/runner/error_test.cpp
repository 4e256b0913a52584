// SPDX-License-Identifier: Apache-2.0
// What is refused, and with which words.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>

#include "gguf_editor.h"
#include "models.h"

namespace innerkv::runner::test {
namespace {

/// The message of the exception of type `Expected` that `call` throws; empty with a failure if none.
template <typename Expected, typename Call>
std::string refusal(Call&& call) {
    try {
        call();
    } catch (const Expected& error) {
        EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
        return error.what();
    }
    ADD_FAILURE() << "nothing was thrown";
    return "";
}

void expect_in(const std::string& text, const std::string& message) {
    EXPECT_NE(message.find(text), std::string::npos) << "in: " << message;
}

/// Loads what `change` makes of a good model and expects the refusal to say `text`.
void expect_refused(const std::string& text, const std::function<void(GgufEditor&)>& change,
                    const GgufEditor::Edit& edit = {}, const char* source = "llama-q8_0") {
    const std::string path = scratch_file("edited.gguf");
    GgufEditor editor(random_model(source));
    change(editor);
    editor.write(path, edit);
    const std::string message = refusal<ModelError>([&] { Model::load(path); });
    expect_in(path, message);
    expect_in(text, message);
    std::remove(path.c_str());
}

void expect_refused_tensor(const std::string& text, const GgufEditor::Edit& edit) {
    expect_refused(
        text, [](GgufEditor&) {}, edit);
}

void write_file(const std::string& path, std::string_view contents) {
    std::ofstream(path, std::ios::binary)
        .write(contents.data(), static_cast<std::streamsize>(contents.size()));
}

TEST(ModelErrors, FilesThatAreNoModel) {
    expect_in("cannot open: No such file",
              refusal<ModelError>([] { Model::load("/nonexistent/model.gguf"); }));
    expect_in("not a regular file", refusal<ModelError>([] { Model::load("/"); }));
    const std::string path = scratch_file("not-a-model.gguf");
    write_file(path, "");
    expect_in("is empty", refusal<ModelError>([&] { Model::load(path); }));
    write_file(path, "What is the use of a book without pictures or conversations?");
    expect_in("is not a GGUF file", refusal<ModelError>([&] { Model::load(path); }));
    expect_in("is not a GGUF file", refusal<ModelError>([&] { inspect_model(path); }));
    write_file(path, "GGU?");
    expect_in("is not a GGUF file", refusal<ModelError>([&] { Model::load(path); }));
    std::remove(path.c_str());
}

TEST(ModelErrors, BeginningsOfAHeader) {
    const std::string header("GGUF\x03\0\0\0\x11\0\0\0\0\0\0\0\x11\0\0\0\0\0\0\0", 24);
    const std::string path = scratch_file("truncated-header.gguf");
    for (std::size_t bytes = 1; bytes < header.size(); ++bytes) {
        write_file(path, std::string_view(header).substr(0, bytes));
        expect_in("is truncated: " + std::to_string(bytes) + " of the 24 bytes",
                  refusal<ModelError>([&] { Model::load(path); }));
    }
    std::remove(path.c_str());
}

TEST(ModelErrors, Architecture) {
    expect_refused("architecture 'mamba' is not supported; supported are llama, qwen2",
                   [](GgufEditor& file) { file.set("general.architecture", "mamba"); });
    expect_refused("general.architecture is missing", [](GgufEditor& file) {
        gguf_remove_key(file.metadata(), "general.architecture");
    });
    expect_refused("general.architecture is not a string",
                   [](GgufEditor& file) { file.set("general.architecture", std::uint32_t{1}); });
    expect_refused("mixture of experts",
                   [](GgufEditor& file) { file.set("llama.expert_count", 8u); });
    expect_refused("latent attention (MLA)",
                   [](GgufEditor& file) { file.set("llama.attention.kv_lora_rank", 512u); });
    expect_refused("is one of 3 parts", [](GgufEditor& file) { file.set("split.count", 3u); });
}

TEST(ModelErrors, Heads) {
    expect_refused("64 channels in a key head and 128 in a value head",
                   [](GgufEditor& file) { file.set("llama.attention.value_length", 128u); });
    expect_refused("head dimension 60; supported are 64, 80, 96", [](GgufEditor& file) {
        file.set("llama.attention.key_length", 60u);
        file.set("llama.attention.value_length", 60u);
    });
    expect_refused("4 query heads for 3 KV heads",
                   [](GgufEditor& file) { file.set("llama.attention.head_count_kv", 3u); });
    expect_refused("head_count is 0",
                   [](GgufEditor& file) { file.set("llama.attention.head_count", 0u); });
    expect_refused("differs between layers", [](GgufEditor& file) {
        const std::int32_t heads[] = {2, 2, 1};
        gguf_set_arr_data(file.metadata(), "llama.attention.head_count_kv", GGUF_TYPE_INT32, heads,
                          3);
    });
}

TEST(ModelErrors, Numbers) {
    expect_refused("llama.block_count is missing",
                   [](GgufEditor& file) { gguf_remove_key(file.metadata(), "llama.block_count"); });
    expect_refused("llama.block_count is not an integer",
                   [](GgufEditor& file) { file.set("llama.block_count", 3.0f); });
    expect_refused("llama.block_count is 4000000000",
                   [](GgufEditor& file) { file.set("llama.block_count", 4000000000u); });
    expect_refused("llama.embedding_length is 0",
                   [](GgufEditor& file) { file.set("llama.embedding_length", 0u); });
    expect_refused("layer_norm_rms_epsilon is missing", [](GgufEditor& file) {
        gguf_remove_key(file.metadata(), "llama.attention.layer_norm_rms_epsilon");
    });
    expect_refused("rope.freq_base is not a finite number", [](GgufEditor& file) {
        file.set("llama.rope.freq_base", std::numeric_limits<float>::quiet_NaN());
    });
    expect_refused("rope.freq_base is -5",
                   [](GgufEditor& file) { file.set("llama.rope.freq_base", -5.0f); });
    expect_refused("rope.dimension_count is 32 for head dimension 64",
                   [](GgufEditor& file) { file.set("llama.rope.dimension_count", 32u); });
    expect_refused("rope scaling 'longrope'",
                   [](GgufEditor& file) { file.set("llama.rope.scaling.type", "longrope"); });
}

TEST(ModelErrors, Tensors) {
    const auto named = [](const ggml_tensor& tensor, const char* name) {
        return std::strcmp(tensor.name, name) == 0;
    };
    expect_refused_tensor("tensor blk.1.attn_k.weight is missing", [&](ggml_tensor& tensor) {
        return !named(tensor, "blk.1.attn_k.weight");
    });
    expect_refused(
        "tensor rope_freqs.weight is not part of a qwen3 model", [](GgufEditor&) {},
        [&](ggml_tensor& tensor) {
            if (named(tensor, "output.weight")) {
                ggml_set_name(&tensor, "rope_freqs.weight");
            }
            return true;
        },
        "qwen3-q4_0");
    expect_refused_tensor("tensor blk.0.ffn_up.weight has shape [512, 256]; [256, 512] follows",
                          [&](ggml_tensor& tensor) {
                              if (named(tensor, "blk.0.ffn_up.weight")) {
                                  std::swap(tensor.ne[0], tensor.ne[1]);
                                  tensor.nb[1] = ggml_row_size(tensor.type, tensor.ne[0]);
                              }
                              return true;
                          });
    expect_refused_tensor("tensor output_norm.weight has type I32; F32 is supported",
                          [&](ggml_tensor& tensor) {
                              if (named(tensor, "output_norm.weight")) {
                                  tensor.type = GGML_TYPE_I32;
                              }
                              return true;
                          });
    // Q8_1 and Q8_K are what ggml turns activations into
    for (const ggml_type type : {GGML_TYPE_I32, GGML_TYPE_Q8_1, GGML_TYPE_Q8_K}) {
        expect_refused(
            std::string("tensor token_embd.weight has type ") +
                (type == GGML_TYPE_I32 ? "I32" : "Q8_"),
            [](GgufEditor&) {},
            [&](ggml_tensor& tensor) {
                if (named(tensor, "token_embd.weight")) {
                    GgufEditor::set_type(tensor, type);
                }
                return true;
            },
            "llama-biases");
    }
}

void set_tokens(GgufEditor& file, const std::vector<std::string>& tokens) {
    std::vector<const char*> texts(tokens.size());
    std::transform(tokens.begin(), tokens.end(), texts.begin(),
                   [](const std::string& token) { return token.c_str(); });
    gguf_set_arr_str(file.metadata(), "tokenizer.ggml.tokens", texts.data(), texts.size());
    gguf_remove_key(file.metadata(), "tokenizer.ggml.token_type");
}

TEST(ModelErrors, Vocabulary) {
    expect_refused("no usable vocabulary", [](GgufEditor& file) {
        gguf_remove_key(file.metadata(), "tokenizer.ggml.tokens");
    });
    expect_refused("tokenizer 't5' is not supported",
                   [](GgufEditor& file) { file.set("tokenizer.ggml.model", "t5"); });
    expect_refused("tokenizer.ggml.tokens is not an array of strings",
                   [](GgufEditor& file) { file.set("tokenizer.ggml.tokens", 5u); });
    expect_refused("holds a token twice, at 1", [](GgufEditor& file) {
        std::vector<const char*> tokens(288, "same");
        gguf_set_arr_str(file.metadata(), "tokenizer.ggml.tokens", tokens.data(), tokens.size());
    });
    expect_refused("has a tokenizer that cannot be used", [](GgufEditor& file) {
        gguf_remove_key(file.metadata(), "tokenizer.ggml.merges");
    });
    expect_refused("tensor token_embd.weight has shape [256, 288]; [256, 2] follows",
                   [](GgufEditor& file) {
                       set_tokens(file, {"a", "b"});
                       gguf_set_val_bool(file.metadata(), "tokenizer.ggml.add_bos_token", false);
                   });
}

/// libllama would end the process at the first text.
TEST(ModelErrors, VocabularyWithoutTheTokensItAdds) {
    for (const char* source : {"llama-q8_0", "llama-spm"}) {
        SCOPED_TRACE(source);
        expect_refused(
            "adds a first (bos) token to every text and has none",
            [](GgufEditor& file) {
                set_tokens(file, {"a"});
                gguf_set_val_bool(file.metadata(), "tokenizer.ggml.add_bos_token", true);
            },
            {}, source);
        expect_refused(
            "adds a last (eos) token to every text and has none",
            [](GgufEditor& file) {
                set_tokens(file, {"a", "b"});
                gguf_set_val_u32(file.metadata(), "tokenizer.ggml.bos_token_id", 0);
                gguf_set_val_bool(file.metadata(), "tokenizer.ggml.add_eos_token", true);
            },
            {}, source);
    }
}

TEST(ModelErrors, SentencePieceWithoutBytes) {
    const std::string path = scratch_file("no-bytes.gguf");
    GgufEditor editor(random_model("llama-spm"));
    std::vector<std::string> tokens(288);
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        tokens[i] = "<token " + std::to_string(i) + ">";
    }
    tokens[5] = "t";
    tokens[6] = "\xe2\x96\x81"; // the space before a text
    set_tokens(editor, tokens);
    editor.write(path);
    const auto model = Model::load(path);
    EXPECT_EQ(model->tokenize("tt", true, false).size(), 4u);
    const std::string message = refusal<ModelError>([&] { model->tokenize("u", false, false); });
    expect_in(path, message);
    expect_in("without tokens for every byte", message);
    std::remove(path.c_str());
}

class SessionErrors : public testing::Test {
protected:
    std::shared_ptr<Model> model_ = Model::load(random_model("llama-q8_0"));
    std::string options_refusal(const std::function<void(SessionOptions&)>& change) {
        SessionOptions options = make_options("base", 256);
        change(options);
        return refusal<InvalidArgument>([&] { Session(model_, options); });
    }
};

TEST_F(SessionErrors, Options) {
    expect_in("a context of 2000 tokens was asked for; ",
              options_refusal([](SessionOptions& options) { options.context = 2000; }));
    expect_in("was trained for 1024",
              options_refusal([](SessionOptions& options) { options.context = 1025; }));
    expect_in("1 to 1024 is supported",
              options_refusal([](SessionOptions& options) { options.context = 0; }));
    expect_in("-1 threads", options_refusal([](SessionOptions& options) { options.threads = -1; }));
    expect_in("a chunk of 100 tokens",
              options_refusal([](SessionOptions& options) { options.chunk = 100; }));
    expect_in("base", refusal<InvalidArgument>([] { make_options("no-such-preset", 256); }));
    expect_in("a session needs a model",
              refusal<InvalidArgument>([] { Session(nullptr, make_options("base", 256)); }));
}

TEST_F(SessionErrors, Tokens) {
    Session session(model_, make_options("base", 64));
    const std::vector<Token> many(65, 1);
    expect_in("65 tokens after 0 do not fit into the context of 64",
              refusal<InvalidArgument>([&] { session.prompt(many); }));
    expect_in("no tokens", refusal<InvalidArgument>([&] { session.prompt({}); }));
    const std::vector<Token> outside{1, 2, 288};
    expect_in("token 288 is outside the vocabulary of 288",
              refusal<InvalidArgument>([&] { session.prompt(outside); }));
    expect_in("token -1", refusal<InvalidArgument>([&] { session.decode(-1); }));
    EXPECT_EQ(session.length(), 0);
    session.prompt(std::span(many).first(64));
    expect_in("1 tokens after 64", refusal<InvalidArgument>([&] { session.decode(1); }));
    expect_in("a length of 65", refusal<InvalidArgument>([&] { session.truncate(65); }));
    EXPECT_EQ(session.length(), 64);
    session.clear();
    expect_in("logits from token 3 on",
              refusal<InvalidArgument>([&] { session.evaluate(std::span(many).first(3), 3, {}); }));
}

TEST_F(SessionErrors, SamplerAndVocabulary) {
    SamplerOptions options;
    options.top_p = 0.0f;
    expect_in("top_p", refusal<InvalidArgument>([&] { Sampler(*model_, options); }));
    Sampler sampler(*model_, {});
    const std::vector<float> logits(3);
    expect_in("3 logits", refusal<InvalidArgument>([&] { sampler.sample(logits); }));
    expect_in("token 288", refusal<InvalidArgument>([&] { model_->piece(288); }));
    expect_in("token -1", refusal<InvalidArgument>([&] { model_->is_end(-1); }));
    const ChatMessage message{"user", "Hello"};
    expect_in("has no chat template", refusal<ModelError>([&] {
                  model_->chat_prompt({&message, 1});
              }));
    const auto other = Model::load(random_model("llama-spm"));
    expect_in("chat template that is not known", refusal<ModelError>([&] {
                  other->chat_prompt({&message, 1});
              }));
}

} // namespace
} // namespace innerkv::runner::test
