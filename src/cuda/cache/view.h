// SPDX-License-Identifier: Apache-2.0
// What a view of a sequence tells of its extent, and where its pages belong in a slot's tables.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cache/rules.h"
#include "innerkv/view.h"

namespace innerkv::cuda {

paging::LayerExtent extent_of(const paging::LayerRule& rule, const SequenceView& view);

/// Page groups of a table, and what is in front of them.
struct Stretch {
    std::int64_t first;
    std::size_t count;
};
constexpr Stretch stretch_of(std::int64_t first, std::int64_t count) {
    return {first, static_cast<std::size_t>(std::max<std::int64_t>(0, count))};
}

/// Where the pages of each run, and the epochs, are in their tables.
struct Stretches {
    Stretch sink;
    Stretch recent;
    Stretch quantized;
    Stretch epochs;

    Stretches(const paging::LayerRule& rule, const paging::LayerExtent& extent)
        : sink(stretch_of(rule.dropped_sink_pages(extent),
                          rule.sink_pages(extent.length) - rule.dropped_sink_pages(extent))),
          recent(stretch_of(rule.grid_page(extent.recent_first),
                            rule.grid_pages(extent.length) - rule.grid_page(extent.recent_first))),
          quantized(stretch_of(rule.grid_page(extent.quantized_first), extent.quantized_pages())),
          epochs(stretch_of(rule.epochs(extent).first, rule.epochs(extent).count())) {}
};

} // namespace innerkv::cuda
