// SPDX-License-Identifier: Apache-2.0
// Order statistics of a few samples.
#pragma once

#include <span>

namespace innerkv::bench {

/// Mean of the two middle samples where their number is even; `samples` must not be empty.
double median(std::span<const double> samples);
double minimum(std::span<const double> samples);

} // namespace innerkv::bench
