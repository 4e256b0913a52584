// SPDX-License-Identifier: Apache-2.0
// Work to items: which rows and which pages one call of Attention::run handles. Numbers only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "attention/sharing.h"
#include "attention/strip.h"
#include "innerkv/attention.h"

namespace innerkv {

/// A strip in a bundle. A strip's output is made of what all its members see.
struct Member {
    int strip;
    int bundle;
    int row;  ///< of the bundle, the strip's first
    int next; ///< of the same strip, in the order of tokens; -1: none
};

/// Strips that go through the kernels together: up to kMaxRows rows, and the pages that all of them
/// have. Every KV head has such a bundle; each is split by pages into `splits` items.
struct Bundle {
    PageShare pages; ///< of the first member's sequence
    int rows;
    int first_member;
    int members;
    int splits;
    int first_state; ///< of [kv_heads, splits]; -1: nothing is merged, the items write their output
};

struct Item {
    const Bundle* bundle;
    int kv_head;
    PageShare pages;
    int state; ///< -1: none
};

class Partition {
public:
    Partition(const AttentionShape& shape, std::span<const QueryBlock> blocks, int threads);

    int items() const { return items_; }
    int states() const { return states_; }
    int most_rows() const { return most_rows_; } ///< of a bundle with states
    Item item(int index) const;
    std::span<const Strip> strips() const { return strips_; }
    std::span<const Member> members(const Bundle& bundle) const;
    const Bundle& bundle(const Member& member) const;
    /// The first and the next of a strip; null behind the last.
    const Member* first_member(int strip) const;
    const Member* next_member(const Member& member) const;
    /// How many items a strip's output waits for, of each KV head.
    int items_of(int strip) const;

private:
    /// Bundles of one stretch. Their items alternate, since they read the same pages.
    struct Round {
        int first_bundle;
        int bundles;
        int first_item;
    };

    void add_bundles(const PageShare& pages, std::span<const int> strips);
    void chain_members();
    void split(int threads);
    bool merges(const Bundle& bundle) const;

    int kv_heads_;
    int items_ = 0;
    int states_ = 0;
    int most_rows_ = 0;
    std::vector<Strip> strips_;
    std::vector<int> first_members_; ///< [strips]
    std::vector<Member> members_;    ///< by bundle
    std::vector<Bundle> bundles_;
    std::vector<Round> rounds_;
};

} // namespace innerkv
