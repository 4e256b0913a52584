// SPDX-License-Identifier: Apache-2.0
#include "attention/sharing.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>
#include <vector>

#include "cpu/kernel.h"

namespace innerkv {
namespace {

/// In the order of tokens: a strip's pages are counted through all three.
enum RunKind { sink_run, quantized_run, recent_run };
constexpr RunKind kRunKinds[] = {sink_run, quantized_run, recent_run};

/// What a strip sees of one run.
struct VisibleRun {
    const SequenceView& sequence;
    const PageRun& run;
    PageInterval pages;

    const std::byte* const* data() const { return run.pages.data() + pages.first; }
    /// Position of a page's first token.
    std::int64_t token(int page) const {
        return run.first_token + std::int64_t{kPageTokens} * (pages.first + page);
    }
};

VisibleRun visible_run(const SequenceView& sequence, const PageShare& pages, RunKind kind) {
    if (kind == sink_run) return {sequence, sequence.sink, pages.sink};
    if (kind == quantized_run) return {sequence, sequence.quantized, pages.quantized};
    return {sequence, sequence.recent, pages.recent};
}

/// Pages from..end-1 of those that a strip sees.
PageShare part_of(const PageShare& all, int from, int end) {
    int start = 0;
    const auto part = [&](const PageInterval& run) {
        const PageInterval taken{run.first + std::clamp(from - start, 0, run.count()),
                                 run.first + std::clamp(end - start, 0, run.count())};
        start += run.count();
        return taken;
    };
    PageShare share;
    share.sink = part(all.sink);
    share.quantized = part(all.quantized);
    share.recent = part(all.recent);
    return share;
}

bool same_transforms(const SequenceView& a, const SequenceView& b) {
    if (a.transforms.data() == b.transforms.data())
        return a.transforms.size() == b.transforms.size();
    return std::equal(a.transforms.begin(), a.transforms.end(), b.transforms.begin(),
                      b.transforms.end(), [](const KeyTransform& x, const KeyTransform& y) {
                          return x.norm == y.norm && x.centre == y.centre &&
                                 x.value_centre == y.value_centre && x.rotate == y.rotate;
                      });
}

/// The first of pages [first, end) whose keys' centres are not the same.
int same_centres(const VisibleRun& a, const VisibleRun& b, int first, int end) {
    struct Place {
        const std::byte* centre = nullptr;
        int until; ///< the page behind those that have it
    };
    const auto place = [end](const VisibleRun& run, int page) -> Place {
        const CentreRun& centres = run.sequence.centres;
        if (centres.epochs.empty()) return {nullptr, end};
        const int position = centres.first_page + run.pages.first + page;
        const int epoch = position / centres.epoch_pages;
        return {centres.epochs[static_cast<std::size_t>(epoch)],
                page + centres.epoch_pages - position % centres.epoch_pages};
    };
    while (first < end) {
        const Place of_a = place(a, first);
        const Place of_b = place(b, first);
        if (of_a.centre != of_b.centre) return first;
        first = std::min({end, of_a.until, of_b.until});
    }
    return end;
}

/// The first of pages [first, end) that is not the same.
int same_pages(const VisibleRun& a, const VisibleRun& b, RunKind kind, int first, int end) {
    if (a.run.head_stride != b.run.head_stride || a.token(first) != b.token(first)) return first;
    const auto mismatch = std::mismatch(a.data() + first, a.data() + end, b.data() + first).first;
    const int same = static_cast<int>(mismatch - a.data());
    if (kind != quantized_run) return same;
    return same_transforms(a.sequence, b.sequence) ? same_centres(a, b, first, same) : first;
}

class Finder {
public:
    Finder(std::span<const QueryBlock> blocks, std::span<const Strip> strips)
        : blocks_(blocks), strips_(strips) {
        found_.list.reserve(strips.size());
        found_.members.reserve(strips.size());
    }

    Stretches find() {
        std::vector<int> all(strips_.size());
        std::iota(all.begin(), all.end(), 0);
        divide(all, 0);
        return std::move(found_);
    }

private:
    const Strip& strip(int index) const { return strips_[static_cast<std::size_t>(index)]; }
    const SequenceView& sequence(int index) const {
        return *blocks_[static_cast<std::size_t>(strip(index).block)].sequence;
    }
    VisibleRun run(int index, RunKind kind) const {
        return visible_run(sequence(index), strip(index).pages, kind);
    }

    /// By this page of a strip it is told what may share with it from `from` on: the last of as few as are worth reading
    /// for several at once. Null: there are not so many.
    const std::byte* deciding_page(int index, int from) const {
        const PageShare& pages = strip(index).pages;
        const auto worth = [&](int end) {
            return page_cost(part_of(pages, from, end)) >= kSmallestItem;
        };
        int few = from;
        int end = pages.count();
        if (!worth(end)) return nullptr;
        while (few + 1 < end) {
            const int middle = few + (end - few) / 2;
            (worth(middle) ? end : few) = middle;
        }
        return page(index, end - 1);
    }

    /// Memory of a strip's page.
    const std::byte* page(int index, int at) const {
        for (const RunKind kind : kRunKinds) {
            const VisibleRun pages = run(index, kind);
            if (at < pages.pages.count()) return pages.data()[at];
            at -= pages.pages.count();
        }
        return nullptr; // never: a strip has all pages that are asked for
    }

    /// The first page from `from` on that two strips do not share; they share all before.
    int common_end(int a, int b, int from) const {
        int start = 0;
        for (const RunKind kind : kRunKinds) {
            const VisibleRun of_a = run(a, kind);
            const VisibleRun of_b = run(b, kind);
            const int count = std::min(of_a.pages.count(), of_b.pages.count());
            const int first = std::clamp(from - start, 0, count);
            if (first < count) {
                const int same = same_pages(of_a, of_b, kind, first, count);
                if (same < count) return start + same;
            }
            start += count;
            if (of_a.pages.count() != of_b.pages.count()) return start;
        }
        return start;
    }

    /// Strips that share all pages before `from`: those that may have enough behind it in common come together, so that
    /// many short ones are not compared with each other.
    void divide(std::span<int> strips, int from) {
        if (strips.size() == 1) return add_rest(strips.front(), from);
        std::vector<std::pair<const std::byte*, int>> by_page;
        by_page.reserve(strips.size());
        for (const int index : strips) by_page.emplace_back(deciding_page(index, from), index);
        std::sort(by_page.begin(), by_page.end(), [](const auto& a, const auto& b) {
            const std::less<const std::byte*> less;
            return a.first == b.first ? a.second < b.second : less(a.first, b.first);
        });
        for (std::size_t i = 0; i < strips.size(); ++i) strips[i] = by_page[i].second;
        for (std::size_t first = 0; first < strips.size();) {
            std::size_t last = first;
            while (last < strips.size() && by_page[last].first == by_page[first].first) ++last;
            if (by_page[first].first == nullptr)
                for (const int index : strips.subspan(first, last - first)) add_rest(index, from);
            else
                share(strips.subspan(first, last - first), from);
            first = last;
        }
    }

    /// Whether two strips have so much in common from `from` on that it pays to read it for both.
    bool worth_sharing(int a, int b, int from) const {
        return page_cost(part_of(strip(a).pages, from, common_end(a, b, from))) >= kSmallestItem;
    }

    void share(std::span<int> strips, int from) {
        while (!strips.empty()) {
            const int leader = strips.front();
            auto rest = strips.begin() + 1;
            if (fits_others(leader))
                rest = std::stable_partition(rest, strips.end(), [&](int index) {
                    return fits_others(index) && worth_sharing(leader, index, from);
                });
            const std::span<int> together(strips.begin(), rest);
            if (together.size() == 1)
                add_rest(leader, from);
            else
                add_common(together, from);
            strips = {rest, strips.end()};
        }
    }

    /// Whether there are lanes for another strip of this size.
    bool fits_others(int index) const { return 2 * strip(index).rows <= cpu::kMaxRows; }

    void add_rest(int index, int from) {
        const PageShare& pages = strip(index).pages;
        const int count = pages.count();
        if (from > 0 && from == count) return;
        add({&index, 1}, part_of(pages, from, count));
    }

    void add_common(std::span<int> strips, int from) {
        const int leader = strips.front();
        int end = strip(leader).pages.count();
        for (const int index : strips.subspan(1))
            end = std::min(end, common_end(leader, index, from));
        add(strips, part_of(strip(leader).pages, from, end));
        divide(strips, end);
    }

    void add(std::span<const int> strips, const PageShare& pages) {
        found_.list.push_back(
            {pages, static_cast<int>(found_.members.size()), static_cast<int>(strips.size())});
        found_.members.insert(found_.members.end(), strips.begin(), strips.end());
    }

    std::span<const QueryBlock> blocks_;
    std::span<const Strip> strips_;
    Stretches found_;
};

} // namespace

Stretches find_stretches(std::span<const QueryBlock> blocks, std::span<const Strip> strips) {
    return Finder(blocks, strips).find();
}

} // namespace innerkv
