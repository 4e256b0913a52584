// SPDX-License-Identifier: Apache-2.0
// A slot of a device cache as attention sees it. For host and device.
#pragma once

#include <algorithm>

#include "cuda/cache/state.h"

namespace innerkv::cuda {

/// The runs as attention sees them, and the new tokens as those that ask.
constexpr Sequence shown(const LayerParams& layer, const SlotState& slot, int tokens) {
    Sequence sequence{};
    const paging::LayerRule& rule = layer.rule;
    const paging::LayerExtent& extent = slot.extent;
    const auto f16_stride = static_cast<std::uint64_t>(layer.f16_stride);
    const std::int64_t sink_end = std::min<std::int64_t>(extent.length, rule.sink_tokens);
    const std::int64_t sink_first = std::min<std::int64_t>(extent.dropped, sink_end);
    const std::int64_t first_page = rule.grid_page(extent.quantized_first);
    const bool transformed = slot.calibrated != 0;
    sequence.sink = {slot.sink + rule.dropped_sink_pages(extent), f16_stride, sink_first,
                     sink_end - sink_first};
    sequence.quantized = {slot.quantized + first_page, layer.format.page_bytes(),
                          extent.quantized_first, extent.recent_first - extent.quantized_first};
    sequence.recent = {slot.recent.from(rule.grid_page(extent.recent_first)), f16_stride,
                       extent.recent_first,
                       std::max<std::int64_t>(0, extent.length - extent.recent_first)};
    sequence.length = extent.length;
    sequence.first_position = extent.length - tokens;
    sequence.query_tokens = tokens;
    sequence.rotate = layer.rotate;
    sequence.norm = transformed ? slot.norm : nullptr;
    sequence.centre = slot.centre;
    sequence.value_centre = transformed ? slot.value_centre : nullptr;
    sequence.epochs = nullptr;
    if (rule.epoch_pages == 0) return sequence;
    sequence.epochs = slot.epochs + first_page / rule.epoch_pages;
    sequence.epoch_pages = rule.epoch_pages;
    sequence.first_page = static_cast<std::int32_t>(first_page % rule.epoch_pages);
    return sequence;
}

} // namespace innerkv::cuda
