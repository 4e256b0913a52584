// SPDX-License-Identifier: Apache-2.0
#include "prompt.h"

#include <array>

namespace innerkv::cli {
namespace {

using runner::Token;

/// Stands in for the message while the template is applied; no template and no vocabulary knows it.
constexpr std::string_view kPlaceholder = "innerkv-message-7c1f0b";

std::string join(const PromptText& text) {
    if (text.document.empty()) return text.question;
    if (text.question.empty()) return text.document;
    return text.document + (text.document.ends_with('\n') ? "\n" : "\n\n") + text.question;
}

std::string apply_template(const runner::Model& model, std::string content) {
    const std::array messages{runner::ChatMessage{"user", std::move(content)}};
    try {
        return model.chat_prompt(messages);
    } catch (const runner::ModelError& error) {
        throw runner::ModelError(std::string(error.what()) + " (--raw)");
    }
}

void append(std::vector<Token>& tokens, const std::vector<Token>& more) {
    tokens.insert(tokens.end(), more.begin(), more.end());
}

/// The template's own parts with special tokens, the message without.
std::vector<Token> tokenize_apart(const runner::Model& model, const std::string& message) {
    const std::string frame = apply_template(model, std::string(kPlaceholder));
    const std::size_t at = frame.find(kPlaceholder);
    if (at == std::string::npos)
        throw runner::ModelError(model.info().path +
                                 ": its chat template leaves the message out; use --raw");
    std::vector<Token> tokens = model.tokenize(frame.substr(0, at), true, true);
    append(tokens, model.tokenize(message, false, false));
    append(tokens, model.tokenize(frame.substr(at + kPlaceholder.size()), false, true));
    return tokens;
}

} // namespace

std::vector<Token> make_prompt(const runner::Model& model, const PromptText& text) {
    const std::string message = join(text);
    if (text.raw || !model.info().has_chat_template) return model.tokenize(message, true, false);
    const bool plain =
        model.tokenize(message, false, true) == model.tokenize(message, false, false);
    // In one piece where nothing in the message is special: tokens may span the template's seams.
    if (plain) return model.tokenize(apply_template(model, message), true, true);
    return tokenize_apart(model, message);
}

} // namespace innerkv::cli
