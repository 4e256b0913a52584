// SPDX-License-Identifier: Apache-2.0
#include "reading.h"

#include <algorithm>

#include <fmt/format.h>

#include "errors.h"
#include "log.h"
#include "options.h"

namespace innerkv::cli {

std::shared_ptr<runner::Model> load_model(const std::string& path, int context) {
    std::shared_ptr<runner::Model> model = runner::Model::load(path);
    check_context("--ctx", context, model->info());
    return model;
}

int choose_stretches(const std::string& text, std::size_t tokens, int wanted,
                     const StretchKind& kind) {
    const auto available = static_cast<int>(tokens / kind.length);
    const std::string size = fmt::format("{} tokens{}", kind.length, kind.why);
    if (available == 0)
        throw UsageError(fmt::format("{} has {} tokens, fewer than one {} of {}; choose a smaller "
                                     "--ctx or a longer text",
                                     text, tokens, kind.noun, size));
    if (wanted > available)
        log_warning(fmt::format("{} has {} {}{} of {}, not {}", text, available, kind.noun,
                                available == 1 ? "" : "s", size, wanted));
    const int most = wanted > 0 ? wanted : kind.usual;
    return most > 0 ? std::min(most, available) : available;
}

std::vector<runner::Token> opened(const runner::Model& model,
                                  std::span<const runner::Token> stretch) {
    std::vector<runner::Token> tokens(stretch.begin(), stretch.end());
    tokens.front() = model.bos().value_or(tokens.front());
    return tokens;
}

} // namespace innerkv::cli
