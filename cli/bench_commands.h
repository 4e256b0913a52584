// SPDX-License-Identifier: Apache-2.0
// What `innerkv bench` measures, one file each.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "commands.h"
#include "progress.h"

namespace innerkv::cli {

/// A progress bar for each thing that is being done.
class Reporter {
public:
    explicit Reporter(std::string unit) : unit_(std::move(unit)) {}
    /// False after Ctrl-C.
    bool operator()(const std::string& what, std::int64_t done, std::int64_t total);

private:
    std::string unit_;
    std::string what_;
    std::unique_ptr<Progress> bar_;
};

void add_bench_attention(CLI::App& parent, Action& action);
void add_bench_decode(CLI::App& parent, Action& action);

} // namespace innerkv::cli
