// SPDX-License-Identifier: Apache-2.0
// The pages of one run (sink, quantized or recent) of a sequence in one layer, in token order. Each
// entry owns one reference in a pool.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cache/pool.h"

namespace innerkv::paging {

class PageList {
public:
    std::int64_t size() const { return static_cast<std::int64_t>(ids_.size()); }
    bool empty() const { return ids_.empty(); }
    PageId id(std::int64_t index) const { return ids_[static_cast<std::size_t>(index)]; }
    /// For a PageRun; valid until the list changes.
    std::span<const std::byte* const> pointers() const { return pointers_; }

    /// Makes room for `extra` more entries, after which so many push_back calls do not throw.
    void reserve(std::int64_t extra);
    void push_back(const Page& page) noexcept;
    /// Replaces the last entry and releases the page that was there.
    void replace_back(Pool& pool, const Page& page) noexcept;
    void release_front(Pool& pool, std::int64_t count) noexcept;
    /// Keeps the first `count` entries.
    void keep_front(Pool& pool, std::int64_t count) noexcept;
    /// Takes an entry out without releasing it.
    Page extract(Pool& pool, std::int64_t index) noexcept;

    void retain_all(Pool& pool) const noexcept;
    /// Entries that no other list refers to.
    std::int64_t exclusive(const Pool& pool) const { return exclusive(pool, size()); }
    std::int64_t exclusive(const Pool& pool, std::int64_t first_entries) const;

private:
    std::vector<PageId> ids_;
    std::vector<const std::byte*> pointers_;
};

} // namespace innerkv::paging
