// SPDX-License-Identifier: Apache-2.0
#include "decode_bench.h"

#include <algorithm>
#include <chrono>
#include <random>
#include <span>

#include "innerkv/error.h"
#include "resident.h"
#include "statistics.h"

namespace innerkv::bench {
namespace {

using runner::Token;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

Token most_likely(std::span<const float> logits) {
    return static_cast<Token>(std::ranges::max_element(logits) - logits.begin());
}

/// Whatever a token means, it costs the same.
std::vector<Token> random_tokens(const runner::Model& model, int count, std::uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<Token> tokens;
    const auto vocabulary = static_cast<std::uint32_t>(model.info().vocabulary_size);
    while (tokens.size() < static_cast<std::size_t>(count)) {
        const auto token = static_cast<Token>(random() % vocabulary);
        if (!model.is_end(token)) tokens.push_back(token);
    }
    return tokens;
}

std::string name_of(const std::string& cache) {
    return cache.find(':') == std::string::npos ? "innerkv:" + cache : cache;
}

/// Tokens generated before each context.
int generated(const DecodeBenchOptions& options) { return options.repeats * options.tokens; }

/// One contender through all contexts.
class Measurement {
public:
    Measurement(const std::shared_ptr<runner::Model>& model, const DecodeBenchOptions& options,
                const std::string& cache)
        : options_(options), name_(name_of(cache)), weights_(model->info().file_bytes) {
        // libllama's own copies are counted with what its session takes.
        if (!cache.starts_with("llama:")) weights_ += model->copied_bytes();
        release_freed_memory();
        before_ = resident_anonymous_bytes();
        runner::SessionOptions session = runner::make_options(cache, options.contexts.back());
        session.threads = options.threads;
        session.forward_only = true;
        if (session.rival.empty()) session.isa = options.isa;
        if (session.preset.k.quantized()) session.calibration = options.calibration;
        session_ = std::make_unique<runner::Session>(model, session);
        prompt_ = random_tokens(*model, options.contexts.back(), options.seed);
    }

    /// False: stopped.
    bool run(std::vector<DecodeResult>& results) {
        for (const int context : options_.contexts) {
            DecodeResult result;
            result.name = name_;
            result.context = context;
            if (!read_prompt(context - generated(options_))) return false;
            result.prompt_tokens_per_s = static_cast<double>(read_) / prompt_seconds_;
            std::vector<double> rates;
            for (int repeat = 0; repeat < options_.repeats; ++repeat) {
                if (!report("decode", repeat * options_.tokens, generated(options_))) return false;
                rates.push_back(options_.tokens / generate());
            }
            result.decode_tokens_per_s = median(rates);
            result.best_decode_tokens_per_s = *std::ranges::max_element(rates);
            result.peak_bytes = peak_ > before_ ? peak_ - before_ + weights_ : 0;
            results.push_back(result);
        }
        return true;
    }

private:
    bool report(const char* what, std::int64_t done, std::int64_t total) const {
        return !options_.progress ||
               options_.progress(std::string(what) + " of " + name_, done, total);
    }

    bool read_prompt(int length) {
        const auto done = static_cast<std::size_t>(session_->length());
        const auto rest = std::span(prompt_).subspan(done, static_cast<std::size_t>(length) - done);
        bool going_on = true;
        const auto start = Clock::now();
        session_->prompt(rest, [&](std::int64_t now, std::int64_t) {
            sample_memory();
            going_on = report("prompt", static_cast<std::int64_t>(done) + now, length);
            return going_on;
        });
        prompt_seconds_ += seconds_since(start);
        read_ += session_->length() - static_cast<std::int64_t>(done);
        next_ = session_->logits().empty() ? 0 : most_likely(session_->logits());
        return going_on;
    }

    /// Seconds. The next repeat goes on from there: caches with a sliding window cannot be cut back.
    double generate() {
        const auto start = Clock::now();
        for (int i = 0; i < options_.tokens; ++i) {
            session_->decode(next_);
            next_ = most_likely(session_->logits());
        }
        const double seconds = seconds_since(start);
        sample_memory();
        return seconds;
    }

    void sample_memory() { peak_ = std::max(peak_, resident_anonymous_bytes()); }

    const DecodeBenchOptions& options_;
    std::string name_;
    std::size_t weights_;
    std::size_t before_ = 0;
    std::size_t peak_ = 0;
    std::vector<Token> prompt_;
    std::unique_ptr<runner::Session> session_;
    std::int64_t read_ = 0; ///< tokens of the prompt so far
    double prompt_seconds_ = 0;
    Token next_ = 0;
};

} // namespace

void require_contexts(const DecodeBenchOptions& options, int longest) {
    int before = 0;
    for (const int context : options.contexts) {
        if (context > longest)
            throw InvalidArgument("--context " + std::to_string(context) + " is beyond the " +
                                  std::to_string(longest) + " tokens that the model was made for");
        if (context - before <= generated(options))
            throw InvalidArgument("--context " + std::to_string(context) + " leaves no prompt" +
                                  (before > 0 ? " after " + std::to_string(before) : "") +
                                  " before --repeats " + std::to_string(options.repeats) +
                                  " of --tokens " + std::to_string(options.tokens));
        before = context;
    }
}

std::vector<DecodeResult> run_decode_bench(const std::shared_ptr<runner::Model>& model,
                                           const DecodeBenchOptions& options) {
    require_contexts(options, model->info().context_length);
    std::vector<DecodeResult> results;
    for (const std::string& cache : options.caches)
        if (!Measurement(model, options, cache).run(results)) break;
    return results;
}

} // namespace innerkv::bench
