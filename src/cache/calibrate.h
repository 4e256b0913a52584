// SPDX-License-Identifier: Apache-2.0
// What transforms are taken from: fp16 rows of one KV head.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "cache/state.h"

namespace innerkv::paging {

/// Arrays for the steps that the policy takes from a sequence, not yet filled.
std::shared_ptr<LayerTransform> make_layer_transform(const CacheConfig& config);

/// Fills the arrays of `head` from the first calibration_tokens rows of these fp16 pages; page i is
/// at pages[i] + head_offset. TransformPolicy (cache.h) has the formulas. `query_power`, [head_dim]: sums
/// of squares of the queries of this KV head, or null. Sets head.norm to null where the norm is dropped.
void calibrate_head(const CacheConfig& config, std::span<const std::byte* const> pages,
                    std::size_t head_offset, const float* query_power, KeyTransform& head);

/// The mean key of the first `tokens` rows of these pages, fp16 [head_dim].
void key_centre(int head_dim, int tokens, std::span<const std::byte* const> pages,
                std::size_t head_offset, std::byte* out);

} // namespace innerkv::paging
