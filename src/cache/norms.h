// SPDX-License-Identifier: Apache-2.0
// Constants of KeyNormPolicy (TransformPolicy in cache.h), and what is computed with them alike on host and device.
#pragma once

namespace innerkv::paging {

/// Smaller magnitudes are rounding errors of the mean, not data: fp16's smallest number.
inline constexpr float kSmallestMagnitude = 0x1p-24f;

/// Of KeyNormPolicy::balanced.
inline constexpr float kBalance = 1.4f;
inline constexpr float kLargestBalance = 4096.0f;
/// Where there are no queries: over the median, magnitudes beyond are outliers.
inline constexpr float kOutlier = 4.0f;

/// 1 within kBalance of 1, and that much closer to 1 beyond; within kLargestBalance.
constexpr float shrunk(float ratio) {
    if (ratio > kBalance) {
        const float smaller = ratio / kBalance;
        return smaller < kLargestBalance ? smaller : kLargestBalance;
    }
    if (ratio * kBalance < 1.0f) {
        const float larger = ratio * kBalance;
        return larger > 1.0f / kLargestBalance ? larger : 1.0f / kLargestBalance;
    }
    return 1.0f;
}

} // namespace innerkv::paging
