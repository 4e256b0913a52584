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

/// Adds each page of an interval to its count.
void count_pages(const PageInterval& interval, std::vector<int>& counts) {
    for (int page = interval.first; page < interval.last; ++page)
        ++counts.at(static_cast<std::size_t>(page));
}

TEST(Partition, SharesCoverEveryPageOnce) {
    Batch batch(shape_of(find_preset("base").format(64), 8, 2));
    for (const int quantized : {0, 32, 512, 4096}) {
        SequenceSpec spec;
        spec.quantized = quantized;
        batch.add(spec, 9);
    }
    for (const int threads : {1, 2, 3, 5, 16, 100}) {
        const Partition partition(batch.shape, batch.blocks, threads);
        // Per block, first row and KV head: quantized, sink and recent pages in one list.
        std::vector<std::vector<int>> counts;
        for (int i = 0; i < partition.items(); ++i) {
            const Item item = partition.item(i);
            const PageShare& all = item.strip->pages;
            const PageShare share = partition.share(*item.strip, item.split);
            const auto merge = static_cast<std::size_t>(item.merge);
            if (counts.size() <= 3 * merge) counts.resize(3 * (merge + 1));
            const PageInterval* runs[] = {&share.quantized, &share.sink, &share.recent};
            const PageInterval* totals[] = {&all.quantized, &all.sink, &all.recent};
            for (std::size_t run = 0; run < 3; ++run) {
                EXPECT_EQ(totals[run]->first, 0);
                counts[3 * merge + run].resize(static_cast<std::size_t>(totals[run]->count()));
                count_pages(*runs[run], counts[3 * merge + run]);
            }
        }
        EXPECT_EQ(counts.size(), 3 * static_cast<std::size_t>(partition.merges()));
        for (const auto& pages : counts)
            for (const int count : pages) EXPECT_EQ(count, 1);
    }
}

} // namespace
} // namespace innerkv::test
