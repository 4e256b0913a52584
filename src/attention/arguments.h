// SPDX-License-Identifier: Apache-2.0
// Checks of what a caller hands to attention, and what is derived from the shape alone.
#pragma once

#include <span>

#include "innerkv/attention.h"

namespace innerkv {

/// Throws InvalidArgument naming the first fault: shapes, strides, runs of pages, pointers.
void check_attention_arguments(const AttentionShape& shape, std::span<const QueryBlock> blocks);

/// The shape's, or 1 / sqrt(head_dim).
float logit_scale(const AttentionShape& shape);

/// Positions that a query at `position` sees: [begin, end).
struct VisibleRange {
    std::int64_t begin;
    std::int64_t end;
};
VisibleRange visible_range(const AttentionShape& shape, const SequenceView& sequence,
                           std::int64_t position);

} // namespace innerkv
