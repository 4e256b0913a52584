// SPDX-License-Identifier: Apache-2.0
// Tokens, their text and the chat template, by libllama.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gguf_file.h"
#include "llama.h"
#include "runner/runner.h"

namespace innerkv::runner {

class Vocabulary {
public:
    /// Throws ModelError where the file's tokenizer is broken or of a kind that is not supported.
    explicit Vocabulary(const GgufFile& file);

    std::vector<Token> tokenize(std::string_view text, bool bos, bool special) const;
    std::string piece(Token token) const;
    bool is_end(Token token) const;
    std::optional<Token> bos() const;
    int size() const { return llama_vocab_n_tokens(vocabulary_); }
    std::string chat_prompt(std::span<const ChatMessage> messages) const;

private:
    struct Free {
        void operator()(llama_model* model) const { llama_model_free(model); }
    };
    void check_added_tokens(const GgufFile& file) const;
    void check(Token token) const;
    template <typename Call>
    auto guarded(Call&& call) const;

    std::string path_;
    std::unique_ptr<llama_model, Free> model_;
    const llama_vocab* vocabulary_ = nullptr;
};

} // namespace innerkv::runner
