// SPDX-License-Identifier: Apache-2.0
// `innerkv bench attention`: one decode step's attention, ours and the peers in turns.
#include <cstdint>
#include <limits>
#include <memory>

#include <fmt/format.h>

#include "attention_bench.h"
#include "bench_commands.h"
#include "contender.h"
#include "device_bench.h"
#include "errors.h"
#include "innerkv/cuda.h"
#include "innerkv/error.h"
#include "innerkv/format.h"
#include "interrupt.h"
#include "log.h"
#include "memory_limit.h"
#include "options.h"
#include "output.h"

namespace innerkv::cli {
namespace {

constexpr int kMostHeads = 1024;
constexpr int kMostContext = 1 << 24;
constexpr int kMostBatch = 1 << 16;
constexpr int kMostTokens = 1 << 16;
constexpr int kMostRepeats = 1000000;

constexpr const char* kExamples =
    R"(Ratios are medians over the first preset's. An error is the relative error of the output against double
precision on the data before quantization; a contender with a wrong result is refused.

Examples:
  innerkv bench attention --context 2048
  innerkv bench attention --context 1024 --cache base,k8v8 --peer ggml:f16,ggml:q8_0
  innerkv bench attention --head-dim 64 --q-heads 9 --kv-heads 3 --context 4096 \
      --batch 2 --cold --repeats 5 --json
  innerkv bench attention --context 1024 --q-heads 8 --batch 8 --shared
  innerkv bench attention --context 8192 --batch 8 --ragged
  innerkv bench attention --context 4096 --tokens 512 --peer ggml:f16 --repeats 3)";

struct BenchOptions {
    bench::AttentionBenchOptions bench;
    std::string presets = std::string(presets_default());
    std::string peers;
    std::string device = "cpu";
    bool json = false;

    static std::string_view presets_default() { return innerkv::presets().front().name; }
};

void check_device_options(const BenchOptions& options) {
    const bench::AttentionCase& attention = options.bench.attention;
    if (!options.peers.empty() || options.bench.shared || !options.bench.isa.empty() ||
        attention.ragged || options.bench.threads != 1)
        throw UsageError("--device cuda measures presets alone, on sequences of one length; "
                         "--peer, --shared, --isa, --ragged and --threads are for --device cpu");
    if (attention.batch > cuda::kMaxSequences)
        throw UsageError(fmt::format("--batch {} on --device cuda; supported are 1 to {}",
                                     attention.batch, cuda::kMaxSequences));
}

void check_options(const BenchOptions& options) {
    const bench::AttentionCase& attention = options.bench.attention;
    if (options.device == "cuda") check_device_options(options);
    if (options.bench.shared && attention.batch < 2)
        throw UsageError("--shared compares forks with separate sequences: give --batch 2 or more");
    if (options.bench.shared && (attention.ragged || attention.tokens > 1))
        throw UsageError(
            "--shared is one token of sequences of one length; leave out --ragged and --tokens");
    if (attention.tokens > attention.context_of(0))
        throw UsageError(fmt::format("--tokens {} are more than the {} of the shortest context",
                                     attention.tokens, attention.context_of(0)));
    if (attention.q_heads % attention.kv_heads != 0)
        throw UsageError(fmt::format("--q-heads {} is not a multiple of --kv-heads {}",
                                     attention.q_heads, attention.kv_heads));
    if (options.device == "cuda" && cuda::devices().empty())
        throw Failure(fmt::format("{}; use --device cpu", cuda::unavailable_reason()));
}

/// Of all contenders, which are in memory at the same time. Throws UsageError where one does not support the case.
std::uint64_t contenders_bytes(const BenchOptions& options) {
    const bench::AttentionCase& attention = options.bench.attention;
    std::uint64_t bytes = 0;
    try {
        for (const std::string& preset : split_list(options.presets))
            bytes +=
                bench::innerkv_contender_bytes(attention, preset) * (options.bench.shared ? 2 : 1);
        if (!options.peers.empty())
            for (const std::string& peer : split_list(options.peers))
                bytes += bench::peer_bytes(attention, peer);
    } catch (const InvalidArgument& error) {
        throw UsageError(error.what());
    }
    return bytes;
}

/// Throws Failure where the contenders do not fit.
void check_memory(const BenchOptions& options) {
    const bench::AttentionCase& attention = options.bench.attention;
    const std::uint64_t bytes = contenders_bytes(options);
    const MemoryLimit limit = memory_limit();
    if (bytes > limit.bytes)
        throw Failure(
            fmt::format("caches and queries of --context {}, --batch {} and --tokens {} take {} "
                        "for all contenders, {} has {}; choose smaller ones, or fewer contenders",
                        attention.context, attention.batch, attention.tokens, format_bytes(bytes),
                        limit.owner, format_bytes(limit.bytes)));
}

bench::AttentionBenchResult measure(const BenchOptions& options) {
    bench::AttentionBenchOptions bench = options.bench;
    Reporter reporter("rounds");
    bench.presets = split_list(options.presets);
    if (!options.peers.empty()) bench.peers = split_list(options.peers);
    bench.progress = std::ref(reporter);
    return options.device == "cuda" ? bench::run_device_attention_bench(bench)
                                    : bench::run_attention_bench(bench);
}

Json to_json(const BenchOptions& options, const bench::AttentionBenchResult& measured) {
    const bench::AttentionCase& attention = options.bench.attention;
    Json results = Json::array();
    for (const bench::ContenderResult& result : measured.results) {
        Json entry = {{"name", result.name},
                      {"median_us", result.median_us},
                      {"min_us", result.min_us},
                      {"bytes_read", result.bytes_read},
                      {"gb_per_s", result.gb_per_s},
                      {"percent_of_read_bandwidth", result.percent_of_read_bandwidth},
                      {"ratio", result.ratio},
                      {"floor_us", result.floor_us},
                      {"times_floor", result.times_floor},
                      {"min_times_floor", result.min_times_floor},
                      {"relative_error", result.relative_error},
                      {"cosine", result.cosine}};
        if (result.append_us >= 0) entry["append_us"] = result.append_us;
        if (result.arithmetic_error >= 0) entry["arithmetic_error"] = result.arithmetic_error;
        results.push_back(std::move(entry));
    }
    Json report = {{"head_dim", attention.head_dim},
                   {"q_heads", attention.q_heads},
                   {"kv_heads", attention.kv_heads},
                   {"context", attention.context},
                   {"batch", attention.batch},
                   {"tokens", attention.tokens},
                   {"ragged", attention.ragged},
                   {"seed", attention.seed},
                   {"threads", options.bench.threads},
                   {"device", options.device},
                   {"isa", measured.isa},
                   {"cold", options.bench.cold},
                   {"rounds", measured.rounds},
                   {"interrupted", interrupted()},
                   {"read_bandwidth_gb_per_s", measured.read_bandwidth_gb_per_s},
                   {"dot_instruction", measured.dot_instruction},
                   {"dot_gmac_per_s", measured.dot_gmac_per_s},
                   {"floor_us", measured.floor_us},
                   {"results", results}};
    if (!measured.cuda.empty()) report["cuda"] = measured.cuda;
    if (options.bench.shared) {
        report["shared_dot_instruction"] = measured.shared_dot_instruction;
        report["shared_dot_gmac_per_s"] = measured.shared_dot_gmac_per_s;
    }
    return report;
}

std::string to_text(const BenchOptions& options, const bench::AttentionBenchResult& measured) {
    const bench::AttentionCase& attention = options.bench.attention;
    const int threads = options.bench.threads;
    const std::string on = options.device == "cuda"
                               ? measured.isa
                               : fmt::format("{} thread{}", threads, threads > 1 ? "s" : "");
    std::string text = fmt::format(
        "head dimension {}, {} query and {} key-value heads, {}{} tokens, batch {}, {} query "
        "token{} each, "
        "{}{}\n"
        "reading {:.1f} GB/s, {} {:.0f} GMAC/s\n",
        attention.head_dim, attention.q_heads, attention.kv_heads, attention.ragged ? "up to " : "",
        attention.context, attention.batch, attention.tokens, attention.tokens > 1 ? "s" : "", on,
        options.bench.cold ? ", cold" : "", measured.read_bandwidth_gb_per_s,
        measured.dot_instruction, measured.dot_gmac_per_s);
    if (options.bench.shared)
        text += fmt::format("forks: {} {:.0f} GMAC/s\n", measured.shared_dot_instruction,
                            measured.shared_dot_gmac_per_s);
    Table table({"contender", "median us", "min us", "ratio", "floor us", "x floor", "min x floor",
                 "MB read", "GB/s", "% of reading", "error", "arithmetic", "append us"});
    for (const bench::ContenderResult& result : measured.results)
        table.add(
            {result.name, fmt::format("{:.1f}", result.median_us),
             fmt::format("{:.1f}", result.min_us), fmt::format("{:.2f}", result.ratio),
             fmt::format("{:.0f}", result.floor_us), fmt::format("{:.2f}", result.times_floor),
             fmt::format("{:.2f}", result.min_times_floor),
             fmt::format("{:.2f}", static_cast<double>(result.bytes_read) / 1e6),
             fmt::format("{:.2f}", result.gb_per_s),
             fmt::format("{:.0f}", result.percent_of_read_bandwidth),
             fmt::format("{:.4f}", result.relative_error),
             result.arithmetic_error >= 0 ? fmt::format("{:.4f}", result.arithmetic_error) : "-",
             result.append_us >= 0 ? fmt::format("{:.0f}", result.append_us) : "-"});
    return text + table.text();
}

int bench_attention(const BenchOptions& given) {
    check_options(given);
    BenchOptions options = given;
    if (options.device == "cuda") options.bench.cold = true; // always
    if (options.device == "cpu") check_memory(options);
    catch_interrupts();
    const bench::AttentionBenchResult measured = measure(options);
    if (measured.rounds == 0) {
        if (options.json)
            write_json({{"interrupted", true}, {"rounds", 0}, {"results", Json::array()}});
        log_error("interrupted before the first round was done");
        return kInterrupted;
    }
    if (options.json)
        write_json(to_json(options, measured));
    else
        write_output(to_text(options, measured));
    return interrupted() ? kInterrupted : kSuccess;
}

void add_shape_options(CLI::App& command, bench::AttentionCase& attention) {
    std::vector<std::string> dims; // as they are written: 0x40 is none
    for (const int dim : kHeadDims) dims.push_back(std::to_string(dim));
    command.add_option("--head-dim", attention.head_dim, "Channels of a head")
        ->type_name("D")
        ->check(CLI::IsMember(dims))
        ->capture_default_str();
    command.add_option("--q-heads", attention.q_heads, "Query heads")
        ->type_name("N")
        ->check(whole_range(1, kMostHeads))
        ->capture_default_str();
    command.add_option("--kv-heads", attention.kv_heads, "Key-value heads")
        ->type_name("N")
        ->check(whole_range(1, kMostHeads))
        ->capture_default_str();
    command.add_option("--context", attention.context, "Tokens in the cache of each sequence")
        ->type_name("N")
        ->check(whole_range(1, kMostContext))
        ->capture_default_str();
    command.add_option("--batch", attention.batch, "Sequences")
        ->type_name("B")
        ->check(whole_range(1, kMostBatch))
        ->capture_default_str();
    command
        .add_option(
            "--tokens", attention.tokens,
            "Query tokens of each sequence, the last of its context: 1 as in decoding, more as in "
            "a prompt's chunk")
        ->type_name("N")
        ->check(whole_range(1, kMostTokens))
        ->capture_default_str();
    command.add_flag("--ragged", attention.ragged,
                     "Sequences of unequal lengths: the i-th of B has i/B of the context");
    command.add_option("--seed", attention.seed, "Seed of the random data")
        ->type_name("S")
        ->check(whole_range(0, std::numeric_limits<std::int64_t>::max()));
}

std::string known_peers() {
    std::string names;
    for (const std::string& name : bench::peer_names())
        names.append(names.empty() ? "" : ", ").append(name);
    return names;
}

} // namespace

void add_bench_attention(CLI::App& parent, Action& action) {
    auto options = std::make_shared<BenchOptions>();
    CLI::App* command = parent.add_subcommand(
        "attention", "One step's attention, in microseconds, beside what the machine could do");
    add_shape_options(*command, options->bench.attention);
    add_presets_option(*command, options->presets, "Our contenders; ratios are against the first");
    command->add_option("--peer", options->peers, "Rivals: " + known_peers())
        ->type_name("A,B,...")
        ->check(accepted_by([](const std::string& list) {
            for (const std::string& name : split_list(list)) bench::require_peer(name);
        }));
    command->add_flag(
        "--shared", options->bench.shared,
        "Ours once more, all sequences being forks of one prompt: innerkv:PRESET:shared");
    options->bench.threads = 1;
    add_threads_option(*command, options->bench.threads, "Threads of every contender")
        ->capture_default_str();
    command->add_option("--repeats", options->bench.repeats, "Rounds, each contender once a round")
        ->type_name("N")
        ->check(whole_range(1, kMostRepeats))
        ->capture_default_str();
    command->add_flag("--cold", options->bench.cold,
                      "Empty the processor's caches before each run");
    add_isa_option(*command, options->bench.isa, "Instruction set of our kernels");
    command
        ->add_option(
            "--device", options->device,
            "cpu or cuda; cuda takes neither --peer, --shared, --isa, --ragged nor --threads")
        ->check(CLI::IsMember({"cpu", "cuda"}))
        ->capture_default_str();
    add_json_option(*command, options->json);
    command->footer(kExamples);
    on_chosen(*command, action, options, options->bench.threads, bench_attention);
}

} // namespace innerkv::cli
