// SPDX-License-Identifier: Apache-2.0
#include "resident.h"

#include <fstream>
#include <string>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace innerkv::bench {

std::size_t resident_anonymous_bytes() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
        constexpr const char* kField = "RssAnon:";
        if (line.starts_with(kField)) // "RssAnon:   123 kB"
            return std::stoull(line.substr(std::char_traits<char>::length(kField))) * 1024;
    }
    return 0;
}

void release_freed_memory() {
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
}

} // namespace innerkv::bench
