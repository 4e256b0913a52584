// SPDX-License-Identifier: Apache-2.0
// What sessions are compared by.
#pragma once

#include <span>
#include <vector>

#include "runner/runner.h"

namespace innerkv::runner::test {

/// Root mean square of the difference, in units of that of `expected`. Fails where they differ in size.
double mean_difference(std::span<const float> expected, std::span<const float> actual);

/// Keys of a layer of an f16 cache, [tokens, kv_heads, head_dim].
std::vector<float> layer_keys(const Session& session, const ModelInfo& info, int layer);

} // namespace innerkv::runner::test
