// SPDX-License-Identifier: Apache-2.0
// Rows of one query block that go through the kernels together, and the pages they see. Numbers only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "innerkv/attention.h"

namespace innerkv {

/// Pages [first, last) of one run.
struct PageInterval {
    int first = 0;
    int last = 0;
    int count() const { return last > first ? last - first : 0; }
};

/// Some of a sequence's pages.
struct PageShare {
    PageInterval quantized;
    PageInterval sink;
    PageInterval recent;
    int count() const { return sink.count() + quantized.count() + recent.count(); }
};

/// What a page costs relative to a quantized one: fp16 pages are about four times as many bytes and
/// their products are not integers.
inline constexpr std::int64_t kDenseCost = 4;
std::int64_t page_cost(const PageShare& pages);

/// An item costs its rows' preparation and a merge: pages of no more cost than this are not split, and
/// not read apart from their sequence's others because other sequences have them too.
inline constexpr std::int64_t kSmallestItem = 16;

/// Up to kMaxRows rows (query token * group + query head of the group) of one block.
struct Strip {
    int block;
    int first_row;
    int rows;
    PageShare pages; ///< all that any of its rows sees
};

std::vector<Strip> make_strips(const AttentionShape& shape, std::span<const QueryBlock> blocks);

} // namespace innerkv
