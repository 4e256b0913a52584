// SPDX-License-Identifier: Apache-2.0
#include "memory_limit.h"

#include <algorithm>
#include <filesystem>
#include <fstream>

#include <sys/resource.h>
#include <unistd.h>

namespace innerkv::cli {
namespace {

void lower(MemoryLimit& limit, std::uint64_t bytes, const char* owner) {
    if (bytes < limit.bytes) limit = {bytes, owner};
}

/// The file of a group and of those it is in, up to the root; "max" and what is not there are no limit.
void lower_by_groups(MemoryLimit& limit, const std::filesystem::path& root,
                     const std::string& group, const char* file) {
    std::filesystem::path place = std::filesystem::path(group).relative_path();
    for (;; place = place.parent_path()) {
        std::uint64_t bytes = 0;
        if (std::ifstream(root / place / file) >> bytes) lower(limit, bytes, "the control group");
        if (place.empty()) return;
    }
}

/// Lines are "0::/group" of version 2 and "4:memory:/group" of version 1.
void lower_by_own_groups(MemoryLimit& limit) {
    std::ifstream groups("/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {
        const std::size_t first = line.find(':');
        const std::size_t second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        const std::string controllers = line.substr(first + 1, second - first - 1);
        const std::string group = line.substr(second + 1);
        if (controllers.empty()) lower_by_groups(limit, "/sys/fs/cgroup", group, "memory.max");
        if (controllers == "memory")
            lower_by_groups(limit, "/sys/fs/cgroup/memory", group, "memory.limit_in_bytes");
    }
}

} // namespace

MemoryLimit memory_limit() {
    const auto pages = static_cast<std::uint64_t>(std::max(sysconf(_SC_PHYS_PAGES), 1L));
    const auto page_bytes = static_cast<std::uint64_t>(std::max(sysconf(_SC_PAGESIZE), 1L));
    MemoryLimit limit{pages * page_bytes, "the machine"};
    lower_by_own_groups(limit);
    rlimit space{};
    if (getrlimit(RLIMIT_AS, &space) == 0 && space.rlim_cur != RLIM_INFINITY)
        lower(limit, space.rlim_cur, "ulimit -v");
    return limit;
}

} // namespace innerkv::cli
