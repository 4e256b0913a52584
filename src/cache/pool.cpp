// SPDX-License-Identifier: Apache-2.0
#include "cache/pool.h"

#include <algorithm>
#include <new>
#include <numeric>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace innerkv::paging {
namespace {

/// A huge page of x86-64 and of arm64 with small pages of 4 KiB.
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::align_val_t kChunkAlignment{kHugePage};

/// A chunk of whole huge pages, and a wish that the system uses such: with small pages attention would often miss the
/// translation cache. A refusal changes nothing but speed.
std::byte* allocate_memory(std::size_t bytes) {
    void* const memory = ::operator new(bytes, kChunkAlignment);
#if defined(__linux__)
    madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return static_cast<std::byte*>(memory);
}

} // namespace

ChunkShape::ChunkShape(std::size_t page_bytes, std::int64_t capacity)
    : pages(std::max<std::size_t>(1, kHugePage / page_bytes)),
      bytes((pages * page_bytes + kHugePage - 1) / kHugePage * kHugePage),
      count((static_cast<std::size_t>(capacity) + pages - 1) / pages) {}

Pool::Pool(std::size_t page_bytes, std::int64_t capacity, std::size_t parts)
    : part_bytes_(page_bytes / parts), parts_(parts), capacity_(capacity),
      shape_(page_bytes, capacity), chunks_(shape_.count) {}

Pool::~Pool() {
    for (std::size_t chunk = 0; chunk < chunks_.size(); ++chunk)
        if (chunks_[chunk].memory) free_chunk(chunk);
}

std::size_t Pool::slots(std::size_t chunk) const {
    return std::min(shape_.pages, static_cast<std::size_t>(capacity_) - chunk * shape_.pages);
}

/// The lowest slot will be taken first.
void Pool::free_in_order(Chunk& chunk) noexcept {
    std::iota(chunk.free_slots.rbegin(), chunk.free_slots.rend(), 0u);
}

void Pool::allocate_chunk(std::size_t chunk) {
    Chunk& c = chunks_[chunk];
    const std::size_t count = slots(chunk);
    c.references.assign(count, 0);
    c.free_slots.resize(count);
    free_in_order(c);
    c.memory = allocate_memory(shape_.bytes);
    bytes_reserved_ += shape_.bytes;
}

void Pool::free_chunk(std::size_t chunk) noexcept {
    ::operator delete(chunks_[chunk].memory, kChunkAlignment);
    bytes_reserved_ -= shape_.bytes;
    chunks_[chunk] = Chunk{};
}

Page Pool::take() {
    while (chunks_[first_with_space_].memory && chunks_[first_with_space_].free_slots.empty())
        ++first_with_space_;
    const std::size_t chunk = first_with_space_;
    if (!chunks_[chunk].memory) allocate_chunk(chunk);
    Chunk& c = chunks_[chunk];
    const std::uint32_t slot = c.free_slots.back();
    c.free_slots.pop_back();
    c.references[slot] = 1;
    ++in_use_;
    if (spare_ == chunk) spare_ = kNone;
    return {static_cast<PageId>(chunk * shape_.pages + slot), c.memory + slot * part_bytes_};
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
    free_in_order(chunks_[empty_chunk]);
    if (spare_ == kNone) {
        spare_ = empty_chunk;
        return;
    }
    free_chunk(std::max(spare_, empty_chunk));
    spare_ = std::min(spare_, empty_chunk);
}

PageHold::~PageHold() {
    for (auto page = pages_.rbegin(); page != pages_.rend(); ++page) pool_->release(page->id);
}

PageHold::PageHold(PageHold&& other) noexcept
    : pool_(other.pool_), pages_(std::exchange(other.pages_, {})) {}

void PageHold::take(std::int64_t count) {
    pages_.reserve(pages_.size() + static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i) pages_.push_back(pool_->take());
}

} // namespace innerkv::paging
