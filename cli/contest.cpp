// SPDX-License-Identifier: Apache-2.0
#include "contest.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "errors.h"
#include "innerkv/error.h"
#include "options.h"
#include "share_rows.h"

namespace innerkv::cli {
namespace {

using runner::Token;

constexpr std::int64_t kPage = kPageTokens;
constexpr std::int64_t kMostBlockTokens = 512;
constexpr std::int64_t kMostBlockLogits = std::int64_t{1} << 25; // 128 MiB of floats

/// Tokens of a block, a multiple of the page so that chunks end where pages do.
std::int64_t block_tokens(const runner::ModelInfo& info) {
    const std::int64_t fitting = kMostBlockLogits / info.vocabulary_size / kPage * kPage;
    return std::clamp(fitting, kPage, kMostBlockTokens);
}

/// False where the cache would not be what it was when it had so many tokens, whole pages of them.
bool cut_back(runner::Session& session, std::int64_t length) {
    if (!runner::cuts_exactly(session.options(), length)) return false;
    try {
        session.truncate(length);
    } catch (const InvalidArgument&) {
        return false; // a sliding window has dropped what it needs
    }
    return true;
}

} // namespace

Contest::Contest(const std::shared_ptr<runner::Model>& model,
                 const std::vector<std::string>& caches, const ContestOptions& options,
                 Counter counter)
    : model_(model), counter_(std::move(counter)),
      vocabulary_(static_cast<std::size_t>(model->info().vocabulary_size)),
      block_(block_tokens(model->info())) {
    for (const std::string& cache : caches) {
        runner::SessionOptions session =
            session_options(cache, options.context, options.key_norm, options.codec);
        session.threads = options.threads;
        session.chunk = static_cast<int>(block_);
        session.isa = options.isa;
        session.arithmetic = options.arithmetic;
        session.expand_weights = options.expand_weights;
        if (session.preset.k.quantized()) session.calibration = options.calibration;
        contestants_.push_back({cache, std::make_unique<runner::Session>(model, session), {}});
    }
}

int Contest::threads() const { return contestants_.front().session->options().threads; }

std::vector<CacheFormat> Contest::formats() const {
    std::vector<CacheFormat> formats;
    for (const Contestant& contestant : contestants_)
        formats.push_back({contestant.cache, contestant.session->cache_report().bits_per_value});
    return formats;
}

void Contest::clear() {
    for (Contestant& contestant : contestants_) {
        contestant.session->clear();
        contestant.standing = {};
    }
}

bool Contest::read(std::span<const Token> tokens) {
    for (Contestant& contestant : contestants_) {
        if (!tokens.empty()) contestant.session->prompt(tokens, counter());
        if (stopped_) return false;
    }
    return true;
}

bool Contest::score(std::span<const Token> tokens, std::size_t first) {
    // Token i is predicted by row i - 1; the last one's own prediction is not wanted.
    const std::size_t first_row = first - 1;
    const std::size_t last = tokens.size() - 1;
    const auto length = static_cast<std::size_t>(contestants_.front().session->length());
    const std::size_t page_start = (length + first_row) / kPage * kPage;
    const std::size_t start = page_start > length ? page_start - length : 0;
    if (!read(tokens.first(start))) return false;
    for (std::size_t begin = start; begin < last; begin += static_cast<std::size_t>(block_)) {
        const std::size_t count = std::min(static_cast<std::size_t>(block_), last - begin);
        if (!score_block(tokens.subspan(begin, count + 1),
                         first_row > begin ? first_row - begin : 0))
            return false;
    }
    return true;
}

bool Contest::score_block(std::span<const Token> tokens, std::size_t first_row) {
    reference_logits_.clear();
    reference_predictions_.clear();
    for (Contestant& contestant : contestants_) {
        const bool is_reference = &contestant == &contestants_.front();
        const auto rows = [&](std::int64_t row, std::span<const float> logits) {
            const auto index = static_cast<std::size_t>(row);
            if (is_reference) keep_reference(logits);
            score_rows(contestant, tokens.subspan(index + 1), index - first_row, logits);
        };
        contestant.session->evaluate(tokens.first(tokens.size() - 1),
                                     static_cast<std::int64_t>(first_row), rows, counter());
        if (stopped_) return false;
    }
    return true;
}

void Contest::keep_reference(std::span<const float> logits) {
    const std::size_t before = reference_predictions_.size();
    const std::size_t count = logits.size() / vocabulary_;
    reference_logits_.insert(reference_logits_.end(), logits.begin(), logits.end());
    reference_predictions_.resize(before + count);
    share_rows(count, threads(), [&](std::size_t first, std::size_t last) {
        for (std::size_t row = first; row < last; ++row)
            reference_predictions_[before + row] =
                predict(logits.subspan(row * vocabulary_, vocabulary_));
    });
}

/// `next` are the tokens that the rows predict; row `reference_row` of those kept is the first's.
void Contest::score_rows(Contestant& contestant, std::span<const Token> next,
                         std::size_t reference_row, std::span<const float> logits) {
    const std::size_t count = logits.size() / vocabulary_;
    std::vector<RowScore>& rows = contestant.standing.rows;
    const std::size_t before = rows.size();
    rows.resize(before + count);
    share_rows(count, threads(), [&](std::size_t first, std::size_t last) {
        for (std::size_t row = first; row < last; ++row)
            rows[before + row] = score_row(next[row], reference_row + row,
                                           logits.subspan(row * vocabulary_, vocabulary_));
    });
    // Presets refuse such keys and values; libllama's own caches do not.
    if (!std::all_of(rows.begin() + static_cast<std::ptrdiff_t>(before), rows.end(), is_possible))
        throw Failure(fmt::format("{}: the model's logits are not finite with this cache, or with "
                                  "{}'s, the reference, or beyond a million",
                                  contestant.cache, contestants_.front().cache));
}

RowScore Contest::score_row(Token next, std::size_t reference_row,
                            std::span<const float> logits) const {
    const Prediction prediction = predict(logits);
    const Prediction& expected = reference_predictions_[reference_row];
    const std::span<const float> reference =
        std::span(reference_logits_).subspan(reference_row * vocabulary_, vocabulary_);
    RowScore row;
    row.log_likelihood =
        static_cast<double>(logits[static_cast<std::size_t>(next)]) - prediction.log_sum_exp;
    row.divergence = divergence(reference, expected, logits, prediction);
    row.same_top = prediction.top == expected.top;
    row.correct = prediction.top == next;
    return row;
}

bool Contest::generate(int tokens) {
    const std::int64_t before = done_;
    std::vector<Token> text;
    for (std::size_t index = 0; index < contestants_.size(); ++index) {
        Contestant& contestant = contestants_[index];
        const bool is_reference = index == 0;
        const auto most = is_reference ? static_cast<std::size_t>(tokens) : text.size();
        std::size_t common = 0;
        while (common < most) {
            const Token token = predict(contestant.session->logits()).top;
            if (is_reference) text.push_back(token);
            if (token != text[common]) break;
            if (++common == most || model_->is_end(token)) break;
            if (!write(*contestant.session, token)) return false;
        }
        contestant.standing.generated = static_cast<std::int64_t>(text.size());
        contestant.standing.common = static_cast<std::int64_t>(common);
        // One that parts early has nothing left to do.
        done_ = before + static_cast<std::int64_t>(index + 1) * tokens;
    }
    return true;
}

bool Contest::write(runner::Session& session, Token token) {
    session.decode(token);
    ++done_;
    return go_on();
}

/// Tells the counter; false: stopped.
bool Contest::go_on() {
    if (counter_ && !counter_(done_)) stopped_ = true;
    return !stopped_;
}

bool Contest::go_back(std::span<const Token> tokens) {
    for (Contestant& contestant : contestants_) {
        runner::Session& session = *contestant.session;
        if (cut_back(session, static_cast<std::int64_t>(tokens.size()))) continue;
        session.clear();
        // Not counted: nobody knows beforehand which caches need it.
        session.prompt(tokens, [this](std::int64_t, std::int64_t) { return go_on(); });
        if (stopped_) return false;
    }
    return true;
}

std::vector<Standing> Contest::standings() {
    std::vector<Standing> standings;
    for (Contestant& contestant : contestants_) {
        contestant.standing.report = contestant.session->cache_report();
        standings.push_back(contestant.standing);
    }
    return standings;
}

/// Counts one call's tokens into the whole.
runner::Session::Progress Contest::counter() {
    return [this, before = done_](std::int64_t done, std::int64_t) {
        done_ = before + done;
        return go_on();
    };
}

} // namespace innerkv::cli
