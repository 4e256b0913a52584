// SPDX-License-Identifier: Apache-2.0
#include "attention/partition.h"

#include <algorithm>

#include "cpu/kernel.h"

namespace innerkv {
namespace {

/// More items than threads, so that a slow thread does not hold up the rest.
constexpr std::int64_t kItemsPerThread = 3;

/// Reading and expanding a page takes about as long as this many rows' products with it.
constexpr std::int64_t kRowsOfReading = 2;

std::int64_t cost(const Bundle& bundle) {
    return page_cost(bundle.pages) * (bundle.rows + kRowsOfReading);
}

/// Takes the part of `run` that lies in [begin, end) of a bundle's cost, where the run begins at cost
/// `start` and a page costs `page_cost`. Adjoining parts share no page and leave none out.
PageInterval part_of(const PageInterval& run, std::int64_t start, std::int64_t page_cost,
                     std::int64_t begin, std::int64_t end) {
    const auto boundary = [&](std::int64_t at) {
        const std::int64_t page = (at - start + page_cost - 1) / page_cost;
        return run.first + static_cast<int>(std::clamp<std::int64_t>(page, 0, run.count()));
    };
    return {begin <= start ? run.first : boundary(begin), end <= start ? run.first : boundary(end)};
}

/// The part of a bundle's pages that a split gets: shares of about equal cost.
PageShare share_of(const Bundle& bundle, int split) {
    const PageShare& all = bundle.pages;
    const std::int64_t total = page_cost(all);
    const std::int64_t begin = total * split / bundle.splits;
    const std::int64_t end = total * (split + 1) / bundle.splits;
    const std::int64_t sink_start = all.quantized.count();
    const std::int64_t recent_start = sink_start + kDenseCost * all.sink.count();
    return {part_of(all.quantized, 0, 1, begin, end),
            part_of(all.sink, sink_start, kDenseCost, begin, end),
            part_of(all.recent, recent_start, kDenseCost, begin, end)};
}

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

} // namespace

Partition::Partition(const AttentionShape& shape, std::span<const QueryBlock> blocks, int threads)
    : kv_heads_(shape.kv_heads), strips_(make_strips(shape, blocks)) {
    const Stretches stretches = find_stretches(blocks, strips_);
    bundles_.reserve(stretches.list.size());
    rounds_.reserve(stretches.list.size());
    members_.reserve(stretches.members.size());
    for (const Stretch& stretch : stretches.list)
        add_bundles(stretch.pages, std::span(stretches.members)
                                       .subspan(static_cast<std::size_t>(stretch.first_member),
                                                static_cast<std::size_t>(stretch.members)));
    chain_members();
    split(threads);
}

/// As few bundles as the rows need, of about as many rows each.
void Partition::add_bundles(const PageShare& pages, std::span<const int> strips) {
    const auto rows_of = [this](int strip) {
        return strips_[static_cast<std::size_t>(strip)].rows;
    };
    int rows = 0;
    for (const int strip : strips) rows += rows_of(strip);
    const auto least = static_cast<int>(divide_up(rows, cpu::kMaxRows));
    const int enough = rows / std::max(least, 1);
    Round round{static_cast<int>(bundles_.size()), 0, 0};
    for (const int strip : strips) {
        if (round.bundles == 0 || bundles_.back().rows >= enough ||
            bundles_.back().rows + rows_of(strip) > cpu::kMaxRows) {
            bundles_.push_back({pages, 0, static_cast<int>(members_.size()), 0, 1, -1});
            ++round.bundles;
        }
        Bundle& bundle = bundles_.back();
        members_.push_back({strip, static_cast<int>(bundles_.size()) - 1, bundle.rows, -1});
        bundle.rows += rows_of(strip);
        ++bundle.members;
    }
    rounds_.push_back(round);
}

/// Stretches, and so bundles, come in the order of a strip's tokens.
void Partition::chain_members() {
    first_members_.assign(strips_.size(), -1);
    for (std::size_t i = members_.size(); i-- > 0;) {
        int& first = first_members_[static_cast<std::size_t>(members_[i].strip)];
        members_[i].next = first;
        first = static_cast<int>(i);
    }
}

/// Whether a bundle's states are but a part of some output.
bool Partition::merges(const Bundle& bundle) const {
    if (bundle.splits > 1) return true;
    const auto all = members(bundle);
    return std::any_of(all.begin(), all.end(), [this](const Member& member) {
        const Member* first = first_member(member.strip);
        return first != &member || next_member(member);
    });
}

void Partition::split(int threads) {
    std::int64_t total = 0;
    for (const Bundle& bundle : bundles_) total += cost(bundle) * kv_heads_;
    const std::int64_t aim = std::max<std::int64_t>(1, total / (threads * kItemsPerThread));
    for (Round& round : rounds_) {
        const auto bundles = std::span(bundles_).subspan(
            static_cast<std::size_t>(round.first_bundle), static_cast<std::size_t>(round.bundles));
        // All have about as many rows.
        const std::int64_t splits =
            threads > 1 ? std::min(divide_up(cost(bundles[0]), aim),
                                   divide_up(page_cost(bundles[0].pages), kSmallestItem))
                        : 1;
        round.first_item = items_;
        for (Bundle& bundle : bundles) {
            bundle.splits = static_cast<int>(std::max<std::int64_t>(splits, 1));
            items_ += bundle.splits * kv_heads_;
            if (!merges(bundle)) continue;
            bundle.first_state = states_;
            states_ += bundle.splits * kv_heads_;
            most_rows_ = std::max(most_rows_, bundle.rows);
        }
    }
}

Item Partition::item(int index) const {
    const auto after =
        std::upper_bound(rounds_.begin(), rounds_.end(), index,
                         [](int value, const Round& round) { return value < round.first_item; });
    const Round& round = *(after - 1);
    const int place = (index - round.first_item) / round.bundles;
    const int number = (index - round.first_item) % round.bundles;
    const Bundle& bundle = bundles_[static_cast<std::size_t>(round.first_bundle + number)];
    return {&bundle, place / bundle.splits, share_of(bundle, place % bundle.splits),
            bundle.first_state < 0 ? -1 : bundle.first_state + place};
}

std::span<const Member> Partition::members(const Bundle& bundle) const {
    return std::span(members_).subspan(static_cast<std::size_t>(bundle.first_member),
                                       static_cast<std::size_t>(bundle.members));
}

const Bundle& Partition::bundle(const Member& member) const {
    return bundles_[static_cast<std::size_t>(member.bundle)];
}

const Member* Partition::first_member(int strip) const {
    return &members_[static_cast<std::size_t>(first_members_[static_cast<std::size_t>(strip)])];
}

const Member* Partition::next_member(const Member& member) const {
    return member.next < 0 ? nullptr : &members_[static_cast<std::size_t>(member.next)];
}

int Partition::items_of(int strip) const {
    int items = 0;
    for (const Member* member = first_member(strip); member; member = next_member(*member))
        items += bundle(*member).splits;
    return items;
}

} // namespace innerkv
