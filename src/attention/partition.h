// SPDX-License-Identifier: Apache-2.0
// Work to items: which rows and which pages one call of Attention::run handles. Numbers only.
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

/// A share of a sequence's pages.
struct PageShare {
    PageInterval quantized;
    PageInterval sink;
    PageInterval recent;
};

/// Up to kMaxRows rows (query token * group + query head of the group) of one block. Every KV head has
/// such a strip; each is split into `splits` items.
struct Strip {
    int block;
    int first_row;
    int rows;
    PageShare pages; ///< all that any of its rows sees
    int splits;
    int first_item;
    int first_merge; ///< index of the first KV head's merge
    int first_state; ///< of the items' states, which only split strips store
};

struct Item {
    const Strip* strip;
    int kv_head;
    int split;
    int merge; ///< which items are merged with each other
    int state; ///< of its split; those of a merge follow each other
};

class Partition {
public:
    Partition(const AttentionShape& shape, std::span<const QueryBlock> blocks, int threads);

    int items() const { return items_; }
    int merges() const { return merges_; }
    int states() const { return states_; }
    std::span<const Strip> strips() const { return strips_; }
    Item item(int index) const;
    /// The part of a strip's pages that a split gets: shares of about equal cost.
    PageShare share(const Strip& strip, int split) const;

private:
    int kv_heads_;
    int items_ = 0;
    int merges_ = 0;
    int states_ = 0;
    std::vector<Strip> strips_;
};

} // namespace innerkv
