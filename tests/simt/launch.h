// SPDX-License-Identifier: Apache-2.0
// Launches of kernels on coroutines.
#pragma once

#include <cstddef>
#include <functional>
#include <span>

#include "simt.h"

namespace simt {

/// Runs `kernel` as every thread of a grid of one-dimensional blocks; `threads` are whole warps. A block finds NaN in
/// `shared`, of which it has `shared_bytes`: it is an error if it writes behind them.
void launch(const Place& blocks, const Place& threads, std::span<unsigned char> shared,
            std::size_t shared_bytes, const std::function<void()>& kernel);

} // namespace simt
