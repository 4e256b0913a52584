// SPDX-License-Identifier: Apache-2.0
// Work items: that they cover everything once, in any order, from any thread, with one result.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <thread>

#include "attention/partition.h"
#include "fixture.h"

namespace innerkv::test {
namespace {

Batch mixed_batch() {
    Batch batch(shape_of(find_preset("base").format(64), 6, 3));
    for (const int quantized : {0, 64, 1024, 2048}) {
        SequenceSpec spec;
        spec.quantized = quantized;
        spec.transform.value_centre = quantized == 1024;
        spec.transform.centre = quantized >= 1024;
        spec.epoch_pages = quantized == 2048 ? 8 : 0;
        batch.add(spec, quantized == 64 ? 20 : 1);
        if (quantized < 2048) continue;
        for (int fork = 0; fork < 6; ++fork) batch.add_fork(3, 32 + 2000 - 100 * (fork % 3), spec);
    }
    return batch;
}

void expect_same(const Result& result, const Result& expected) {
    EXPECT_LT(largest_error(result, expected), 1e-6);
    EXPECT_LT(log_sum_exp_error(result, expected), 2e-6);
}

TEST(Items, AnyNumberOfThreadsGivesTheSame) {
    const Batch batch = mixed_batch();
    for (const Arithmetic arithmetic : {Arithmetic::integer, Arithmetic::exact}) {
        const Result expected = attend(batch, arithmetic, "", 1);
        for (const int threads : {2, 3, 7, 64}) {
            SCOPED_TRACE(threads);
            expect_same(attend(batch, arithmetic, "", threads), expected);
        }
    }
}

TEST(Items, AnyOrderGivesTheSameBits) {
    const Batch batch = mixed_batch();
    const Result expected = attend(batch, Arithmetic::integer, "", 7);
    std::mt19937 random(1);
    for (int round = 0; round < 5; ++round) {
        const Result result = collect(batch, [&] {
            Attention attention(batch.shape, batch.blocks, {Arithmetic::integer, "", 7});
            std::vector<int> order(static_cast<std::size_t>(attention.items()));
            std::iota(order.begin(), order.end(), 0);
            std::shuffle(order.begin(), order.end(), random);
            for (const int item : order) attention.run(item);
        });
        EXPECT_EQ(result.out, expected.out);
        EXPECT_EQ(result.log_sum_exp, expected.log_sum_exp);
    }
}

TEST(Items, RunFromManyThreads) {
    const Batch batch = mixed_batch();
    const Result expected = attend(batch, Arithmetic::integer, "", 7);
    for (int round = 0; round < 10; ++round) {
        const Result result = collect(batch, [&] {
            Attention attention(batch.shape, batch.blocks, {Arithmetic::integer, "", 7});
            std::atomic<int> next = 0;
            std::vector<std::thread> threads;
            threads.reserve(4);
            for (int i = 0; i < 4; ++i)
                threads.emplace_back([&] {
                    for (int item = next++; item < attention.items(); item = next++)
                        attention.run(item);
                });
            for (std::thread& thread : threads) thread.join();
        });
        EXPECT_EQ(result.out, expected.out);
        EXPECT_EQ(result.log_sum_exp, expected.log_sum_exp);
    }
}

TEST(Items, OneLongSequenceBusiesAllThreads) {
    Batch batch(shape_of(find_preset("base").format(64), 4, 1));
    SequenceSpec spec;
    spec.quantized = 4096;
    batch.add(spec);
    EXPECT_EQ(Attention(batch.shape, batch.blocks, {Arithmetic::integer, "", 1}).items(), 1);
    EXPECT_GE(Attention(batch.shape, batch.blocks, {Arithmetic::integer, "", 4}).items(), 4);
}

TEST(Items, MovedFromAndToKeepTheirWork) {
    const Batch batch = mixed_batch();
    const Result expected = attend(batch, Arithmetic::integer, "", 3);
    const Result result = collect(batch, [&] {
        Attention first(batch.shape, batch.blocks, {Arithmetic::integer, "", 3});
        Attention second = std::move(first);
        second.run_all();
    });
    EXPECT_EQ(result.out, expected.out);
}

/// How often each of a strip's pages is read, for one KV head: quantized, sink, recent.
struct PageCounts {
    std::vector<int> runs[3];

    explicit PageCounts(const PageShare& pages)
        : runs{std::vector<int>(count(pages.quantized)), std::vector<int>(count(pages.sink)),
               std::vector<int>(count(pages.recent))} {}

    static std::size_t count(const PageInterval& run) {
        EXPECT_EQ(run.first, 0);
        return static_cast<std::size_t>(run.count());
    }
    void add(const PageShare& pages) {
        const PageInterval intervals[] = {pages.quantized, pages.sink, pages.recent};
        for (std::size_t run = 0; run < 3; ++run)
            for (int page = intervals[run].first; page < intervals[run].last; ++page)
                ++runs[run].at(static_cast<std::size_t>(page));
    }
};

/// Every strip's pages are read once, for rows of bundles that are its own; returns the pages that
/// all items read, each for all of its rows.
std::int64_t expect_every_page_once(const Batch& batch, int threads) {
    const Partition partition(batch.shape, batch.blocks, threads);
    const int kv_heads = batch.shape.kv_heads;
    std::vector<PageCounts> counts;
    for (const Strip& strip : partition.strips())
        counts.insert(counts.end(), static_cast<std::size_t>(kv_heads), PageCounts(strip.pages));
    std::vector<int> items(counts.size());
    std::int64_t read = 0;
    for (int i = 0; i < partition.items(); ++i) {
        const Item item = partition.item(i);
        EXPECT_LE(item.bundle->rows, 16);
        read += item.pages.count();
        int row = 0;
        for (const Member& member : partition.members(*item.bundle)) {
            EXPECT_EQ(member.row, row);
            row += partition.strips()[static_cast<std::size_t>(member.strip)].rows;
            const auto at = static_cast<std::size_t>(member.strip * kv_heads + item.kv_head);
            counts[at].add(item.pages);
            ++items[at];
        }
        EXPECT_EQ(item.bundle->rows, row);
    }
    for (std::size_t i = 0; i < counts.size(); ++i) {
        EXPECT_EQ(items[i], partition.items_of(static_cast<int>(i) / kv_heads));
        for (const auto& run : counts[i].runs)
            for (const int count : run) EXPECT_EQ(count, 1);
    }
    return read;
}

TEST(Partition, ItemsCoverEveryPageOnce) {
    Batch batch(shape_of(find_preset("base").format(64), 8, 2));
    std::int64_t pages = 0;
    for (const int quantized : {0, 32, 512, 4096}) {
        SequenceSpec spec;
        spec.quantized = quantized;
        batch.add(spec, 9);
        pages += 2 * 3 * (quantized / 32 + 4); // KV heads, strips of 36 rows
    }
    for (const int threads : {1, 2, 3, 5, 16, 100})
        EXPECT_EQ(expect_every_page_once(batch, threads), pages);
}

/// Eight forks with four rows each are two bundles: what they share is read twice, not eight times.
TEST(Partition, ForksReadSharedPagesTogether) {
    Batch batch(shape_of(find_preset("base").format(64), 8, 2));
    SequenceSpec spec;
    spec.quantized = 2048;
    batch.add(spec);
    for (int fork = 1; fork < 8; ++fork) batch.add_fork(0, 32 + 2048 + 64, spec);
    for (const int threads : {1, 2, 7})
        EXPECT_EQ(expect_every_page_once(batch, threads), 2 * (2 * (1 + 64 + 2) + 8));
}

/// A tree of forks of forks, beside sequences that share nothing.
TEST(Partition, TreeOfForks) {
    Batch batch(shape_of(find_preset("base").format(64), 4, 2));
    std::mt19937 random(1);
    std::int64_t pages = 0;
    for (int i = 0; i < 24; ++i) {
        SequenceSpec spec;
        spec.quantized = 32 * static_cast<int>(random() % 100);
        spec.recent = 96 + static_cast<int>(random() % 32);
        const int tokens = 1 + static_cast<int>(random() % 6);
        if (i % 6 == 0)
            batch.add(spec, tokens);
        else
            batch.add_fork(i - 1 - static_cast<int>(random() % static_cast<unsigned>(i % 6)),
                           random() % 3000, spec, tokens);
        pages += 2 * (1 + spec.quantized / 32 + (spec.recent + 31) / 32);
    }
    for (const int threads : {1, 2, 16}) {
        const std::int64_t read = expect_every_page_once(batch, threads);
        EXPECT_LT(read, pages * 9 / 10);
        EXPECT_GT(read, pages / 8);
    }
}

} // namespace
} // namespace innerkv::test
