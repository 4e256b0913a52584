// SPDX-License-Identifier: Apache-2.0
// How much memory a process can have.
#pragma once

#include <cstdint>
#include <string>

namespace innerkv::cli {

struct MemoryLimit {
    std::uint64_t bytes = 0;
    std::string owner; ///< "the machine", "the control group", "ulimit -v"
};

/// The least of the machine's memory, the limits of the process's cgroups and its address space's.
MemoryLimit memory_limit();

} // namespace innerkv::cli
