// SPDX-License-Identifier: Apache-2.0
#include "share_rows.h"

#include <algorithm>
#include <thread>
#include <vector>

namespace innerkv::cli {

void share_rows(std::size_t count, int threads,
                const std::function<void(std::size_t, std::size_t)>& work) {
    const auto parts = static_cast<std::size_t>(std::max(threads, 1));
    std::vector<std::jthread> workers;
    for (std::size_t part = 1; part < parts; ++part)
        workers.emplace_back([&work, count, part, parts] {
            work(count * part / parts, count * (part + 1) / parts);
        });
    work(0, count / parts);
}

} // namespace innerkv::cli
