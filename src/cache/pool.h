// SPDX-License-Identifier: Apache-2.0
// Pool of equally large, reference-counted page groups: [kv_heads] pages of one layer, called a page here. Knows nothing
// of what a page holds, but that it may have equal parts, one a KV head, each of which is read for itself: in a chunk
// the first parts of all pages lie one behind the other, then the second ones. Pages that are taken one after another from
// a chunk nobody used before lie so in the order of taking: what a KV head has in them is one stretch of memory,
// which the hardware prefetches. Pages go back last one first, so that most of that order comes again.
//
// Memory is allocated in chunks when pages are first taken from them and touched when written, so the
// resident size follows use; a chunk without pages in use is freed (one is kept as a spare). Pages come
// from the lowest chunk that has space, so that the upper ones drain as a prompt's pages go back. A chunk
// is whole huge pages of 2 MiB, for systems that back such memory with them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace innerkv::paging {

enum class PageId : std::int32_t {};

struct Page {
    PageId id{};
    std::byte* data = nullptr;
};

/// How the pages of a pool lie in chunks.
struct ChunkShape {
    ChunkShape(std::size_t page_bytes, std::int64_t capacity);

    std::size_t pages; ///< in a chunk
    std::size_t bytes; ///< of a chunk
    std::size_t count; ///< of chunks, when all pages are in use
};

class Pool {
public:
    /// Allocates no pages yet. `capacity` pages at most are ever in use. page_bytes is a multiple of `parts`.
    Pool(std::size_t page_bytes, std::int64_t capacity, std::size_t parts = 1);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    std::size_t page_bytes() const { return part_bytes_ * parts_; }
    /// From a part of a page to the next one.
    std::size_t part_stride() const { return part_bytes_ * shape_.pages; }
    std::int64_t capacity() const { return capacity_; }
    std::int64_t in_use() const { return in_use_; }
    std::int64_t free() const { return capacity_ - in_use_; }
    std::size_t bytes_reserved() const { return bytes_reserved_; }

    /// A page with one reference and unspecified contents. Requires free() > 0; throws std::bad_alloc
    /// where the system has no memory.
    Page take();
    void retain(PageId id) noexcept;
    void release(PageId id) noexcept;
    bool shared(PageId id) const { return chunk_of(id).references[slot_of(id)] > 1; }
    /// The page's first part.
    std::byte* data(PageId id) const { return chunk_of(id).memory + slot_of(id) * part_bytes_; }

private:
    struct Chunk {
        std::byte* memory = nullptr; ///< null: not allocated
        std::vector<std::uint32_t> references;
        std::vector<std::uint32_t> free_slots;
    };

    std::size_t index_of(PageId id) const { return static_cast<std::size_t>(id) / shape_.pages; }
    std::size_t slot_of(PageId id) const { return static_cast<std::size_t>(id) % shape_.pages; }
    const Chunk& chunk_of(PageId id) const { return chunks_[index_of(id)]; }
    std::size_t slots(std::size_t chunk) const;
    static void free_in_order(Chunk& chunk) noexcept;
    void allocate_chunk(std::size_t chunk);
    void free_chunk(std::size_t chunk) noexcept;
    void keep_one_spare(std::size_t empty_chunk) noexcept;

    static constexpr std::size_t kNone = static_cast<std::size_t>(-1);

    std::size_t part_bytes_;
    std::size_t parts_;
    std::int64_t capacity_;
    ChunkShape shape_;
    std::vector<Chunk> chunks_;
    std::size_t first_with_space_ = 0; ///< no chunk below it has a free slot
    std::size_t spare_ = kNone;        ///< allocated chunk without pages in use
    std::int64_t in_use_ = 0;
    std::size_t bytes_reserved_ = 0;
};

/// Pages taken for an operation that may still fail: given back unless kept.
class PageHold {
public:
    explicit PageHold(Pool& pool) : pool_(&pool) {}
    ~PageHold();
    PageHold(PageHold&& other) noexcept;
    PageHold& operator=(PageHold&&) = delete;

    void take(std::int64_t count);
    std::span<const Page> pages() const { return pages_; }
    /// The pages have found an owner.
    void keep() noexcept { pages_.clear(); }
    /// Likewise, but for the last `count`.
    void keep_all_but(std::size_t count) noexcept {
        pages_.erase(pages_.begin(), pages_.end() - static_cast<std::ptrdiff_t>(count));
    }

private:
    Pool* pool_;
    std::vector<Page> pages_;
};

} // namespace innerkv::paging
