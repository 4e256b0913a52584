// SPDX-License-Identifier: Apache-2.0
// `innerkv eval`: what a cache costs in quality.
#include <memory>

#include <fmt/format.h>

#include "commands.h"
#include "errors.h"
#include "innerkv/format.h"
#include "interrupt.h"
#include "log.h"
#include "options.h"
#include "output.h"
#include "perplexity.h"
#include "progress.h"
#include "text_file.h"

namespace innerkv::cli {
namespace {

constexpr int kShortestWindow = 64;
constexpr int kLongestWindow = 1 << 24;

constexpr const char* kExamples =
    R"(Every token attends as in decoding. KLD is in nats, from the reference's prediction to the
cache's; top-1 tells how often both find the same token most likely. Contenders are presets, presets
with the paper's codecs (paper:PRESET) and caches of others (sim:..., llama:...; docs/rivals.md).

Examples:
  innerkv eval ppl -m model.gguf --text tests/data/alice.txt --ctx 384 --chunks 1
  innerkv eval ppl -m model.gguf --text tests/data/wikitext-small.txt --ctx 384 --chunks 1 \
      --cache base,k4v4 --against f16 --json
  innerkv eval ppl -m model.gguf --text tests/data/wikitext-small.txt --ctx 384 --chunks 1 \
      --cache k4v4,paper:k4v4,sim:q4_0+rot,llama:q4_0+rot)";

struct PplOptions {
    std::string model;
    std::string text;
    int window = 2048;
    int windows = 0; ///< 0: all that the text has
    std::string caches;
    std::string against = "f16";
    std::string codec = kOwnCodec;
    std::string isa;
    std::string key_norm;
    std::string calibration;
    std::string arithmetic = "integer";
    int threads = 0;
    bool json = false;
};

/// How many windows to measure; throws Failure where the text has not one.
int choose_windows(const PplOptions& options, std::size_t tokens) {
    const auto available = static_cast<int>(tokens / static_cast<std::size_t>(options.window));
    if (available == 0)
        throw Failure(fmt::format("{} has {} tokens, fewer than one window of {}; choose a smaller "
                                  "--ctx or a longer text",
                                  options.text, tokens, options.window));
    if (options.windows > available)
        log_warning(fmt::format("{} has {} windows of {} tokens, not {}", options.text, available,
                                options.window, options.windows));
    return options.windows == 0 ? available : std::min(options.windows, available);
}

PerplexityResult measure(const PplOptions& options) {
    PerplexityOptions perplexity;
    perplexity.calibration = read_calibration(options.calibration, options.caches, options.codec);
    const std::string text = read_text(options.text);
    const std::shared_ptr<runner::Model> model = runner::Model::load(options.model);
    if (options.window > model->info().context_length)
        throw Failure(fmt::format("--ctx {} is beyond the {} tokens that {} was made for",
                                  options.window, model->info().context_length,
                                  model->info().name));
    const std::vector<runner::Token> tokens = model->tokenize(text, false, false);
    catch_interrupts();
    const std::vector<std::string> caches = split_list(options.caches);
    perplexity.window = options.window;
    perplexity.windows = choose_windows(options, tokens.size());
    perplexity.threads = options.threads;
    perplexity.isa = options.isa;
    perplexity.key_norm = options.key_norm;
    perplexity.codec = options.codec;
    perplexity.arithmetic = options.arithmetic == "exact" ? Arithmetic::exact : Arithmetic::integer;
    perplexity.first_token = model->bos().value_or(-1);
    const auto sessions = static_cast<std::int64_t>(caches.size() + 1);
    Progress bar("eval ppl", "tokens", sessions * perplexity.windows * (options.window - 1));
    perplexity.progress = [&bar](std::int64_t done, std::int64_t) {
        bar.update(done);
        return !interrupted();
    };
    return measure_perplexity(model, tokens, options.against, caches, perplexity);
}

Json to_json(const CacheScore& cache) {
    return {{"cache", cache.cache},
            {"ppl", cache.score.perplexity},
            {"kld_mean", cache.score.divergence_mean},
            {"kld_p99", cache.score.divergence_p99},
            {"kld_max", cache.score.divergence_max},
            {"top1", cache.score.same_top},
            {"bits_per_value", cache.bits_per_value},
            {"bits_per_value_total", cache.bits_per_value_total},
            {"tokens", cache.score.tokens}};
}

Json to_json(const PplOptions& options, const PerplexityResult& result) {
    Json results = Json::array();
    for (const CacheScore& cache : result.caches) results.push_back(to_json(cache));
    return {{"model", options.model},
            {"text", options.text},
            {"ctx", options.window},
            {"chunks", result.windows},
            {"codec", options.codec},
            {"calibration", options.calibration},
            {"arithmetic", options.arithmetic},
            {"threads", result.threads},
            {"interrupted", interrupted()},
            {"against",
             {{"cache", result.reference.cache},
              {"ppl", result.reference.score.perplexity},
              {"tokens", result.reference.score.tokens}}},
            {"results", results}};
}

std::string to_text(const PplOptions& options, const PerplexityResult& result) {
    const double reference = result.reference.score.perplexity;
    std::string text =
        fmt::format("{} window{} of {} tokens, second half scored: {} tokens; "
                    "{} has perplexity {:.4f}\n",
                    result.windows, result.windows == 1 ? "" : "s", options.window,
                    result.reference.score.tokens, result.reference.cache, reference);
    Table table(
        {"cache", "bits a value", "with windows", "ppl", "change", "mean KLD", "p99 KLD", "top-1"});
    for (const CacheScore& cache : result.caches)
        table.add({cache.cache, fmt::format("{:.2f}", cache.bits_per_value),
                   fmt::format("{:.2f}", cache.bits_per_value_total),
                   fmt::format("{:.4f}", cache.score.perplexity),
                   fmt::format("{:+.2f}%", 100.0 * (cache.score.perplexity / reference - 1.0)),
                   fmt::format("{:.5f}", cache.score.divergence_mean),
                   fmt::format("{:.4f}", cache.score.divergence_p99),
                   fmt::format("{:.2f}%", 100.0 * cache.score.same_top)});
    return text + table.text();
}

/// Such a row tells nothing about its format.
void warn_of_unquantized(const PplOptions& options, const PerplexityResult& result) {
    std::string names;
    for (const CacheScore& cache : result.caches)
        if (cache.never_quantized) names.append(names.empty() ? "" : ", ").append(cache.cache);
    if (!names.empty())
        log_warning(
            fmt::format("{} quantized nothing in windows of {} tokens, which its fp16 windows "
                        "hold; choose a larger --ctx",
                        names, options.window));
}

int eval_ppl(const PplOptions& options) {
    const PerplexityResult result = measure(options);
    if (result.windows == 0) {
        log_error("interrupted before the first window was done");
        return kInterrupted;
    }
    warn_of_unquantized(options, result);
    if (options.json)
        write_json(to_json(options, result));
    else
        write_output(to_text(options, result));
    return interrupted() ? kInterrupted : kSuccess;
}

void add_ppl(CLI::App& parent, Action& action) {
    auto options = std::make_shared<PplOptions>();
    CLI::App* command = parent.add_subcommand(
        "ppl", "Perplexity on a text, and how far predictions are from those of a reference cache");
    options->caches = std::string(presets().front().name);
    add_model_option(*command, options->model);
    command->add_option("--text", options->text, "UTF-8 text, - for standard input")
        ->type_name("FILE")
        ->required();
    command->add_option("--ctx", options->window, "Tokens of a window; its second half is scored")
        ->type_name("N")
        ->check(whole_range(kShortestWindow, kLongestWindow))
        ->capture_default_str();
    command->add_option("--chunks", options->windows, "Windows; all that the text has by default")
        ->type_name("N")
        ->check(whole_range(1, kLongestWindow));
    add_contenders_option(*command, options->caches, "Contenders to measure");
    add_contender_option(*command, "--against", options->against, "The reference");
    add_codec_option(*command, options->codec);
    command
        ->add_option(
            "--arithmetic", options->arithmetic,
            "integer: int8 queries and uint8 probabilities; exact: fp32 on the cache's codes")
        ->check(CLI::IsMember({"integer", "exact"}))
        ->capture_default_str();
    add_key_norm_option(*command, options->key_norm);
    add_calibration_option(*command, options->calibration);
    add_threads_option(*command, options->threads, "Threads; all cores by default");
    add_isa_option(*command, options->isa, "Instruction set of the kernels");
    add_json_option(*command, options->json);
    command->footer(kExamples);
    command->callback([options, &action] {
        action = [options] {
            limit_threads(options->threads);
            return eval_ppl(*options);
        };
    });
}

} // namespace

void add_eval_command(CLI::App& app, Action& action) {
    CLI::App* command = app.add_subcommand("eval", "Measure quality");
    command->require_subcommand(1);
    command->footer("innerkv eval ppl --help has examples.");
    add_ppl(*command, action);
}

} // namespace innerkv::cli
