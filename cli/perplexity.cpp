// SPDX-License-Identifier: Apache-2.0
#include "perplexity.h"

#include <algorithm>
#include <span>

#include "options.h"

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

/// One cache on its way through the windows.
struct Contestant {
    std::string cache;
    std::unique_ptr<runner::Session> session;
    std::vector<RowScore> finished; ///< of whole windows
    std::vector<RowScore> window;   ///< of the window in work
    runner::CacheReport report;
};

class PerplexityRun {
public:
    PerplexityRun(const std::shared_ptr<runner::Model>& model, const std::string& reference,
                  const std::vector<std::string>& caches, const PerplexityOptions& options)
        : options_(options), vocabulary_(static_cast<std::size_t>(model->info().vocabulary_size)),
          block_(block_tokens(model->info())) {
        contestants_.push_back(make_contestant(model, reference));
        for (const std::string& cache : caches)
            contestants_.push_back(make_contestant(model, cache));
        total_ =
            static_cast<std::int64_t>(contestants_.size()) * options.windows * (options.window - 1);
    }

    PerplexityResult run(const std::vector<Token>& tokens) {
        PerplexityResult result;
        result.threads = threads();
        const auto size = static_cast<std::size_t>(options_.window);
        for (int window = 0; window < options_.windows; ++window) {
            const auto first =
                tokens.begin() + static_cast<std::ptrdiff_t>(window) * options_.window;
            tokens_.assign(first, first + options_.window);
            if (options_.first_token >= 0) tokens_.front() = options_.first_token;
            if (!walk_window(size)) break;
            ++result.windows;
        }
        result.reference = score(contestants_.front());
        for (std::size_t index = 1; index < contestants_.size(); ++index)
            result.caches.push_back(score(contestants_[index]));
        return result;
    }

private:
    Contestant make_contestant(const std::shared_ptr<runner::Model>& model,
                               const std::string& cache) const {
        runner::SessionOptions session =
            session_options(cache, options_.window, options_.key_norm, options_.codec);
        session.threads = options_.threads;
        session.chunk = static_cast<int>(block_);
        session.isa = options_.isa;
        session.arithmetic = options_.arithmetic;
        if (session.preset.k.quantized()) session.calibration = options_.calibration;
        return {cache, std::make_unique<runner::Session>(model, session), {}, {}, {}};
    }

    /// False: stopped; the window does not count.
    bool walk_window(std::size_t size) {
        // Token i is predicted by row i - 1: rows from the middle on, and none from the last token.
        const std::size_t first_row = size / 2 - 1;
        const std::size_t last = size - 1;
        const std::size_t start = first_row / kPage * kPage;
        for (Contestant& contestant : contestants_) {
            contestant.session->clear();
            contestant.window.clear();
            if (start > 0) contestant.session->prompt(std::span(tokens_).first(start), counter());
            if (stopped_) return false;
        }
        for (std::size_t begin = start; begin < last; begin += static_cast<std::size_t>(block_)) {
            const std::size_t count = std::min(static_cast<std::size_t>(block_), last - begin);
            if (!walk_block(begin, count, first_row > begin ? first_row - begin : 0)) return false;
        }
        for (Contestant& contestant : contestants_) {
            contestant.report = contestant.session->cache_report();
            contestant.finished.insert(contestant.finished.end(), contestant.window.begin(),
                                       contestant.window.end());
        }
        return true;
    }

    bool walk_block(std::size_t begin, std::size_t count, std::size_t first_row) {
        const std::span<const Token> block = std::span(tokens_).subspan(begin, count);
        reference_logits_.clear();
        reference_predictions_.clear();
        for (Contestant& contestant : contestants_) {
            const bool is_reference = &contestant == &contestants_.front();
            const auto rows = [&](std::int64_t first, std::span<const float> logits) {
                if (is_reference) keep_reference(logits);
                score_rows(contestant, begin + static_cast<std::size_t>(first),
                           static_cast<std::size_t>(first) - first_row, logits);
            };
            contestant.session->evaluate(block, static_cast<std::int64_t>(first_row), rows,
                                         counter());
            if (stopped_) return false;
        }
        return true;
    }

    void keep_reference(std::span<const float> logits) {
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

    /// Rows of tokens `position`, ... of the window; row `reference_row` of those kept is the first's.
    void score_rows(Contestant& contestant, std::size_t position, std::size_t reference_row,
                    std::span<const float> logits) {
        const std::size_t count = logits.size() / vocabulary_;
        const std::size_t before = contestant.window.size();
        contestant.window.resize(before + count);
        share_rows(count, threads(), [&](std::size_t first, std::size_t last) {
            for (std::size_t row = first; row < last; ++row)
                contestant.window[before + row] =
                    score_row(tokens_[position + row + 1], reference_row + row,
                              logits.subspan(row * vocabulary_, vocabulary_));
        });
    }

    RowScore score_row(Token next, std::size_t reference_row, std::span<const float> logits) const {
        const Prediction prediction = predict(logits);
        const Prediction& expected = reference_predictions_[reference_row];
        const std::span<const float> reference =
            std::span(reference_logits_).subspan(reference_row * vocabulary_, vocabulary_);
        RowScore row;
        row.log_likelihood =
            static_cast<double>(logits[static_cast<std::size_t>(next)]) - prediction.log_sum_exp;
        row.divergence = divergence(reference, expected, logits, prediction);
        row.same_top = prediction.top == expected.top;
        return row;
    }

    int threads() const { return contestants_.front().session->options().threads; }

    /// Counts one call's tokens into the whole.
    runner::Session::Progress counter() {
        return [this, before = done_](std::int64_t done, std::int64_t) {
            done_ = before + done;
            if (options_.progress && !options_.progress(done_, total_)) stopped_ = true;
            return !stopped_;
        };
    }

    CacheScore score(const Contestant& contestant) const {
        CacheScore result;
        result.cache = contestant.cache;
        result.score = summarize(contestant.finished);
        result.bits_per_value = contestant.report.bits_per_value;
        result.never_quantized = result.bits_per_value < 16.0 && contestant.report.tokens > 0 &&
                                 contestant.report.quantized_pages == 0;
        if (contestant.report.f16_bytes > 0)
            result.bits_per_value_total = 16.0 * static_cast<double>(contestant.report.bytes) /
                                          static_cast<double>(contestant.report.f16_bytes);
        return result;
    }

    PerplexityOptions options_;
    std::size_t vocabulary_;
    std::int64_t block_;
    std::vector<Contestant> contestants_; ///< the reference first
    std::vector<Token> tokens_;           ///< of the window in work
    std::vector<float> reference_logits_; ///< [rows of the block, vocabulary]
    std::vector<Prediction> reference_predictions_;
    std::int64_t done_ = 0;
    std::int64_t total_ = 0;
    bool stopped_ = false;
};

} // namespace

PerplexityResult measure_perplexity(const std::shared_ptr<runner::Model>& model,
                                    const std::vector<Token>& tokens, const std::string& reference,
                                    const std::vector<std::string>& caches,
                                    const PerplexityOptions& options) {
    return PerplexityRun(model, reference, caches, options).run(tokens);
}

} // namespace innerkv::cli
