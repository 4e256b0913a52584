// SPDX-License-Identifier: Apache-2.0
#include "vocabulary.h"

#include <algorithm>
#include <limits>
#include <new>
#include <unordered_set>

#include "log.h"

namespace innerkv::runner {
namespace {

/// libllama asserts these instead of reporting them.
void check_tokens(const GgufFile& file) {
    const std::string kind = file.text("tokenizer.ggml.model").value_or("(none)");
    if (kind != "gpt2" && kind != "llama") {
        file.fail("tokenizer '" + kind +
                  "' is not supported; supported are gpt2 (BPE) and llama "
                  "(SentencePiece)");
    }
    std::unordered_set<std::string> seen;
    std::size_t index = 0;
    for (const std::string_view token : file.texts("tokenizer.ggml.tokens")) {
        // the name libllama gives to an empty token
        const std::string name =
            token.empty() ? "[EMPTY_" + std::to_string(index) + "]" : std::string(token);
        if (!seen.insert(name).second) {
            file.fail("tokenizer.ggml.tokens holds a token twice, at " + std::to_string(index));
        }
        ++index;
    }
}

/// What a vocabulary is made of and nothing else: the rest of a file cannot disturb libllama then.
MetadataPtr tokenizer_metadata(const GgufFile& file) {
    MetadataPtr metadata(gguf_init_empty());
    gguf_set_kv(metadata.get(), file.metadata());
    std::vector<std::string> others;
    for (std::int64_t i = 0; i < gguf_get_n_kv(metadata.get()); ++i) {
        const std::string_view key = gguf_get_key(metadata.get(), i);
        if (!key.starts_with("tokenizer.")) {
            others.emplace_back(key);
        }
    }
    for (const std::string& key : others) {
        gguf_remove_key(metadata.get(), key.c_str());
    }
    gguf_set_val_str(metadata.get(), "general.architecture", "llama");
    // some tokenizers are known by their model's name
    const std::string name = file.text("general.name").value_or("");
    gguf_set_val_str(metadata.get(), "general.name", name.c_str());
    return metadata;
}

} // namespace

Vocabulary::Vocabulary(const GgufFile& file) : path_(file.path()) {
    check_tokens(file);
    const MetadataPtr metadata = tokenizer_metadata(file);
    const CaughtLog log;
    llama_model_params params = llama_model_default_params();
    params.vocab_only = true;
    model_.reset(llama_model_init_from_user(
        metadata.get(), [](ggml_tensor*, void*) {}, nullptr, params));
    if (!model_) {
        file.fail("has a tokenizer that cannot be used" +
                  (log.first_error().empty() ? "" : ": " + log.first_error()));
    }
    vocabulary_ = llama_model_get_vocab(model_.get());
    check_added_tokens(file);
}

/// libllama asserts that a token it is to add exists.
void Vocabulary::check_added_tokens(const GgufFile& file) const {
    const auto check_added = [&](bool adds, Token token, const std::string& name) {
        if (adds && token == LLAMA_TOKEN_NULL) {
            file.fail("has a tokenizer that cannot be used: it adds a " + name +
                      " token to every text and has none");
        }
    };
    check_added(llama_vocab_get_add_bos(vocabulary_), llama_vocab_bos(vocabulary_), "first (bos)");
    check_added(llama_vocab_get_add_eos(vocabulary_), llama_vocab_eos(vocabulary_), "last (eos)");
}

/// What `call` returns; its exceptions, of tables that lack what they should have, as ModelError.
template <typename Call>
auto Vocabulary::guarded(Call&& call) const {
    try {
        return call();
    } catch (const std::bad_alloc&) {
        throw;
    } catch (const std::exception&) {
        throw ModelError(path_ + ": has a vocabulary without tokens for every byte");
    }
}

std::vector<Token> Vocabulary::tokenize(std::string_view text, bool bos, bool special) const {
    constexpr std::size_t limit = std::numeric_limits<std::int32_t>::max() / 2;
    if (text.size() > limit) {
        throw InvalidArgument("a text of " + std::to_string(text.size()) +
                              " bytes cannot be tokenized at once; the limit is 1 GiB");
    }
    const auto bytes = static_cast<std::int32_t>(text.size());
    std::vector<Token> tokens(text.size() + 2);
    const auto fill = [&] {
        return guarded([&] {
            return llama_tokenize(vocabulary_, text.data(), bytes, tokens.data(),
                                  static_cast<std::int32_t>(tokens.size()), bos, special);
        });
    };
    std::int32_t count = fill();
    if (count < 0 && count != std::numeric_limits<std::int32_t>::min()) {
        tokens.resize(static_cast<std::size_t>(-count));
        count = fill();
    }
    if (count < 0) {
        throw Error("the text could not be tokenized");
    }
    tokens.resize(static_cast<std::size_t>(count));
    return tokens;
}

void Vocabulary::check(Token token) const {
    if (token < 0 || token >= size()) {
        throw InvalidArgument("token " + std::to_string(token) + " is outside the vocabulary of " +
                              std::to_string(size()));
    }
}

std::string Vocabulary::piece(Token token) const {
    check(token);
    std::string text(32, '\0');
    const auto fill = [&] {
        return guarded([&] {
            return llama_token_to_piece(vocabulary_, token, text.data(),
                                        static_cast<std::int32_t>(text.size()), 0, true);
        });
    };
    std::int32_t bytes = fill();
    if (bytes < 0) {
        text.resize(static_cast<std::size_t>(-bytes));
        bytes = fill();
    }
    text.resize(static_cast<std::size_t>(std::max(bytes, 0)));
    return text;
}

bool Vocabulary::is_end(Token token) const {
    check(token);
    return llama_vocab_is_eog(vocabulary_, token);
}

std::optional<Token> Vocabulary::bos() const {
    const Token token = llama_vocab_bos(vocabulary_);
    return token == LLAMA_TOKEN_NULL ? std::nullopt : std::optional<Token>(token);
}

std::string Vocabulary::chat_prompt(std::span<const ChatMessage> messages) const {
    const char* const chat_template = llama_model_chat_template(model_.get(), nullptr);
    if (!chat_template) {
        throw ModelError(path_ + ": has no chat template; prompt it with plain text");
    }
    std::vector<llama_chat_message> parts;
    std::size_t bytes = 256;
    for (const ChatMessage& message : messages) {
        parts.push_back({message.role.c_str(), message.content.c_str()});
        bytes += message.role.size() + message.content.size() + 64;
    }
    std::string text(bytes, '\0');
    const auto apply = [&] {
        return llama_chat_apply_template(chat_template, parts.data(), parts.size(),
                                         /*add_ass=*/true, text.data(),
                                         static_cast<std::int32_t>(text.size()));
    };
    std::int32_t length = apply();
    if (length > static_cast<std::int32_t>(text.size())) {
        text.resize(static_cast<std::size_t>(length));
        length = apply();
    }
    if (length < 0) {
        throw ModelError(path_ + ": has a chat template that is not known; prompt it with plain "
                                 "text");
    }
    text.resize(static_cast<std::size_t>(length));
    return text;
}

} // namespace innerkv::runner
