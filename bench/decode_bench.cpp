// SPDX-License-Identifier: Apache-2.0
#include "decode_bench.h"

#include <algorithm>
#include <chrono>
#include <random>
#include <span>
#include <thread>

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

struct Stopped {};

/// Anonymous memory of one contender among others: what the process's grew by while it had its turn.
class OwnMemory {
public:
    void start_turn() { others_ = resident_without(own_); }
    void sample() {
        own_ = resident_without(others_);
        peak_ = std::max(peak_, own_);
    }
    std::size_t peak() const { return peak_; }

private:
    static std::size_t resident_without(std::size_t part) {
        const std::size_t all = resident_anonymous_bytes();
        return all > part ? all - part : 0;
    }

    std::size_t others_ = 0;
    std::size_t own_ = 0; ///< at the end of its last turn
    std::size_t peak_ = 0;
};

/// ggml's threads look for the next graph for a while before they sleep (up to 1024 * 128 * polling pauses of the
/// processor, some tenths of a second), and would take the cores from the next contender.
constexpr auto kLongerThanPolling = std::chrono::milliseconds(500);

class Contestant {
public:
    Contestant(const std::shared_ptr<runner::Model>& model, const DecodeBenchOptions& options,
               const std::string& cache)
        : options_(options), name_(name_of(cache)), weights_(model->info().file_bytes) {
        // libllama's own copies are counted with what its session takes.
        if (!cache.starts_with("llama:")) weights_ += model->copied_bytes();
        release_freed_memory();
        memory_.start_turn();
        runner::SessionOptions session = runner::make_options(cache, options.contexts.back());
        session.threads = options.threads;
        session.forward_only = true;
        if (session.rival.empty()) session.isa = options.isa;
        if (session.preset.k.quantized()) session.calibration = options.calibration;
        session_ = std::make_unique<runner::Session>(model, session);
        memory_.sample();
    }

    /// All prompts are cut from one text. Throws Stopped.
    void read_prompt(std::span<const Token> text, int length) {
        start_turn();
        const auto done = static_cast<std::size_t>(session_->length());
        const auto rest = text.subspan(done, static_cast<std::size_t>(length) - done);
        bool going_on = true;
        const auto start = Clock::now();
        session_->prompt(rest, [&](std::int64_t now, std::int64_t) {
            memory_.sample();
            going_on = !options_.progress ||
                       options_.progress("prompt of " + name_,
                                         static_cast<std::int64_t>(done) + now, length);
            return going_on;
        });
        if (!going_on) throw Stopped();
        prompt_seconds_ += seconds_since(start);
        read_ += static_cast<std::int64_t>(rest.size());
        next_ = most_likely(session_->logits());
        rates_.clear();
    }

    /// Goes on from the repeat before: caches with a sliding window cannot be cut back.
    void generate() {
        start_turn();
        const auto start = Clock::now();
        for (int i = 0; i < options_.tokens; ++i) {
            session_->decode(next_);
            next_ = most_likely(session_->logits());
        }
        rates_.push_back(options_.tokens / seconds_since(start));
        memory_.sample();
    }

    DecodeResult result(int context) const {
        DecodeResult result;
        result.name = name_;
        result.context = context;
        result.decode_tokens_per_s = median(rates_);
        result.best_decode_tokens_per_s = *std::ranges::max_element(rates_);
        result.prompt_tokens_per_s = static_cast<double>(read_) / prompt_seconds_;
        result.peak_bytes = memory_.peak() > 0 ? memory_.peak() + weights_ : 0;
        return result;
    }

private:
    void start_turn() {
        std::this_thread::sleep_for(kLongerThanPolling);
        memory_.start_turn();
    }

    const DecodeBenchOptions& options_;
    std::string name_;
    std::size_t weights_;
    OwnMemory memory_;
    std::unique_ptr<runner::Session> session_;
    std::int64_t read_ = 0; ///< tokens of the prompt so far
    double prompt_seconds_ = 0;
    Token next_ = 0;
    std::vector<double> rates_; ///< of this context's repeats
};

/// Throws Stopped.
void generate_in_turns(std::span<Contestant> contestants, const DecodeBenchOptions& options,
                       int context) {
    const auto total = generated(options) * static_cast<std::int64_t>(contestants.size());
    const std::string what = "decode up to " + std::to_string(context);
    std::int64_t done = 0;
    for (int repeat = 0; repeat < options.repeats; ++repeat)
        for (Contestant& contestant : contestants) {
            if (options.progress && !options.progress(what, done, total)) throw Stopped();
            contestant.generate();
            done += options.tokens;
        }
}

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
                                  ": a context takes --repeats times --tokens, " +
                                  std::to_string(generated(options)) + ", and more");
        before = context;
    }
}

std::vector<DecodeResult> run_decode_bench(const std::shared_ptr<runner::Model>& model,
                                           const DecodeBenchOptions& options) {
    require_contexts(options, model->info().context_length);
    const std::vector<Token> text = random_tokens(*model, options.contexts.back(), options.seed);
    std::vector<DecodeResult> results;
    try {
        std::vector<Contestant> contestants;
        contestants.reserve(options.caches.size());
        for (const std::string& cache : options.caches)
            contestants.emplace_back(model, options, cache);
        for (const int context : options.contexts) {
            for (Contestant& contestant : contestants)
                contestant.read_prompt(text, context - generated(options));
            generate_in_turns(contestants, options, context);
            for (const Contestant& contestant : contestants)
                results.push_back(contestant.result(context));
        }
    } catch (const Stopped&) {
        // What was finished counts.
    }
    return results;
}

} // namespace innerkv::bench
