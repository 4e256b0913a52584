// SPDX-License-Identifier: Apache-2.0
#include "cache/page_list.h"

#include <algorithm>

namespace innerkv::paging {

void PageList::reserve(std::int64_t extra) {
    const std::size_t needed = ids_.size() + static_cast<std::size_t>(extra);
    const std::size_t capacity = std::min(ids_.capacity(), pointers_.capacity());
    if (needed <= capacity) return;
    const std::size_t grown = std::max(needed, 2 * capacity);
    ids_.reserve(grown);
    pointers_.reserve(grown);
}

void PageList::push_back(const Page& page) noexcept {
    ids_.push_back(page.id);
    pointers_.push_back(page.data);
}

void PageList::replace_back(Pool& pool, const Page& page) noexcept {
    pool.release(ids_.back());
    ids_.back() = page.id;
    pointers_.back() = page.data;
}

void PageList::release_front(Pool& pool, std::int64_t count) noexcept {
    for (std::int64_t i = count; i-- > 0;) pool.release(id(i));
    ids_.erase(ids_.begin(), ids_.begin() + count);
    pointers_.erase(pointers_.begin(), pointers_.begin() + count);
}

void PageList::keep_front(Pool& pool, std::int64_t count) noexcept {
    for (std::int64_t i = size(); i-- > count;) pool.release(id(i));
    ids_.resize(static_cast<std::size_t>(count));
    pointers_.resize(static_cast<std::size_t>(count));
}

Page PageList::extract(Pool& pool, std::int64_t index) noexcept {
    const Page page{id(index), pool.data(id(index))};
    ids_.erase(ids_.begin() + index);
    pointers_.erase(pointers_.begin() + index);
    return page;
}

void PageList::retain_all(Pool& pool) const noexcept {
    for (const PageId page : ids_) pool.retain(page);
}

std::int64_t PageList::exclusive(const Pool& pool, std::int64_t first_entries) const {
    return std::count_if(ids_.begin(), ids_.begin() + first_entries,
                         [&pool](PageId page) { return !pool.shared(page); });
}

} // namespace innerkv::paging
