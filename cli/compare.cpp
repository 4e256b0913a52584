// SPDX-License-Identifier: Apache-2.0
#include "compare.h"

#include <chrono>
#include <optional>

#include "innerkv/error.h"
#include "interrupt.h"
#include "progress.h"
#include "utf8.h"

namespace innerkv::cli {
namespace {

using runner::Token;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kMostKeptBytes = std::size_t{1} << 30;

RowScore score_row(std::span<const float> reference, std::span<const float> logits) {
    const Prediction expected = predict(reference);
    const Prediction prediction = predict(logits);
    RowScore row;
    row.divergence = divergence(reference, expected, logits, prediction);
    row.same_top = prediction.top == expected.top;
    return row;
}

std::string text_of(const runner::Model& model, std::span<const Token> tokens) {
    Utf8Stream stream;
    std::string text;
    for (const Token token : tokens) text += stream.add(model.piece(token));
    return text;
}

/// Back to where the texts part, to the state that generating alone leads to. False: interrupted.
bool return_to_fork(runner::Session& session, std::span<const Token> prompt,
                    std::span<const Token> common) {
    if (!session.options().preset.k.quantized()) {
        try {
            session.truncate(static_cast<std::int64_t>(prompt.size() + common.size()));
            return true;
        } catch (const InvalidArgument&) {
            // A sliding window has dropped what the shorter sequence needs.
        }
    }
    // A quantized cache that is cut back has rounded tokens where it had exact ones.
    Generation again;
    session.clear();
    if (!process_prompt(session, prompt, again)) return false;
    for (const Token token : common) {
        if (interrupted()) return false;
        session.decode(token);
    }
    return true;
}

/// Walks the second session through the first one's text.
class TeacherForcing {
public:
    TeacherForcing(const runner::Model& model, runner::Session& session, runner::Sampler& sampler,
                   const Generation& first, const KeptLogits& kept)
        : model_(model), session_(session), sampler_(sampler), first_(first), kept_(kept) {}

    /// False: interrupted.
    bool run(Comparison& comparison) {
        std::vector<RowScore> rows;
        Progress bar("comparing", "tokens", static_cast<std::int64_t>(first_.tokens.size()));
        for (std::size_t index = 0; index < choices(); ++index) {
            if (interrupted()) return false;
            if (index < kept_.rows())
                rows.push_back(score_row(session_.logits(), kept_.row(index)));
            choose(index);
            if (index < static_cast<std::size_t>(first_.decoded_tokens)) decode(index, comparison);
            bar.update(static_cast<std::int64_t>(index + 1));
        }
        comparison.score = summarize(rows);
        return true;
    }

    /// The second cache's choice where it first differs from the first one's.
    std::optional<Token> other() const { return other_; }
    std::size_t common_tokens() const { return common_; }

private:
    /// Tokens that the first run chose, the end of its turn counted.
    std::size_t choices() const {
        return first_.tokens.size() + (first_.finish == Finish::stop ? 1 : 0);
    }

    /// Until they part, sampling here draws what generating alone would have drawn.
    void choose(std::size_t index) {
        if (other_) return;
        const Token token = sampler_.sample(session_.logits());
        const bool same =
            index < first_.tokens.size() ? token == first_.tokens[index] : model_.is_end(token);
        if (!same)
            other_ = token;
        else if (index < first_.tokens.size())
            ++common_;
    }

    void decode(std::size_t index, Comparison& comparison) {
        const auto start = Clock::now();
        session_.decode(first_.tokens[index]);
        const std::chrono::duration<double> seconds = Clock::now() - start;
        comparison.generation.decode_seconds += seconds.count();
        ++comparison.generation.decoded_tokens;
    }

    const runner::Model& model_;
    runner::Session& session_;
    runner::Sampler& sampler_;
    const Generation& first_;
    const KeptLogits& kept_;
    std::optional<Token> other_;
    std::size_t common_ = 0;
};

} // namespace

KeptLogits::KeptLogits(int vocabulary_size)
    : vocabulary_size_(static_cast<std::size_t>(vocabulary_size)),
      most_rows_(kMostKeptBytes / sizeof(float) / vocabulary_size_) {}

void KeptLogits::add(std::span<const float> logits) {
    if (rows() < most_rows_) logits_.insert(logits_.end(), logits.begin(), logits.end());
}

std::span<const float> KeptLogits::row(std::size_t index) const {
    return std::span(logits_).subspan(index * vocabulary_size_, vocabulary_size_);
}

std::optional<Comparison> compare(const std::shared_ptr<runner::Model>& model,
                                  std::span<const Token> prompt, const Generation& first,
                                  const KeptLogits& kept, const CompareOptions& options) {
    Comparison comparison;
    runner::Session session(model, options.session);
    runner::Sampler sampler(*model, options.sampler);
    if (!process_prompt(session, prompt, comparison.generation)) return {};
    TeacherForcing teacher(*model, session, sampler, first, kept);
    if (!teacher.run(comparison)) return {};

    comparison.generation.cache = session.cache_report();
    comparison.common_tokens = teacher.common_tokens();
    const std::span<const Token> common = std::span(first.tokens).first(comparison.common_tokens);
    comparison.common_text = text_of(*model, common);
    comparison.parted = teacher.other().has_value();
    comparison.generation.finish = first.finish;
    comparison.generation.tokens = first.tokens;
    comparison.generation.text = first.text;
    if (!comparison.parted) return comparison;

    // On from the second cache's own token.
    Generation own;
    own.tokens.assign(common.begin(), common.end());
    own.finish = Finish::interrupted;
    GenerateOptions rest;
    rest.tokens = options.tokens - static_cast<int>(common.size());
    if (return_to_fork(session, prompt, common))
        generate(*model, session, sampler, rest, own, teacher.other());
    comparison.generation.finish = own.finish;
    comparison.generation.tokens = own.tokens;
    comparison.generation.text = text_of(*model, own.tokens);
    return comparison;
}

} // namespace innerkv::cli
