// SPDX-License-Identifier: Apache-2.0
// What `innerkv bench` measures, one file each.
#pragma once

#include "commands.h"

namespace innerkv::cli {

void add_bench_attention(CLI::App& parent, Action& action);
void add_bench_decode(CLI::App& parent, Action& action);

} // namespace innerkv::cli
