// SPDX-License-Identifier: Apache-2.0
// What a process holds in memory.
#pragma once

#include <cstddef>

namespace innerkv::bench {

/// Resident memory that no file is behind; 0 where the system does not say.
std::size_t resident_anonymous_bytes();

/// Gives what was freed back to the system, so that the next thing measured does not get it for nothing.
void release_freed_memory();

} // namespace innerkv::bench
