// SPDX-License-Identifier: Apache-2.0
// `innerkv run`: a model answers on a quantized cache.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>

#include <fmt/format.h>

#include "commands.h"
#include "compare.h"
#include "errors.h"
#include "generate.h"
#include "innerkv/format.h"
#include "interrupt.h"
#include "log.h"
#include "options.h"
#include "output.h"
#include "prompt.h"
#include "run_report.h"
#include "text_file.h"

namespace innerkv::cli {
namespace {

constexpr int kMostTokens = 1 << 24;

constexpr const char* kExamples =
    R"(With both -f and -p, the file comes first and the prompt after it. Ctrl-C stops and prints
the summary; the exit code is then 130.

Examples:
  innerkv run -m model.gguf -p "Name three colours." -n 24
  innerkv run -m model.gguf -f tests/data/README.md -p "Who wrote this?" -n 12 \
      --compare f16
  head -c 1000 tests/data/alice.txt | innerkv run -m model.gguf -f - -n 16 --cache k4v4 --json)";

struct RunOptions {
    std::string model;
    std::string prompt;
    std::string file;
    std::string cache{presets().front().name};
    std::string compare;
    std::string key_norm;
    std::string calibration;
    std::string codec = kOwnCodec;
    std::string isa;
    runner::SamplerOptions sampler;
    int tokens = 256;
    int context = 0; ///< 0: what the prompt and the answer need
    int chunk = 512;
    int threads = 0;
    bool exact_prefill = false;
    bool raw = false;
    bool json = false;
    bool quiet = false;
    bool verbose = false;
};

PromptText read_prompt(const RunOptions& options) {
    if (options.prompt.empty() && options.file.empty())
        throw UsageError("nothing to say: give a prompt with -p, a file with -f, or both "
                         "(see innerkv run --help)");
    require_utf8("--prompt", options.prompt);
    PromptText text;
    text.question = options.prompt;
    if (!options.file.empty()) text.document = read_text(options.file);
    text.raw = options.raw;
    return text;
}

/// Throws UsageError where the prompt and one token do not fit.
int choose_context(const RunOptions& options, const runner::ModelInfo& info, std::size_t prompt) {
    check_context("--context", options.context, info);
    const std::int64_t wanted = static_cast<std::int64_t>(prompt) + options.tokens;
    const int context = options.context > 0
                            ? options.context
                            : static_cast<int>(std::min<std::int64_t>(wanted, info.context_length));
    if (prompt >= static_cast<std::size_t>(context))
        throw UsageError(fmt::format("the prompt has {} tokens and leaves no room in a context of "
                                     "{}; {}",
                                     prompt, context,
                                     context < info.context_length ? "choose a larger --context"
                                                                   : "shorten it"));
    return context;
}

using CalibrationPtr = std::shared_ptr<const runner::Calibration>;

/// Those that --calibration is for.
std::string calibrated_caches(const RunOptions& options) {
    const bool compared = !options.compare.empty() && options.compare != options.cache &&
                          find_preset(options.compare).k.quantized();
    return compared ? options.cache + "," + options.compare : options.cache;
}

runner::SessionOptions make_session_options(const RunOptions& options, const std::string& cache,
                                            int context, const CalibrationPtr& calibration) {
    runner::SessionOptions session =
        session_options(cache, context, options.key_norm, options.codec);
    session.threads = options.threads;
    session.chunk = options.chunk;
    session.exact_prefill = options.exact_prefill;
    session.isa = options.isa;
    if (session.preset.k.quantized()) session.calibration = calibration;
    return session;
}

/// The answer, streamed unless it goes into JSON.
void answer(const RunOptions& options, const runner::Model& model, runner::Session& session,
            const std::vector<runner::Token>& prompt, KeptLogits* kept, Generation& generation) {
    if (!process_prompt(session, prompt, generation)) return;
    runner::Sampler sampler(model, options.sampler);
    GenerateOptions generate_options;
    generate_options.tokens = options.tokens;
    if (!options.json) generate_options.on_text = write_output;
    if (kept)
        generate_options.on_logits = [kept](std::span<const float> logits) { kept->add(logits); };
    generate(model, session, sampler, generate_options, generation);
}

int run(const RunOptions& options) {
    if (options.verbose) log_models();
    const PromptText text = read_prompt(options);
    const CalibrationPtr calibration =
        read_calibration(options.calibration, calibrated_caches(options), options.codec);
    const std::shared_ptr<runner::Model> model = runner::Model::load(options.model);
    const std::vector<runner::Token> prompt = make_prompt(*model, text);
    catch_interrupts();
    RunReport report;
    report.model = options.model;
    report.cache = options.cache;
    report.context = choose_context(options, model->info(), prompt.size());
    KeptLogits kept(model->info().vocabulary_size);
    {
        runner::Session session(
            model, make_session_options(options, options.cache, report.context, calibration));
        report.threads = session.options().threads;
        answer(options, *model, session, prompt, options.compare.empty() ? nullptr : &kept,
               report.generation);
    }
    if (!options.json && !options.quiet) write_output("\n");
    report.compared_cache = options.compare;
    if (!options.compare.empty() && !interrupted()) {
        CompareOptions other;
        other.session = make_session_options(options, options.compare, report.context, calibration);
        other.sampler = options.sampler;
        other.tokens = options.tokens;
        report.comparison = compare(model, prompt, report.generation, kept, other);
    }
    if (options.json)
        write_json(to_json(report));
    else
        write_output(options.quiet ? "\n" : to_text(report));
    return interrupted() ? kInterrupted : kSuccess;
}

void add_prompt_options(CLI::App& command, RunOptions& options) {
    add_model_option(command, options.model);
    command.add_option("-p,--prompt", options.prompt, "What to ask or to continue")
        ->type_name("TEXT");
    command
        .add_option("-f,--file", options.file,
                    "A UTF-8 text that comes before the prompt, - for standard input")
        ->type_name("FILE");
    command.add_flag("--raw,--no-chat", options.raw, "Do not use the model's chat template");
    command.add_option("-n,--tokens", options.tokens, "Tokens to generate at most")
        ->type_name("N")
        ->check(whole_range(1, kMostTokens))
        ->capture_default_str();
}

void add_cache_options(CLI::App& command, RunOptions& options) {
    add_preset_option(command, "--cache", options.cache, "The cache: one of " + preset_names());
    add_preset_option(command, "--compare", options.compare,
                      "Run this cache too and show where the two differ");
    command
        .add_option("--context", options.context,
                    "Tokens the cache is made for; as many as needed by default")
        ->type_name("N")
        ->check(whole_range(1, kMostTokens));
    add_key_norm_option(command, options.key_norm);
    add_calibration_option(command, options.calibration)->excludes("--key-norm");
    add_codec_option(command, options.codec);
    command.add_flag("--exact-prefill", options.exact_prefill,
                     "Keep the whole prompt in fp16 until it is complete");
    const auto whole_pages = [](const std::string& value) {
        const auto tokens = whole_number(value);
        if (tokens && *tokens >= kPageTokens && *tokens <= kMostTokens &&
            *tokens % kPageTokens == 0)
            return std::string();
        return fmt::format("{} is not a multiple of {} from {} to {}", value, kPageTokens,
                           kPageTokens, kMostTokens);
    };
    command.add_option("--chunk", options.chunk, "Prompt tokens processed at once")
        ->type_name("N")
        ->check(CLI::Validator(whole_pages, fmt::format("multiple of {}", kPageTokens)))
        ->capture_default_str();
}

void add_sampling_options(CLI::App& command, runner::SamplerOptions& sampler) {
    command.add_option("--temp", sampler.temperature, "Temperature; 0 takes the most likely token")
        ->type_name("T")
        ->check(finite_range(0, 100))
        ->capture_default_str();
    command
        .add_option("--top-k", sampler.top_k,
                    "Sample from the K most likely tokens at most; 0: no such limit")
        ->type_name("K")
        ->check(whole_range(0, kMostTokens))
        ->capture_default_str();
    const auto probability = [](const std::string& value) {
        float share = 0;
        const bool number = CLI::detail::lexical_cast(value, share);
        if (number && share > 0 && share <= 1) return std::string();
        return fmt::format(
            "{} is not a number above 0 and up to 1; --temp 0 takes the most likely token", value);
    };
    command
        .add_option("--top-p", sampler.top_p,
                    "Sample from the most likely tokens that have this probability together")
        ->type_name("P")
        ->check(CLI::Validator(probability, "0..1"))
        ->capture_default_str();
    command
        .add_option("--min-p", sampler.min_p,
                    "Sample from tokens that have this share of the most likely one's probability")
        ->type_name("P")
        ->check(finite_range(0, 1))
        ->capture_default_str();
    command.add_option("--seed", sampler.seed, "Seed of the sampler")
        ->type_name("S")
        ->check(whole_range(0, std::numeric_limits<std::uint32_t>::max()))
        ->capture_default_str();
}

} // namespace

void add_run_command(CLI::App& app, Action& action) {
    auto options = std::make_shared<RunOptions>();
    CLI::App* command = app.add_subcommand("run", "Answer a prompt, then tell memory and speed");
    add_prompt_options(*command, *options);
    add_cache_options(*command, *options);
    add_sampling_options(*command, options->sampler);
    add_threads_option(*command, options->threads, "Threads; all cores by default");
    add_isa_option(*command, options->isa, "Instruction set of the kernels");
    command->add_flag("-q,--quiet", options->quiet, "Print the text alone")->excludes("--compare");
    command->add_flag("-v,--verbose", options->verbose, "Show messages of ggml and llama.cpp");
    add_json_option(*command, options->json);
    command->footer(kExamples);
    on_chosen(*command, action, options, options->threads, run);
}

} // namespace innerkv::cli
