// SPDX-License-Identifier: Apache-2.0
// `innerkv bench attention`: the machine's limits, then ours and the peers in turns.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "attention_case.h"

namespace innerkv::bench {

struct AttentionBenchOptions {
    AttentionCase attention;
    std::vector<std::string> presets; ///< at least one; ratios are against the first
    std::vector<std::string> peers;   ///< "ggml:f16", ...
    std::string isa;                  ///< empty: the best there is
    int threads = 1;
    bool shared = false; ///< each preset once more, the sequences being forks of one prompt
    int repeats = 20;
    bool cold = false;            ///< empty the caches before each run
    std::size_t memory_bytes = 0; ///< of the buffer the read bandwidth is taken from; 0: as needed
    /// What is being done, rounds done and all rounds; false: stop measuring. May be empty.
    std::function<bool(const std::string& what, int done, int total)> progress;
};

struct ContenderResult {
    std::string name;
    double median_us = 0;
    double min_us = 0;
    std::size_t bytes_read = 0;
    double gb_per_s = 0; ///< 1e9 bytes, by the median
    double percent_of_read_bandwidth = 0;
    double ratio = 0;       ///< its median over the first preset's
    double floor_us = 0;    ///< what its bytes take at the read bandwidth, or its integer products
    int integer_rows = 0;   ///< Contender::integer_rows
    double times_floor = 0; ///< its median over that
    double min_times_floor = 0;
    double append_us =
        -1; ///< of a page's tokens to one sequence, one of them quantized; -1: unknown
    double relative_error = 0; ///< against the exact attention on unrounded data
    double cosine = 0;
    double arithmetic_error =
        -1; ///< against the exact attention on what the cache holds; -1: unknown
};

struct AttentionBenchResult {
    std::string isa;
    std::string cuda; ///< of a device: versions of the driver and the runtime
    std::string dot_instruction;
    double read_bandwidth_gb_per_s = 0;
    double dot_gmac_per_s = 0;
    std::string
        shared_dot_instruction; ///< of forks, which more rows meet; empty: none were measured
    double shared_dot_gmac_per_s = 0;
    double floor_us = 0; ///< of the first preset: the longer of reading its bytes and its products
    int rounds = 0;      ///< 0: stopped before the first was done; nothing else is told then
    std::vector<ContenderResult> results;
};

class Contender;

/// Runs a contender once and judges its output by the exact one: each judged token on its own, the worst of them
/// counts. Fills what does not depend on time; throws Error where the output is wrong.
ContenderResult judge(const AttentionCase& attention, Contender& contender,
                      std::span<const ExactOutput> exact);

/// Fills what does: medians, rates, shares of the machine's limits, which are known.
void add_times(const AttentionBenchResult& machine, const AttentionCase& attention,
               std::span<const double> samples, ContenderResult& result);

/// Throws InvalidArgument where options are not supported, and Error where a contender's output is
/// wrong.
AttentionBenchResult run_attention_bench(const AttentionBenchOptions& options);

} // namespace innerkv::bench
