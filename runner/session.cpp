// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <exception>
#include <string>
#include <thread>

#include "engine.h"
#include "rivals.h"
#include "runner/calibration.h"
#include "settings.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace innerkv::runner {
namespace {

/// Logits that one chunk of evaluate() may hold.
constexpr int kMaxLogits = 1 << 26;
constexpr std::string_view kPaper = "paper:";

/// The options with what they leave open filled in; throws InvalidArgument.
SessionOptions checked(const ModelInfo& info, SessionOptions options) {
    if (options.context < 1) {
        throw InvalidArgument("a context of " + std::to_string(options.context) +
                              " tokens was asked for; 1 to " + std::to_string(info.context_length) +
                              " is supported");
    }
    if (options.context > info.context_length) {
        throw InvalidArgument("a context of " + std::to_string(options.context) +
                              " tokens was asked for; " + info.path + " was trained for " +
                              std::to_string(info.context_length));
    }
    if (options.threads < 0 || options.threads > kMaxThreads) {
        throw InvalidArgument(std::to_string(options.threads) + " threads were asked for; 1 to " +
                              std::to_string(kMaxThreads) + " are supported, 0 means all cores");
    }
    if (!options.rival.empty() && options.exact_prefill) {
        throw InvalidArgument(options.rival + " quantizes a prompt as it comes; exact_prefill is "
                                              "supported for presets alone");
    }
    if (!options.layer_codecs.empty() &&
        options.layer_codecs.size() != static_cast<std::size_t>(info.layers)) {
        throw InvalidArgument("bits (layers=) of " + std::to_string(options.layer_codecs.size()) +
                              " layers were given; " + info.path + " has " +
                              std::to_string(info.layers));
    }
    if (options.chunk < kPageTokens || options.chunk % kPageTokens != 0) {
        throw InvalidArgument("a chunk of " + std::to_string(options.chunk) +
                              " tokens was asked for; a multiple of " +
                              std::to_string(kPageTokens) + " is supported");
    }
    options.chunk =
        std::min(options.chunk, (options.context + kPageTokens - 1) / kPageTokens * kPageTokens);
    if (options.threads == 0) {
        options.threads = available_cores();
    }
    return options;
}

void check_calibration(const Model& model, const SessionOptions& options) {
    check_model(*options.calibration, model);
    if (!options.preset.k.quantized()) {
        throw InvalidArgument("a calibration was given for the preset " +
                              std::string(options.preset.name) +
                              ", which quantizes nothing; leave it out, or choose another preset");
    }
    if (!options.calibration->layer_codecs.empty() && !options.layer_codecs.empty()) {
        throw InvalidArgument("codecs by layer were given beside the calibration " +
                              options.calibration->path +
                              ", which has such; leave one of the two out");
    }
}

std::unique_ptr<Engine> make_engine(std::shared_ptr<Model> model, const SessionOptions& options) {
    if (!options.rival.empty() && parse_rival(options.rival).libllama) {
        return make_llama_engine(*model, options);
    }
    return make_graph_engine(std::move(model), options);
}

} // namespace

int available_cores() {
#if defined(__linux__)
    cpu_set_t cores;
    if (sched_getaffinity(0, sizeof(cores), &cores) == 0) {
        return std::clamp(CPU_COUNT(&cores), 1, kMaxThreads);
    }
#endif
    return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMaxThreads);
}

bool whole_chunks(const SessionOptions& options) {
    return options.exact_prefill || !options.preset.k.quantized();
}

bool cuts_exactly(const SessionOptions& options, std::int64_t length) {
    if (!options.rival.empty()) {
        return true;
    }
    const Preset& preset = options.preset;
    const int calibration = options.transform.calibration_tokens;
    return !preset.k.quantized() ||
           (preset.sink_tokens % kPageTokens == 0 && preset.recent_tokens >= kPageTokens &&
            length > preset.sink_tokens + calibration + preset.recent_tokens);
}

SessionOptions make_options(std::string_view contender, int context) {
    SessionOptions options;
    options.context = context;
    if (names_rival(contender)) {
        parse_rival(contender);
        options.rival = contender;
        options.preset = find_preset("f16");
        return options;
    }
    const std::string_view name = contender.substr(0, contender.find('+'));
    const bool paper = name.starts_with(kPaper);
    options.preset = find_preset(paper ? name.substr(kPaper.size()) : name);
    if (paper) {
        options.preset = paper_preset(options.preset);
    }
    options.transform = TransformPolicy::from_preset(options.preset);
    apply_settings(contender.substr(name.size()), options);
    return options;
}

CacheConfig cache_config(const ModelInfo& info, const SessionOptions& options) {
    CacheConfig config =
        CacheConfig::from_preset(options.preset, info.layers, info.kv_heads, info.head_dim);
    config.transform = options.transform;
    config.layer_codecs = options.layer_codecs;
    if (options.calibration && !options.calibration->layer_codecs.empty()) {
        config.layer_codecs = options.calibration->layer_codecs;
    }
    if (options.calibration && options.calibration->has_transforms()) {
        config.transform = {};
        config.transform.norm = KeyNormPolicy::calibrated;
        config.calibrated = options.calibration->transforms();
    }
    config.sliding_window = info.sliding_window;
    config.max_tokens = options.context;
    config.max_append = whole_chunks(options) ? options.chunk : kPageTokens;
    config.exact_prefill = options.exact_prefill;
    return config;
}

struct Session::Impl {
    Impl(std::shared_ptr<Model> used_model, const SessionOptions& used_options)
        : model(std::move(used_model)), options(used_options), engine(make_engine(model, options)) {
    }

    void check_tokens(std::span<const Token> tokens) const {
        const int vocabulary_size = model->info().vocabulary_size;
        for (const Token token : tokens) {
            if (token < 0 || token >= vocabulary_size) {
                throw InvalidArgument("token " + std::to_string(token) +
                                      " is outside the vocabulary of " +
                                      std::to_string(vocabulary_size));
            }
        }
        if (tokens.empty()) {
            throw InvalidArgument("no tokens were given; at least one is needed");
        }
        if (length + static_cast<std::int64_t>(tokens.size()) > options.context) {
            throw InvalidArgument(std::to_string(tokens.size()) + " tokens after " +
                                  std::to_string(length) + " do not fit into the context of " +
                                  std::to_string(options.context));
        }
    }

    /// Processes one chunk; logits of its last `outputs` tokens, valid until the next.
    std::span<const float> process(std::span<const Token> tokens, int outputs) {
        std::span<const float> rows;
        try {
            rows = engine->process(tokens, length, outputs);
        } catch (...) {
            roll_back();
            throw;
        }
        length += static_cast<std::int64_t>(tokens.size());
        return rows;
    }

    /// Some layers have the failed chunk's tokens, others don't.
    void roll_back() {
        logits.clear();
        try {
            engine->truncate(length);
        } catch (...) {
            // A sliding window has dropped what the shorter sequence needs, or memory is short.
            start_over();
        }
    }

    void start_over() {
        length = 0;
        logits.clear();
        engine->clear();
    }

    /// Tokens of the next chunk: chunks end at page boundaries where they can.
    int next_chunk(std::size_t remaining, int largest) const {
        if (remaining <= static_cast<std::size_t>(largest)) {
            return static_cast<int>(remaining);
        }
        const auto past_page =
            static_cast<int>((length + largest - options.preset.sink_tokens) % kPageTokens);
        return largest - std::max(past_page, 0);
    }

    void keep_last(std::span<const float> rows) {
        const auto vocabulary_size = static_cast<std::size_t>(model->info().vocabulary_size);
        const std::span<const float> last = rows.last(vocabulary_size);
        logits.assign(last.begin(), last.end());
    }

    /// All tokens from `first_row` on have their logits computed; a prompt that `progress` stops early
    /// is complete as it is.
    void process_all(std::span<const Token> tokens, std::int64_t first_row, int largest,
                     const Session::Rows& rows, const Progress& progress) {
        logits.clear();
        const auto total = static_cast<std::int64_t>(tokens.size());
        for (std::int64_t done = 0; done < total;) {
            const int count = next_chunk(static_cast<std::size_t>(total - done), largest);
            const auto outputs =
                static_cast<int>(std::clamp<std::int64_t>(done + count - first_row, 0, count));
            const std::span<const float> chunk_logits = process(
                tokens.subspan(static_cast<std::size_t>(done), static_cast<std::size_t>(count)),
                outputs);
            done += count;
            if (outputs > 0 && rows) {
                rows(done - outputs, chunk_logits);
            }
            if (done == total) {
                keep_last(chunk_logits);
            }
            if (progress && !progress(done, total) && done < total) {
                break;
            }
        }
        if (options.exact_prefill) {
            engine->settle();
        }
    }

    std::shared_ptr<Model> model;
    SessionOptions options;
    std::unique_ptr<Engine> engine;
    std::int64_t length = 0;
    std::vector<float> logits; ///< [vocabulary_size], or empty
};

Session::Session(std::shared_ptr<Model> model, const SessionOptions& options) {
    if (!model) {
        throw InvalidArgument("a session needs a model");
    }
    const SessionOptions complete = checked(model->info(), options);
    if (complete.calibration) {
        check_calibration(*model, complete);
    }
    impl_ = std::make_unique<Impl>(std::move(model), complete);
}

Session::~Session() = default;

const SessionOptions& Session::options() const { return impl_->options; }

std::int64_t Session::length() const { return impl_->length; }

void Session::prompt(std::span<const Token> tokens, const Progress& progress) {
    impl_->check_tokens(tokens);
    const auto last = static_cast<std::int64_t>(tokens.size()) - 1;
    impl_->process_all(tokens, last, impl_->options.chunk, {}, progress);
}

void Session::decode(Token token) {
    impl_->check_tokens({&token, 1});
    impl_->keep_last(impl_->process({&token, 1}, 1));
}

std::span<const float> Session::logits() const { return impl_->logits; }

void Session::evaluate(std::span<const Token> tokens, std::int64_t first_row, const Rows& rows,
                       const Progress& progress) {
    impl_->check_tokens(tokens);
    if (first_row < 0 || first_row >= static_cast<std::int64_t>(tokens.size())) {
        throw InvalidArgument("logits from token " + std::to_string(first_row) +
                              " on were asked for; there are " + std::to_string(tokens.size()) +
                              " tokens");
    }
    const int rows_that_fit = kMaxLogits / impl_->model->info().vocabulary_size;
    const int largest =
        std::clamp(rows_that_fit / kPageTokens * kPageTokens, kPageTokens, impl_->options.chunk);
    impl_->process_all(tokens, first_row, largest, rows, progress);
}

void Session::truncate(std::int64_t length) {
    if (length < 0 || length > impl_->length) {
        throw InvalidArgument("a length of " + std::to_string(length) +
                              " was asked for; the session has " + std::to_string(impl_->length) +
                              " tokens");
    }
    impl_->engine->truncate(length);
    impl_->length = length;
    impl_->logits.clear();
}

void Session::clear() { impl_->start_over(); }

SequenceView Session::view(int layer) const { return impl_->engine->view(layer); }

CacheReport Session::cache_report() const { return impl_->engine->report(impl_->length); }

} // namespace innerkv::runner
