// SPDX-License-Identifier: Apache-2.0
#include "generate.h"

#include <chrono>

#include "interrupt.h"
#include "progress.h"
#include "utf8.h"

namespace innerkv::cli {
namespace {

using runner::Token;
using Clock = std::chrono::steady_clock;

double rate(std::int64_t count, double seconds) {
    return seconds > 0 ? static_cast<double>(count) / seconds : 0.0;
}

/// Adds the time it lives to a sum.
class Stopwatch {
public:
    explicit Stopwatch(double& seconds) : seconds_(seconds), start_(Clock::now()) {}
    ~Stopwatch() { seconds_ += std::chrono::duration<double>(Clock::now() - start_).count(); }
    Stopwatch(const Stopwatch&) = delete;
    Stopwatch& operator=(const Stopwatch&) = delete;

private:
    double& seconds_;
    Clock::time_point start_;
};

} // namespace

std::string_view finish_name(Finish finish) {
    switch (finish) {
    case Finish::stop:
        return "stop";
    case Finish::length:
        return "length";
    case Finish::context:
        return "context";
    case Finish::interrupted:
        break;
    }
    return "interrupted";
}

double Generation::prompt_tokens_per_s() const { return rate(prompt_tokens, prompt_seconds); }

double Generation::decode_tokens_per_s() const { return rate(decoded_tokens, decode_seconds); }

bool process_prompt(runner::Session& session, std::span<const Token> prompt,
                    Generation& generation) {
    generation.prompt_length = static_cast<std::int64_t>(prompt.size());
    Progress bar("prompt", "tokens", generation.prompt_length);
    {
        const Stopwatch stopwatch(generation.prompt_seconds);
        session.prompt(prompt, [&bar](std::int64_t done, std::int64_t) {
            bar.update(done);
            return !interrupted();
        });
    }
    generation.prompt_tokens = session.length();
    generation.cache = session.cache_report();
    if (!interrupted()) return true;
    generation.finish = Finish::interrupted;
    return false;
}

void generate(const runner::Model& model, runner::Session& session, runner::Sampler& sampler,
              const GenerateOptions& options, Generation& generation, std::optional<Token> first) {
    Utf8Stream stream;
    const auto emit = [&](const std::string& text) {
        generation.text += text;
        if (options.on_text && !text.empty()) options.on_text(text);
    };
    for (int count = 0;; first.reset()) {
        Token token = first.value_or(0);
        if (!first) {
            if (options.on_logits) options.on_logits(session.logits());
            token = sampler.sample(session.logits());
        }
        generation.finish = Finish::stop;
        if (model.is_end(token)) break;
        generation.tokens.push_back(token);
        emit(stream.add(model.piece(token)));
        generation.finish = Finish::length;
        if (++count == options.tokens) break;
        generation.finish = Finish::context;
        if (session.length() == session.options().context) break;
        generation.finish = Finish::interrupted;
        if (interrupted()) break;
        const Stopwatch stopwatch(generation.decode_seconds);
        session.decode(token);
        ++generation.decoded_tokens;
    }
    emit(stream.finish());
    generation.cache = session.cache_report();
}

} // namespace innerkv::cli
