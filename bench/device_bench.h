// SPDX-License-Identifier: Apache-2.0
// `innerkv bench attention --device cuda`: ours on a CUDA device in turns. Without CUDA in the build there is nothing
// to run: cuda::devices() is empty.
#pragma once

#include "attention_bench.h"

namespace innerkv::bench {

/// Presets alone, each step a replay of a CUDA graph after the second-level cache was emptied. Throws as
/// run_attention_bench, and cuda::Unavailable.
AttentionBenchResult run_device_attention_bench(const AttentionBenchOptions& options);

} // namespace innerkv::bench
