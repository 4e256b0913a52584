// SPDX-License-Identifier: Apache-2.0
#include "statistics.h"

#include <algorithm>
#include <vector>

namespace innerkv::bench {

double median(std::span<const double> samples) {
    std::vector<double> sorted(samples.begin(), samples.end());
    std::sort(sorted.begin(), sorted.end());
    const std::size_t middle = sorted.size() / 2;
    return sorted.size() % 2 ? sorted[middle] : 0.5 * (sorted[middle - 1] + sorted[middle]);
}

double minimum(std::span<const double> samples) { return *std::ranges::min_element(samples); }

} // namespace innerkv::bench
