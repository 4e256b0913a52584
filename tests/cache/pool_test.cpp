// SPDX-License-Identifier: Apache-2.0
#include "cache/pool.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>

#include "cache/page_list.h"
#include "innerkv/format.h"

namespace innerkv::paging {
namespace {

constexpr std::size_t kPage = std::size_t{64} << 10; // 32 to a chunk
constexpr std::size_t kChunk = std::size_t{2} << 20;

TEST(Pool, AllocatesChunksAsPagesAreTakenAndGivesThemBack) {
    Pool pool(kPage, 100);
    EXPECT_EQ(pool.bytes_reserved(), 0u);
    std::vector<Page> pages;
    std::set<const std::byte*> distinct;
    for (int i = 0; i < 100; ++i) {
        pages.push_back(pool.take());
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(pages.back().data) % kPageAlignment, 0u);
        EXPECT_EQ(pages.back().data, pool.data(pages.back().id));
        std::memset(pages.back().data, i, kPage);
        distinct.insert(pages.back().data);
        EXPECT_EQ(pool.bytes_reserved(), kChunk * static_cast<std::size_t>(i / 32 + 1));
    }
    EXPECT_EQ(distinct.size(), 100u);
    EXPECT_EQ(pool.free(), 0);
    for (int i = 0; i < 100; ++i)
        EXPECT_EQ(pages[static_cast<std::size_t>(i)].data[kPage - 1], static_cast<std::byte>(i));
    for (const Page& page : pages) pool.release(page.id);
    EXPECT_EQ(pool.in_use(), 0);
    EXPECT_EQ(pool.bytes_reserved(), kChunk); // one spare
}

/// So that huge pages can back them.
TEST(Pool, ChunksAreWholeAndAligned) {
    for (const std::size_t page_bytes : {std::size_t{1792}, std::size_t{28672}, kPage, 3 * kPage}) {
        Pool pool(page_bytes, 5000);
        for (int i = 0; i < 3; ++i) {
            const Page page = pool.take();
            const std::size_t offset = static_cast<std::size_t>(page.id) * page_bytes;
            EXPECT_EQ((reinterpret_cast<std::uintptr_t>(page.data) - offset) % kChunk, 0u);
            EXPECT_EQ(page.data[page_bytes - 1], std::byte{0xFF}); // poisoned_memory.cpp
        }
        EXPECT_EQ(pool.bytes_reserved(), kChunk);
    }
}

/// Pages that were taken one after another are, part for part, a stretch of memory; no part of one is in another's.
TEST(Pool, PartsLieSideBySide) {
    constexpr std::size_t kParts = 8;
    constexpr std::size_t kPart = 3584;
    Pool pool(kParts * kPart, 200, kParts);
    EXPECT_EQ(pool.page_bytes(), kParts * kPart);
    const std::size_t in_chunk = kChunk / pool.page_bytes();
    EXPECT_EQ(pool.part_stride(), in_chunk * kPart);
    std::vector<Page> pages;
    for (std::size_t i = 0; i < 200; ++i) {
        pages.push_back(pool.take());
        EXPECT_EQ(pages[i].data, pool.data(pages[i].id));
        if (i % in_chunk > 0) {
            EXPECT_EQ(pages[i].data, pages[i - 1].data + kPart);
        }
        for (std::size_t part = 0; part < kParts; ++part)
            std::memset(pages[i].data + part * pool.part_stride(),
                        static_cast<int>((i * kParts + part) % 251), kPart);
    }
    for (std::size_t i = 0; i < 200; ++i)
        for (std::size_t part = 0; part < kParts; ++part)
            for (const std::size_t at : {std::size_t{0}, kPart - 1})
                EXPECT_EQ(pages[i].data[part * pool.part_stride() + at],
                          static_cast<std::byte>((i * kParts + part) % 251));
    // Some go back and are taken again, then all.
    for (std::size_t i = 60; i-- > 40;) pool.release(pages[i].id);
    for (std::size_t i = 40; i < 60; ++i) EXPECT_EQ(pool.take().id, pages[i].id);
    for (const Page& page : pages) pool.release(page.id);
    for (std::size_t i = 0; i < in_chunk; ++i)
        EXPECT_EQ(pool.take().data, pages[0].data + i * kPart);
}

/// A sequence that is removed leaves its pages to the next one in the order in which it had them.
TEST(Pool, ListsAndHoldsGiveBackInOrder) {
    Pool pool(kPage, 20);
    std::vector<PageId> before;
    PageList list;
    list.reserve(10);
    const auto take = [&](PageHold& hold) {
        hold.take(10);
        std::vector<PageId> ids;
        for (const Page& page : hold.pages()) ids.push_back(page.id);
        return ids;
    };
    const Page another = pool.take(); // so that the chunk does not empty
    {
        PageHold hold(pool);
        before = take(hold);
    }
    PageHold hold(pool);
    EXPECT_EQ(take(hold), before);
    for (const Page& page : hold.pages()) list.push_back(page);
    hold.keep();
    list.keep_front(pool, 3);
    list.release_front(pool, 3);
    PageHold again(pool);
    EXPECT_EQ(take(again), before);
    pool.release(another.id);
}

TEST(Pool, TakesFromTheLowestChunkSoThatTheUpperOnesDrain) {
    Pool pool(kPage, 96);
    std::vector<Page> pages(96);
    for (Page& page : pages) page = pool.take();
    for (std::size_t i = 0; i < 96; i += 2) pool.release(pages[i].id); // every second one
    for (int i = 0; i < 16; ++i) EXPECT_LT(static_cast<int>(pool.take().id), 32);
    EXPECT_GE(static_cast<int>(pool.take().id), 32);
}

TEST(Pool, CountsReferences) {
    Pool pool(kPage, 2);
    const Page page = pool.take();
    EXPECT_FALSE(pool.shared(page.id));
    pool.retain(page.id);
    EXPECT_TRUE(pool.shared(page.id));
    pool.release(page.id);
    EXPECT_FALSE(pool.shared(page.id));
    EXPECT_EQ(pool.in_use(), 1);
    pool.release(page.id);
    EXPECT_EQ(pool.in_use(), 0);
}

TEST(Pool, HoldGivesBackWhatIsNotKept) {
    Pool pool(kPage, 10);
    {
        PageHold hold(pool);
        hold.take(4);
        PageHold moved = std::move(hold);
        EXPECT_EQ(pool.in_use(), 4);
        EXPECT_EQ(moved.pages().size(), 4u);
    }
    EXPECT_EQ(pool.in_use(), 0);
    PageHold hold(pool);
    hold.take(3);
    hold.keep();
    EXPECT_EQ(pool.in_use(), 3);
}

TEST(Pool, PagesLargerThanAChunkWork) {
    Pool pool(std::size_t{3} << 20, 2);
    const Page a = pool.take();
    const Page b = pool.take();
    std::memset(a.data, 1, pool.page_bytes());
    std::memset(b.data, 2, pool.page_bytes());
    EXPECT_EQ(a.data[pool.page_bytes() - 1], std::byte{1});
    EXPECT_EQ(pool.bytes_reserved(), 4 * kChunk); // 3 MiB in whole chunks of 4
}

} // namespace
} // namespace innerkv::paging
