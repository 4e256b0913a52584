// SPDX-License-Identifier: Apache-2.0
// What a session holds after a chunk that failed inside.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "gguf_editor.h"
#include "models.h"
#include "runner/cache_store.h"

namespace innerkv::runner::test {
namespace {

SessionOptions base_options(int context) {
    SessionOptions options = make_options("base", context);
    options.threads = 1;
    return options;
}

/// Rows that no part has stored must not be attended to.
TEST(CacheStoreCommit, ThrowsWhileAPartHasNotRun) {
    const Preset& preset = find_preset("base");
    CacheConfig config = CacheConfig::from_preset(preset, 1, 2, 64);
    config.max_tokens = 64;
    CacheStore store(config, make_options("f16", 64));
    const std::vector<float> values(2 * 64, 1.0f);
    const Rows rows{values.data(), RowType::f32, 2 * 64, 64};
    ASSERT_EQ(store.start_append(0, {.tokens = 1, .k = rows, .v = rows}), 2);
    store.run_part(0);
    EXPECT_THROW(store.commit(), std::logic_error);
    EXPECT_EQ(store.view(0).length, 0);
    store.run_part(1);
    store.commit();
    EXPECT_EQ(store.view(0).length, 1);
}

/// A failure inside the graph comes out as an exception; an empty session stays empty.
TEST(SessionFailure, ValuesThatAreNotFinite) {
    const std::string path = scratch_file("not-finite.gguf");
    GgufEditor editor(random_model("llama-biases"));
    editor.write(path, [](ggml_tensor& tensor) {
        if (std::strcmp(tensor.name, "blk.1.attn_k.bias") == 0) {
            static_cast<float*>(tensor.data)[3] = std::numeric_limits<float>::quiet_NaN();
        }
        return true;
    });
    const std::shared_ptr<Model> model = Model::load(path);
    Session session(model, base_options(256));
    const std::vector<Token> tokens = random_tokens(100, 288, 1);
    for (int attempt = 0; attempt < 2; ++attempt) {
        EXPECT_THROW(session.prompt(tokens), InvalidArgument);
        EXPECT_EQ(session.length(), 0);
        EXPECT_EQ(session.cache_report().tokens, 0);
        EXPECT_TRUE(session.logits().empty());
        EXPECT_THROW(session.decode(1), InvalidArgument);
    }
    std::remove(path.c_str());
}

constexpr Token kFaulty = 5;
constexpr int kBefore = 400;

float* floats(ggml_tensor& tensor) { return static_cast<float*>(tensor.data); }

/// A model with a token whose keys and values in layer 1 are beyond fp16. One channel tells it: it is 0 in all
/// other tokens' embeddings, layer 0 adds nothing to it, and layer 1 multiplies it by 1e18.
std::shared_ptr<Model> model_with_faulty_token(const char* name) {
    const std::string path = scratch_file("faulty-token.gguf");
    GgufEditor editor(random_model(name));
    editor.write(path, [](ggml_tensor& tensor) {
        const std::string_view tensor_name = tensor.name;
        if (tensor_name == "token_embd.weight") {
            for (std::int64_t token = 0; token < tensor.ne[1]; ++token) {
                floats(tensor)[token * tensor.ne[0]] = token == kFaulty ? 1.0f : 0.0f;
            }
        } else if (tensor_name == "blk.0.attn_output.weight" ||
                   tensor_name == "blk.0.ffn_down.weight") {
            std::fill_n(floats(tensor), tensor.ne[0], 0.0f);
        } else if (tensor_name == "blk.1.attn_norm.weight") {
            floats(tensor)[0] = 1e18f;
        }
        return true;
    });
    std::shared_ptr<Model> model = Model::load(path);
    std::remove(path.c_str());
    return model;
}

/// Everything that attention reads of one layer.
struct Contents {
    std::int64_t length;
    std::vector<std::int64_t> runs; ///< first token and tokens of each
    std::vector<std::byte> bytes;

    bool operator==(const Contents&) const = default;
};

void add_run(const PageRun& run, const PageFormat& format, int kv_heads, Contents& contents) {
    contents.runs.insert(contents.runs.end(), {run.first_token, run.tokens});
    for (std::int64_t token = 0; token < run.tokens; token += kPageTokens) {
        const std::byte* const group = run.pages[static_cast<std::size_t>(token / kPageTokens)];
        for (int head = 0; head < kv_heads; ++head) {
            const std::byte* const page = group + static_cast<std::size_t>(head) * run.head_stride;
            const auto add = [&](const std::byte* from, std::size_t count) {
                contents.bytes.insert(contents.bytes.end(), from, from + count);
            };
            if (format.quantized()) {
                add(page, format.page_bytes());
                continue;
            }
            const std::size_t row =
                sizeof(std::uint16_t) * static_cast<std::size_t>(format.head_dim);
            const auto rows =
                static_cast<std::size_t>(std::min<std::int64_t>(kPageTokens, run.tokens - token));
            add(page, rows * row);
            add(page + kPageTokens * row, rows * row);
        }
    }
}

Contents contents_of(const Session& session, const ModelInfo& info, int layer) {
    const SequenceView view = session.view(layer);
    const PageFormat f16 = find_preset("f16").format(info.head_dim);
    Contents contents{view.length, {}, {}};
    add_run(view.sink, f16, info.kv_heads, contents);
    add_run(view.quantized, session.options().preset.format(info.head_dim), info.kv_heads,
            contents);
    add_run(view.recent, f16, info.kv_heads, contents);
    return contents;
}

class FailedChunk : public testing::Test {
protected:
    void load(const char* name) {
        model_ = model_with_faulty_token(name);
        tokens_ = random_tokens(kBefore + 200, model_->info().vocabulary_size, 4);
        std::replace(tokens_.begin(), tokens_.end(), kFaulty, Token{6});
    }

    std::unique_ptr<Session> prompted() const {
        auto session = std::make_unique<Session>(model_, base_options(1024));
        session->prompt(std::span(tokens_).first(kBefore));
        return session;
    }
    /// A session that got so many tokens more, and lost them again.
    std::unique_ptr<Session> truncated(std::size_t more) const {
        std::unique_ptr<Session> session = prompted();
        session->prompt(std::span(tokens_).subspan(kBefore, more));
        session->truncate(kBefore);
        return session;
    }
    /// The tokens behind those, one of them faulty.
    std::vector<Token> faulty_chunk() const {
        std::vector<Token> chunk(tokens_.begin() + kBefore, tokens_.end());
        chunk[150] = kFaulty;
        return chunk;
    }
    Contents contents(const Session& session, int layer) const {
        return contents_of(session, model_->info(), layer);
    }

    std::shared_ptr<Model> model_;
    std::vector<Token> tokens_;
};

TEST_F(FailedChunk, IsTakenBackLayerByLayer) {
    load("llama");
    const std::unique_ptr<Session> owner = prompted();
    Session& session = *owner;
    EXPECT_THROW(session.prompt(faulty_chunk()), InvalidArgument);
    EXPECT_EQ(session.length(), kBefore);
    EXPECT_TRUE(session.logits().empty());
    // Layer 0 had the whole chunk. Layer 1 had the steps before the one that failed; they end where pages
    // do, at 544 tokens. Layer 2 never ran.
    EXPECT_TRUE(contents(session, 0) == contents(*truncated(200), 0));
    EXPECT_TRUE(contents(session, 1) == contents(*truncated(144), 1));
    EXPECT_TRUE(contents(session, 2) == contents(*prompted(), 2));
    // Pages that were quantized on the way stay so.
    EXPECT_GT(session.view(0).quantized.tokens, prompted()->view(0).quantized.tokens);
    session.prompt(std::span(tokens_).subspan(kBefore));
    EXPECT_EQ(session.length(), kBefore + 200);
}

TEST_F(FailedChunk, OfOneTokenIsTakenBackInWindowedLayers) {
    load("gemma3");
    ASSERT_EQ(model_->info().sliding_window[0], 48);
    const std::unique_ptr<Session> owner = prompted();
    Session& session = *owner;
    EXPECT_THROW(session.decode(kFaulty), InvalidArgument);
    EXPECT_EQ(session.length(), kBefore);
    EXPECT_TRUE(session.logits().empty());
    EXPECT_TRUE(contents(session, 0) == contents(*truncated(1), 0));
    for (int layer = 1; layer < model_->info().layers; ++layer) {
        EXPECT_EQ(contents(session, layer).length, kBefore);
        // Layer 1 settled when the append that failed began, but an append that is dropped never happened.
        EXPECT_TRUE(contents(session, layer) == contents(*prompted(), layer)) << layer;
    }
}

TEST_F(FailedChunk, EmptiesTheSessionWhereAWindowHasMovedOn) {
    load("gemma3");
    const std::unique_ptr<Session> owner = prompted();
    Session& session = *owner;
    EXPECT_THROW(session.prompt(faulty_chunk()), InvalidArgument);
    EXPECT_EQ(session.length(), 0);
    EXPECT_EQ(session.cache_report().tokens, 0);
    for (int layer = 0; layer < model_->info().layers; ++layer) {
        EXPECT_EQ(session.view(layer).length, 0) << layer;
    }
    session.prompt(std::span(tokens_).first(kBefore));
    for (int layer = 0; layer < model_->info().layers; ++layer) {
        EXPECT_TRUE(contents(session, layer) == contents(*prompted(), layer)) << layer;
    }
}

} // namespace
} // namespace innerkv::runner::test
