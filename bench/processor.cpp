// SPDX-License-Identifier: Apache-2.0
#include "processor.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <iterator>
#include <vector>

#include <unistd.h>

#include "innerkv/error.h"

namespace innerkv::bench {
namespace {

/// Of one instruction set, those for more rows first.
constexpr DotInstruction kDotInstructions[] = {
#if defined(__x86_64__)
    {"amx", "tdpbusd", dot_amx, 9},         {"amx", "vpdpbusd zmm", dot_avx512},
    {"avx512", "vpdpbusd zmm", dot_avx512}, {"avxvnni", "vpdpbusd ymm", dot_avxvnni},
    {"avx2", "vpmaddubsw ymm", dot_avx2},
#elif defined(__aarch64__)
    {"neon", "sdot", dot_neon},
#endif
    {"scalar", "C++", dot_scalar},
};

std::vector<ReadLoop> find_read_loops() {
    std::vector<ReadLoop> loops;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) loops.push_back(read_avx512);
    if (__builtin_cpu_supports("avx2")) loops.push_back(read_avx2);
#endif
    loops.push_back(read_portable);
    return loops;
}

} // namespace

std::size_t last_level_cache_bytes() {
#if defined(_SC_LEVEL3_CACHE_SIZE)
    const long bytes = std::max(sysconf(_SC_LEVEL3_CACHE_SIZE), sysconf(_SC_LEVEL2_CACHE_SIZE));
    return static_cast<std::size_t>(std::max(bytes, 0L));
#else
    return 0;
#endif
}

std::span<const ReadLoop> supported_read_loops() {
    static const std::vector<ReadLoop> loops = find_read_loops();
    return loops;
}

const DotInstruction& dot_instruction(std::string_view isa, int rows) {
    const auto* found = std::ranges::find_if(kDotInstructions, [&](const DotInstruction& one) {
        return one.isa == isa && rows >= one.least_rows;
    });
    if (found != std::end(kDotInstructions)) return *found;
    throw InvalidArgument("the benchmark has no dot product for instruction set '" +
                          std::string(isa) + "'; choose another with --isa");
}

double dot_rate(ThreadPool& pool, const DotInstruction& instruction) {
    using Clock = std::chrono::steady_clock;
    // Many short ones: on a busy machine a long one never has the core to itself.
    constexpr int kPasses = 40;
    constexpr double kPassSeconds = 0.002;
    constexpr std::int64_t kProbeRounds = 20000;
    const auto seconds_of = [&](std::int64_t rounds, std::int64_t& operations) {
        std::atomic<std::int64_t> done{0};
        const auto start = Clock::now();
        pool.run([&](int) { done += instruction.loop(rounds); });
        operations = done;
        return std::chrono::duration<double>(Clock::now() - start).count();
    };
    std::int64_t operations = 0;
    const double probe = seconds_of(kProbeRounds, operations);
    const auto rounds =
        static_cast<std::int64_t>(static_cast<double>(kProbeRounds) * kPassSeconds / probe) + 1;
    double best = 0;
    for (int pass = 0; pass < kPasses; ++pass) {
        const double seconds = seconds_of(rounds, operations);
        best = std::max(best, static_cast<double>(operations) / seconds);
    }
    return best;
}

} // namespace innerkv::bench
