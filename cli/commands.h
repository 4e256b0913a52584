// SPDX-License-Identifier: Apache-2.0
// The program's commands. Each adds itself to the application; when it was asked for, `action` is what
// runs it and returns the exit code.
#pragma once

#include <functional>

#include <CLI/CLI.hpp>

namespace innerkv::cli {

using Action = std::function<int()>;

void add_run_command(CLI::App& app, Action& action);
void add_eval_command(CLI::App& app, Action& action);
void add_calibrate_command(CLI::App& app, Action& action);
void add_bench_command(CLI::App& app, Action& action);
void add_plan_command(CLI::App& app, Action& action);
void add_inspect_command(CLI::App& app, Action& action);
void add_completions_command(CLI::App& app, Action& action);

} // namespace innerkv::cli
