// SPDX-License-Identifier: Apache-2.0
#include "attention/strip.h"

#include <algorithm>

#include "attention/arguments.h"
#include "cpu/kernel.h"

namespace innerkv {
namespace {

PageInterval visible_pages(const PageRun& run, VisibleRange visible) {
    const std::int64_t begin = std::max(visible.begin, run.first_token) - run.first_token;
    const std::int64_t end = std::min(visible.end, run.first_token + run.tokens) - run.first_token;
    if (begin >= end) return {};
    return {static_cast<int>(begin / kPageTokens),
            static_cast<int>((end + kPageTokens - 1) / kPageTokens)};
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
    return {block, first_row, rows, pages};
}

} // namespace

std::int64_t page_cost(const PageShare& pages) {
    return pages.quantized.count() +
           kDenseCost * std::int64_t{pages.sink.count() + pages.recent.count()};
}

std::vector<Strip> make_strips(const AttentionShape& shape, std::span<const QueryBlock> blocks) {
    const int group = shape.q_heads / shape.kv_heads;
    std::vector<Strip> strips;
    strips.reserve(blocks.size());
    for (std::size_t block = 0; block < blocks.size(); ++block) {
        const int rows = blocks[block].tokens * group;
        for (int row = 0; row < rows; row += cpu::kMaxRows)
            strips.push_back(make_strip(shape, blocks, static_cast<int>(block), row,
                                        std::min(cpu::kMaxRows, rows - row)));
    }
    return strips;
}

} // namespace innerkv
