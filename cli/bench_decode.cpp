// SPDX-License-Identifier: Apache-2.0
// `innerkv bench decode`: prompt and generation of a model, on our caches and in libllama.
#include <algorithm>
#include <functional>
#include <iterator>
#include <memory>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "bench_commands.h"
#include "decode_bench.h"
#include "errors.h"
#include "innerkv/attention.h"
#include "innerkv/error.h"
#include "innerkv/format.h"
#include "interrupt.h"
#include "log.h"
#include "options.h"
#include "output.h"

namespace innerkv::cli {
namespace {

constexpr int kMostTokens = 1 << 16;
constexpr int kMostRepeats = 1000;
constexpr int kContexts[] = {512, 2048, 8192};

constexpr const char* kExamples =
    R"(Contenders generate in turns in one process, with the same threads, libllama with flash attention. A context is
what the cache holds when the last token is generated.

Examples:
  innerkv bench decode -m model.gguf --context 64,128 --tokens 4
  innerkv bench decode -m model.gguf --context 128 --threads 1 --cache base,k4v4 --tokens 4 \
      --peer llama:f16,llama:q8_0 --repeats 2 --json)";

struct BenchOptions {
    bench::DecodeBenchOptions bench;
    std::string model;
    std::string presets{innerkv::presets().front().name};
    std::string peers;
    std::string calibration; ///< a file; empty: none
    bool json = false;
};

void check_peer(const std::string& name) {
    if (!name.starts_with("llama:"))
        throw CLI::ValidationError("'" + name +
                                       "' is no rival here; libllama's are llama:TYPE, "
                                       "as in llama:f16,llama:q8_0,llama:q4_0",
                                   0);
    const std::vector<std::string> all = runner::rival_names();
    std::vector<std::string> known;
    std::ranges::copy_if(all, std::back_inserter(known),
                         [](const std::string& rival) { return rival.starts_with("llama:"); });
    try {
        runner::make_options(name, 1);
    } catch (const InvalidArgument&) {
        throw CLI::ValidationError(fmt::format("'{}' is no cache of libllama's; there are {}", name,
                                               fmt::join(known, ", ")),
                                   0);
    }
}

bench::DecodeBenchOptions complete(const BenchOptions& options, const runner::ModelInfo& info) {
    bench::DecodeBenchOptions bench = options.bench;
    bench.caches = split_list(options.presets);
    if (!options.peers.empty())
        for (std::string& name : split_list(options.peers)) bench.caches.push_back(std::move(name));
    if (bench.contexts.empty())
        std::ranges::copy_if(kContexts, std::back_inserter(bench.contexts),
                             [&](int context) { return context <= info.context_length; });
    if (bench.contexts.empty()) bench.contexts = {info.context_length};
    std::ranges::sort(bench.contexts);
    bench.calibration = read_calibration(options.calibration, options.presets, kOwnCodec);
    if (bench.threads == 0) bench.threads = runner::available_cores();
    try {
        bench::require_contexts(bench, info.context_length);
    } catch (const InvalidArgument& error) {
        throw UsageError(error.what());
    }
    return bench;
}

Json to_json(const BenchOptions& options, const bench::DecodeBenchOptions& bench,
             const std::vector<bench::DecodeResult>& results) {
    Json entries = Json::array();
    for (const bench::DecodeResult& result : results)
        entries.push_back({{"name", result.name},
                           {"context", result.context},
                           {"decode_tokens_per_s", result.decode_tokens_per_s},
                           {"best_decode_tokens_per_s", result.best_decode_tokens_per_s},
                           {"prompt_tokens_per_s", result.prompt_tokens_per_s},
                           {"peak_bytes", result.peak_bytes}});
    return {{"model", options.model},
            {"threads", bench.threads},
            {"tokens", bench.tokens},
            {"repeats", bench.repeats},
            {"seed", bench.seed},
            {"interrupted", interrupted()},
            {"isa", select_isa(bench.isa)},
            {"calibration", options.calibration},
            {"results", entries}};
}

std::string to_text(const bench::DecodeBenchOptions& bench,
                    const std::vector<bench::DecodeResult>& results) {
    Table table({"contender", "context", "decode tokens/s", "best", "prompt tokens/s", "memory"});
    for (const bench::DecodeResult& result : results)
        table.add({result.name, std::to_string(result.context),
                   fmt::format("{:.1f}", result.decode_tokens_per_s),
                   fmt::format("{:.1f}", result.best_decode_tokens_per_s),
                   fmt::format("{:.1f}", result.prompt_tokens_per_s),
                   result.peak_bytes == 0 ? "-" : format_bytes(result.peak_bytes)});
    return fmt::format("{} tokens generated {} time{}, {} thread{}\n", bench.tokens, bench.repeats,
                       bench.repeats > 1 ? "s" : "", bench.threads, bench.threads > 1 ? "s" : "") +
           table.text();
}

std::vector<bench::DecodeResult> measure(const std::shared_ptr<runner::Model>& model,
                                         bench::DecodeBenchOptions bench) {
    Reporter reporter("tokens");
    bench.progress = std::ref(reporter);
    return bench::run_decode_bench(model, bench);
}

int bench_decode(const BenchOptions& options) {
    const std::shared_ptr<runner::Model> model = runner::Model::load(options.model);
    const bench::DecodeBenchOptions bench = complete(options, model->info());
    catch_interrupts();
    const std::vector<bench::DecodeResult> results = measure(model, bench);
    if (results.empty()) log_error("interrupted before the first context was done");
    if (options.json)
        write_json(to_json(options, bench, results));
    else if (!results.empty())
        write_output(to_text(bench, results));
    return interrupted() ? kInterrupted : kSuccess;
}

} // namespace

void add_bench_decode(CLI::App& parent, Action& action) {
    auto options = std::make_shared<BenchOptions>();
    options->bench.threads = 0;
    CLI::App* command = parent.add_subcommand(
        "decode", "A model's prompt and generation, in tokens a second and bytes");
    add_model_option(*command, options->model);
    command
        ->add_option("--context", options->bench.contexts,
                     fmt::format("Tokens in the cache at the end; {}, as far as the model goes",
                                 fmt::join(kContexts, ",")))
        ->type_name("N,M,...")
        ->delimiter(',')
        ->check(whole_range(2, 1 << 24));
    add_presets_option(*command, options->presets, "Our contenders");
    add_calibration_option(*command, options->calibration);
    command
        ->add_option("--peer", options->peers,
                     "libllama's caches: llama:f16, llama:q8_0, llama:q4_0, ...")
        ->type_name("A,B,...")
        ->check(accepted_by([](const std::string& list) {
            for (const std::string& name : split_list(list)) check_peer(name);
        }));
    add_threads_option(*command, options->bench.threads, "Threads of every contender; all cores");
    command->add_option("--tokens", options->bench.tokens, "Tokens generated at a time")
        ->type_name("N")
        ->check(whole_range(1, kMostTokens))
        ->capture_default_str();
    command->add_option("--repeats", options->bench.repeats, "How often, the last up to --context")
        ->type_name("N")
        ->check(whole_range(1, kMostRepeats))
        ->capture_default_str();
    command->add_option("--seed", options->bench.seed, "Seed of the random prompt")
        ->type_name("S")
        ->check(whole_range(0, 0xffffffff));
    add_isa_option(*command, options->bench.isa, "Instruction set of our kernels");
    add_json_option(*command, options->json);
    command->footer(kExamples);
    on_chosen(*command, action, options, options->bench.threads, bench_decode);
}

} // namespace innerkv::cli
