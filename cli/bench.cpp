// SPDX-License-Identifier: Apache-2.0
// `innerkv bench`.
#include "bench_commands.h"

#include "interrupt.h"

namespace innerkv::cli {

bool Reporter::operator()(const std::string& what, std::int64_t done, std::int64_t total) {
    if (what != what_) {
        bar_.reset();
        bar_ = std::make_unique<Progress>(what, unit_, total);
        what_ = what;
    }
    bar_->update(done);
    return !interrupted();
}

void add_bench_command(CLI::App& app, Action& action) {
    CLI::App* command = app.add_subcommand("bench", "Measure speed");
    command->require_subcommand(1);
    command->footer(
        "innerkv bench attention --help and innerkv bench decode --help have examples.");
    add_bench_attention(*command, action);
    add_bench_decode(*command, action);
}

} // namespace innerkv::cli
