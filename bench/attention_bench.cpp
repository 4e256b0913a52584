// SPDX-License-Identifier: Apache-2.0
#include "attention_bench.h"

#include <algorithm>
#include <memory>

#include "contender.h"
#include "innerkv/attention.h"
#include "innerkv/error.h"
#include "interleave.h"
#include "memory_stream.h"
#include "processor.h"
#include "statistics.h"

namespace innerkv::bench {
namespace {

constexpr double kGigabyte = 1e9;

struct Stopped {};

/// Throws Stopped where the caller wants no more.
void report(const AttentionBenchOptions& options, const std::string& what, int done, int total) {
    if (options.progress && !options.progress(what, done, total)) throw Stopped();
}

std::vector<std::unique_ptr<Contender>> make_contenders(const AttentionBenchOptions& options,
                                                        const std::string& isa, ThreadPool& pool) {
    const std::size_t ours = options.presets.size() * (options.shared ? 2 : 1);
    const int total = static_cast<int>(ours + options.peers.size());
    std::vector<std::unique_ptr<Contender>> contenders;
    const Checkpoint checkpoint = [&] {
        report(options, "filling caches", static_cast<int>(contenders.size()), total);
    };
    AttentionCase forks = options.attention;
    forks.shared = true;
    for (const std::string& preset : options.presets) {
        contenders.push_back(
            make_innerkv_contender(options.attention, preset, isa, pool, checkpoint));
        if (options.shared)
            contenders.push_back(make_innerkv_contender(forks, preset, isa, pool, checkpoint));
    }
    for (const std::string& peer : options.peers)
        contenders.push_back(make_peer(options.attention, peer, options.threads, checkpoint));
    return contenders;
}

AttentionBenchResult measure(const AttentionBenchOptions& options) {
    AttentionBenchResult bench;
    bench.isa = select_isa(options.isa);
    const int rows = options.attention.rows();
    const DotInstruction& instruction = dot_instruction(bench.isa, rows);
    bench.dot_instruction = instruction.name;

    ThreadPool pool(options.threads);
    const auto contenders = make_contenders(options, bench.isa, pool);
    std::vector<Contender*> turns;
    const auto checking = [&] {
        report(options, "checking results", static_cast<int>(turns.size()),
               static_cast<int>(contenders.size()));
    };
    checking();
    const std::vector<ExactOutput> exact = exact_outputs(options.attention);
    AttentionCase forks = options.attention;
    forks.shared = true;
    const std::vector<ExactOutput> exact_forks =
        options.shared ? exact_outputs(forks) : std::vector<ExactOutput>();
    for (const auto& contender : contenders) {
        checking();
        bench.results.push_back(contender->forks() ? judge(forks, *contender, exact_forks)
                                                   : judge(options.attention, *contender, exact));
        turns.push_back(contender.get());
    }

    report(options, "measuring the machine", 0, 1);
    pool.wake();
    MemoryStream memory(pool, options.memory_bytes);
    bench.read_bandwidth_gb_per_s = memory.read_bandwidth() / kGigabyte;
    bench.dot_gmac_per_s = dot_rate(pool, instruction) / kGigabyte;
    if (options.shared) {
        const DotInstruction& shared = dot_instruction(bench.isa, rows * options.attention.batch);
        bench.shared_dot_instruction = shared.name;
        bench.shared_dot_gmac_per_s = dot_rate(pool, shared) / kGigabyte;
    }
    pool.rest();

    TurnHooks hooks;
    if (options.cold) hooks.before_run = [&] { memory.flush_caches(); };
    hooks.after_round = [&](int done) {
        return !options.progress || options.progress("measuring", done, options.repeats);
    };
    const auto samples = measure_interleaved(turns, options.repeats, hooks);
    bench.rounds = static_cast<int>(samples.front().size());
    for (std::size_t index = 0; index < samples.size(); ++index)
        add_times(bench, options.attention, samples[index], bench.results[index]);
    for (ContenderResult& result : bench.results)
        result.ratio = result.median_us / bench.results.front().median_us;
    bench.floor_us = bench.results.front().floor_us;
    for (std::size_t index = 0; index < turns.size(); ++index)
        bench.results[index].append_us = turns[index]->append_us();
    return bench;
}

} // namespace

AttentionBenchResult run_attention_bench(const AttentionBenchOptions& options) {
    try {
        return measure(options);
    } catch (const Stopped&) {
        return {};
    }
}

} // namespace innerkv::bench
