// SPDX-License-Identifier: Apache-2.0
#include "attention/partition.h"

#include <algorithm>

#include "attention/arguments.h"
#include "cpu/kernel.h"

namespace innerkv {
namespace {

/// What a page costs relative to a quantized one: fp16 pages are about four times as many bytes and
/// their products are not integers.
constexpr std::int64_t kDenseCost = 4;

/// An item costs its rows' preparation and, where split, a merge: a strip of no more pages than this is
/// not split, and its share of a longer one is more than half of this.
constexpr std::int64_t kSmallestItem = 16;

/// More items than threads, so that a slow thread does not hold up the rest.
constexpr std::int64_t kItemsPerThread = 3;

PageInterval visible_pages(const PageRun& run, VisibleRange visible) {
    const std::int64_t begin = std::max(visible.begin, run.first_token) - run.first_token;
    const std::int64_t end = std::min(visible.end, run.first_token + run.tokens) - run.first_token;
    if (begin >= end) return {};
    return {static_cast<int>(begin / kPageTokens),
            static_cast<int>((end + kPageTokens - 1) / kPageTokens)};
}

std::int64_t cost(const PageShare& pages) {
    return pages.quantized.count() +
           kDenseCost * std::int64_t{pages.sink.count() + pages.recent.count()};
}

Strip make_strip(const AttentionShape& shape, std::span<const QueryBlock> blocks, int block,
                 int first_row, int rows) {
    const QueryBlock& query = blocks[static_cast<std::size_t>(block)];
    const SequenceView& sequence = *query.sequence;
    const int group = shape.q_heads / shape.kv_heads;
    const std::int64_t oldest = query.first_position + first_row / group;
    const std::int64_t newest = query.first_position + (first_row + rows - 1) / group;
    const VisibleRange visible{visible_range(shape, sequence, oldest).begin,
                               visible_range(shape, sequence, newest).end};
    const PageShare pages{visible_pages(sequence.quantized, visible),
                          visible_pages(sequence.sink, visible),
                          visible_pages(sequence.recent, visible)};
    return {block, first_row, rows, pages, 1, 0, 0, 0};
}

/// Takes the part of `run` that lies in [begin, end) of a strip's cost, where the run begins at cost
/// `start` and a page costs `page_cost`. Adjoining parts share no page and leave none out.
PageInterval part_of(const PageInterval& run, std::int64_t start, std::int64_t page_cost,
                     std::int64_t begin, std::int64_t end) {
    const auto boundary = [&](std::int64_t at) {
        const std::int64_t page = (at - start + page_cost - 1) / page_cost;
        return run.first + static_cast<int>(std::clamp<std::int64_t>(page, 0, run.count()));
    };
    return {begin <= start ? run.first : boundary(begin), end <= start ? run.first : boundary(end)};
}

} // namespace

Partition::Partition(const AttentionShape& shape, std::span<const QueryBlock> blocks, int threads)
    : kv_heads_(shape.kv_heads) {
    const int group = shape.q_heads / shape.kv_heads;
    std::int64_t total = 0;
    for (std::size_t block = 0; block < blocks.size(); ++block) {
        const int rows = blocks[block].tokens * group;
        for (int row = 0; row < rows; row += cpu::kMaxRows) {
            strips_.push_back(make_strip(shape, blocks, static_cast<int>(block), row,
                                         std::min(cpu::kMaxRows, rows - row)));
            total += cost(strips_.back().pages) * kv_heads_;
        }
    }
    const std::int64_t aim =
        threads > 1 ? std::max(kSmallestItem, total / (threads * kItemsPerThread)) : total;
    for (Strip& strip : strips_) {
        const std::int64_t splits = aim > 0 ? (cost(strip.pages) + aim - 1) / aim : 1;
        strip.splits = static_cast<int>(std::max<std::int64_t>(splits, 1));
        strip.first_item = items_;
        strip.first_merge = merges_;
        strip.first_state = states_;
        items_ += strip.splits * kv_heads_;
        merges_ += kv_heads_;
        if (strip.splits > 1) states_ += strip.splits * kv_heads_;
    }
}

Item Partition::item(int index) const {
    const auto after =
        std::upper_bound(strips_.begin(), strips_.end(), index,
                         [](int value, const Strip& strip) { return value < strip.first_item; });
    const Strip& strip = *(after - 1);
    const int place = index - strip.first_item;
    const int kv_head = place / strip.splits;
    return {&strip, kv_head, place % strip.splits, strip.first_merge + kv_head,
            strip.first_state + place};
}

PageShare Partition::share(const Strip& strip, int split) const {
    const std::int64_t total = cost(strip.pages);
    const std::int64_t begin = total * split / strip.splits;
    const std::int64_t end = total * (split + 1) / strip.splits;
    const PageShare& all = strip.pages;
    const std::int64_t sink_start = all.quantized.count();
    const std::int64_t recent_start = sink_start + kDenseCost * all.sink.count();
    return {part_of(all.quantized, 0, 1, begin, end),
            part_of(all.sink, sink_start, kDenseCost, begin, end),
            part_of(all.recent, recent_start, kDenseCost, begin, end)};
}

} // namespace innerkv
