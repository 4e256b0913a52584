// SPDX-License-Identifier: Apache-2.0
#include "cache/pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace innerkv::paging {
namespace {

/// Large enough for huge pages, small enough to give memory back in useful steps.
constexpr std::size_t kChunkBytes = std::size_t{2} << 20;

} // namespace

Pool::Pool(std::size_t page_bytes, std::int64_t capacity)
    : page_bytes_(page_bytes), capacity_(capacity),
      pages_per_chunk_(std::max<std::size_t>(1, kChunkBytes / page_bytes)),
      chunks_((static_cast<std::size_t>(capacity) + pages_per_chunk_ - 1) / pages_per_chunk_) {}

Pool::~Pool() {
    for (std::size_t chunk = 0; chunk < chunks_.size(); ++chunk)
        if (chunks_[chunk].memory) unmap(chunk);
}

std::size_t Pool::slots(std::size_t chunk) const {
    return std::min(pages_per_chunk_,
                    static_cast<std::size_t>(capacity_) - chunk * pages_per_chunk_);
}

void Pool::map(std::size_t chunk) {
    Chunk& c = chunks_[chunk];
    const std::size_t count = slots(chunk);
    c.references.assign(count, 0);
    c.free_slots.resize(count);
    for (std::size_t slot = 0; slot < count; ++slot)
        c.free_slots[slot] = static_cast<std::uint32_t>(count - 1 - slot);
    void* memory = mmap(nullptr, count * page_bytes_, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    c.memory = static_cast<std::byte*>(memory);
    bytes_reserved_ += count * page_bytes_;
}

void Pool::unmap(std::size_t chunk) noexcept {
    Chunk& c = chunks_[chunk];
    const std::size_t bytes = slots(chunk) * page_bytes_;
    munmap(c.memory, bytes);
    bytes_reserved_ -= bytes;
    c = Chunk{};
}

Page Pool::take() {
    while (chunks_[first_with_space_].memory && chunks_[first_with_space_].free_slots.empty())
        ++first_with_space_;
    const std::size_t chunk = first_with_space_;
    if (!chunks_[chunk].memory) map(chunk);
    Chunk& c = chunks_[chunk];
    const std::uint32_t slot = c.free_slots.back();
    c.free_slots.pop_back();
    c.references[slot] = 1;
    ++in_use_;
    if (spare_ == chunk) spare_ = kNone;
    const Page page{static_cast<PageId>(chunk * pages_per_chunk_ + slot),
                    c.memory + slot * page_bytes_};
    if (poison_fresh_pages) std::memset(page.data, 0xFF, page_bytes_);
    return page;
}

void Pool::retain(PageId id) noexcept { ++chunks_[index_of(id)].references[slot_of(id)]; }

void Pool::release(PageId id) noexcept {
    const std::size_t chunk = index_of(id);
    Chunk& c = chunks_[chunk];
    const std::size_t slot = slot_of(id);
    if (--c.references[slot] != 0) return;
    c.free_slots.push_back(static_cast<std::uint32_t>(slot));
    --in_use_;
    first_with_space_ = std::min(first_with_space_, chunk);
    if (c.free_slots.size() == slots(chunk)) keep_one_spare(chunk);
}

void Pool::keep_one_spare(std::size_t empty_chunk) noexcept {
    if (spare_ == kNone) {
        spare_ = empty_chunk;
        return;
    }
    unmap(std::max(spare_, empty_chunk));
    spare_ = std::min(spare_, empty_chunk);
}

PageHold::~PageHold() {
    for (const Page& page : pages_) pool_->release(page.id);
}

PageHold::PageHold(PageHold&& other) noexcept
    : pool_(other.pool_), pages_(std::exchange(other.pages_, {})) {}

void PageHold::take(std::int64_t count) {
    pages_.reserve(pages_.size() + static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i) pages_.push_back(pool_->take());
}

} // namespace innerkv::paging
