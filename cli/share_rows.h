// SPDX-License-Identifier: Apache-2.0
// Rows of logits among threads.
#pragma once

#include <cstddef>
#include <functional>

namespace innerkv::cli {

/// Calls work(first, last) on `threads` threads so that they share 0 .. count - 1.
void share_rows(std::size_t count, int threads,
                const std::function<void(std::size_t first, std::size_t last)>& work);

} // namespace innerkv::cli
