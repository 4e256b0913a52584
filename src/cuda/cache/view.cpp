// SPDX-License-Identifier: Apache-2.0
// Which views load() takes: those that attention reads and that a cache of the same config may show.
#include "cuda/cache/view.h"

#include <string>

#include "cache/state.h"
#include "cuda/arguments.h"
#include "cuda/cache/cache.h"

namespace innerkv::cuda {

paging::LayerExtent extent_of(const paging::LayerRule& rule, const SequenceView& view) {
    paging::LayerExtent extent;
    extent.length = view.length;
    extent.quantized_first = view.quantized.tokens > 0 ? view.quantized.first_token
                             : view.recent.tokens > 0
                                 ? view.recent.first_token
                                 : std::max<std::int64_t>(rule.sink_tokens, view.length);
    extent.recent_first = extent.quantized_first + view.quantized.tokens;
    const std::int64_t sink_end = std::min<std::int64_t>(view.length, rule.sink_tokens);
    extent.dropped = sink_end - view.sink.tokens;
    if (extent.quantized_first > rule.sink_tokens) extent.dropped = extent.quantized_first;
    return extent;
}

namespace {

[[noreturn]] void refuse_view(int layer, const std::string& fault) {
    throw InvalidArgument("cuda cache: the view of layer " + std::to_string(layer) + " " + fault +
                          "; views must come from a cache of the same config");
}

} // namespace

void DeviceCache::Impl::check_view(int layer, const SequenceView& view) const {
    try {
        const SequenceQueries nobody[] = {{&view, 0, 1}};
        check_sequences({config.kv_heads, config.kv_heads, config.format}, nobody);
    } catch (const InvalidArgument& fault) {
        refuse_view(layer, std::string("is none that attention reads (") + fault.what() + ")");
    }
    if (view.length > config.max_tokens)
        refuse_view(layer, "has " + std::to_string(view.length) + " tokens, the cache takes " +
                               std::to_string(config.max_tokens));
    const paging::LayerRule& rule = rules[static_cast<std::size_t>(layer)];
    const auto check_pages = [&](const char* name, const PageRun& run, std::size_t bytes) {
        if (run.tokens > 0 && run.page_bytes != bytes)
            refuse_view(layer, "has pages of " + std::to_string(run.page_bytes) +
                                   " bytes a KV head as its " + name + " where a page has " +
                                   std::to_string(bytes));
    };
    const std::size_t f16_bytes = paging::f16_format(config.format.head_dim).page_bytes();
    check_pages("sink", view.sink, f16_bytes);
    check_pages("quantized run", view.quantized, config.format.page_bytes());
    check_pages("recent run", view.recent, f16_bytes);
    const paging::LayerExtent extent = extent_of(rule, view);
    check_extent(layer, extent);
    const Stretches stretches(rule, extent);
    const auto check_run = [&](const char* name, const PageRun& run, const Stretch& stretch,
                               std::int64_t first, std::int64_t end) {
        const std::int64_t tokens = std::max<std::int64_t>(0, end - first);
        if (run.tokens == tokens && (tokens == 0 || run.first_token == first) &&
            run.pages.size() == stretch.count)
            return;
        refuse_view(layer, std::string("has ") + std::to_string(run.tokens) + " tokens from " +
                               std::to_string(run.first_token) + " on in " +
                               std::to_string(run.pages.size()) + " pages as its " + name +
                               " where " + std::to_string(tokens) + " from " +
                               std::to_string(first) + " on in " + std::to_string(stretch.count) +
                               " pages belong");
    };
    const std::int64_t sink_end = std::min<std::int64_t>(extent.length, rule.sink_tokens);
    check_run("sink", view.sink, stretches.sink, std::min(extent.dropped, sink_end), sink_end);
    check_run("quantized run", view.quantized, stretches.quantized, extent.quantized_first,
              extent.recent_first);
    check_run("recent run", view.recent, stretches.recent, extent.recent_first, extent.length);
    check_room(layer, extent);
    check_centres(layer, view, extent);
    check_transforms(layer, view);
}

/// Runs begin and end where the rules of this config may put them.
void DeviceCache::Impl::check_extent(int layer, const paging::LayerExtent& extent) const {
    const paging::LayerRule& rule = rules[static_cast<std::size_t>(layer)];
    if (extent.quantized_first < rule.sink_tokens ||
        (extent.quantized_first - rule.sink_tokens) % kPageTokens != 0 ||
        (extent.recent_first - rule.sink_tokens) % kPageTokens != 0)
        refuse_view(layer, "has runs from token " + std::to_string(extent.quantized_first) +
                               " and " + std::to_string(extent.recent_first) +
                               " on, which are no whole pages behind a sink of " +
                               std::to_string(rule.sink_tokens) + " tokens");
    if (extent.recent_first > std::max<std::int64_t>(extent.length, rule.sink_tokens))
        refuse_view(layer, "has quantized tokens beyond its length");
    // The next token sees those from length - sliding_window + 1 on.
    const std::int64_t unseen =
        rule.sliding_window == 0
            ? 0
            : std::max<std::int64_t>(0, extent.length - rule.sliding_window + 1);
    if (extent.dropped < 0 || extent.dropped > unseen)
        refuse_view(
            layer,
            "lacks its first " + std::to_string(extent.dropped) + " tokens, and here " +
                (unseen == 0 ? std::string("nothing") : "no more than " + std::to_string(unseen)) +
                " is dropped");
    if (extent.quantized_pages() > 0 && !rule.quantizes)
        refuse_view(layer, "has quantized pages, and here nothing is quantized");
}

/// Rings have as many pages as appends of this config may need.
void DeviceCache::Impl::check_room(int layer, const paging::LayerExtent& extent) const {
    const auto at = static_cast<std::size_t>(layer);
    const paging::LayerRule& rule = rules[at];
    const LayerLayout& layout = layouts[at];
    // With the next token, or the slot could not go on.
    const std::int64_t recent =
        rule.grid_pages(extent.length + 1) - rule.grid_page(extent.recent_first);
    if (layout.recent_pages > 0 && recent > layout.recent_pages)
        refuse_view(layer, "has a recent run of " + std::to_string(recent) +
                               " pages with the next token, the cache takes " +
                               std::to_string(layout.recent_pages));
    if (layout.windowed_pages > 0 && extent.quantized_pages() > layout.windowed_pages)
        refuse_view(layer, "has " + std::to_string(extent.quantized_pages()) +
                               " quantized pages, the cache takes " +
                               std::to_string(layout.windowed_pages));
}

void DeviceCache::Impl::check_centres(int layer, const SequenceView& view,
                                      const paging::LayerExtent& extent) const {
    if (extent.quantized_pages() == 0) return;
    const paging::LayerRule& rule = rules[static_cast<std::size_t>(layer)];
    const CentreRun& centres = view.centres;
    const std::int64_t count = rule.epochs(extent).count();
    if (static_cast<std::int64_t>(centres.epochs.size()) != count)
        refuse_view(layer, "has " + std::to_string(centres.epochs.size()) +
                               " centres of keys where " + std::to_string(count) + " are needed");
    if (count == 0) return;
    const std::int64_t first_page = rule.grid_page(extent.quantized_first) % rule.epoch_pages;
    if (centres.epoch_pages != rule.epoch_pages || centres.first_page != first_page)
        refuse_view(layer, "has centres for epochs of " + std::to_string(centres.epoch_pages) +
                               " pages from page " + std::to_string(centres.first_page) +
                               " of one on; here they have " + std::to_string(rule.epoch_pages) +
                               " and the run begins at page " + std::to_string(first_page));
}

namespace {

/// [head_dim] each; null is `neutral` everywhere, as a device keeps it.
bool same_channels(const float* a, const float* b, float neutral, int head_dim) {
    for (int channel = 0; channel < head_dim; ++channel)
        if ((a != nullptr ? a[channel] : neutral) != (b != nullptr ? b[channel] : neutral))
            return false;
    return true;
}

bool same_transform(const KeyTransform& a, const KeyTransform& b, int head_dim) {
    return a.rotate == b.rotate && same_channels(a.norm, b.norm, 1.0f, head_dim) &&
           same_channels(a.centre, b.centre, 0.0f, head_dim) &&
           same_channels(a.value_centre, b.value_centre, 0.0f, head_dim);
}

} // namespace

/// Transforms are those that the config's policy makes, or its calibrated ones.
void DeviceCache::Impl::check_transforms(int layer, const SequenceView& view) const {
    const auto at = static_cast<std::size_t>(layer);
    const TransformPolicy& policy = config.transform;
    const bool calibrated = policy.norm == KeyNormPolicy::calibrated;
    const bool transformed =
        calibrated || params[at].rotate != 0 || rules[at].calibration_tokens > 0;
    if (view.quantized.tokens > 0 && transformed == view.transforms.empty())
        refuse_view(layer, "went through other transforms");
    if (calibrated) {
        // Attention on the device takes the config's, not the view's.
        const KeyTransform* expected =
            config.calibrated.data() + at * static_cast<std::size_t>(config.kv_heads);
        for (const KeyTransform& head : view.transforms)
            if (!same_transform(head, *expected++, config.format.head_dim))
                refuse_view(layer, "went through another calibration");
        return;
    }
    for (const KeyTransform& head : view.transforms)
        if (head.rotate != (params[at].rotate != 0) ||
            (head.norm != nullptr && !paging::norm_from_sequence(policy)) ||
            head.centre != nullptr || (head.value_centre != nullptr && !policy.value_centre))
            refuse_view(layer, "went through other transforms");
}

} // namespace innerkv::cuda
