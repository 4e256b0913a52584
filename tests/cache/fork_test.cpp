// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "test_cache.h"

namespace innerkv::test {
namespace {

CacheConfig transforming_config() {
    CacheConfig config = small_config();
    config.transform = {KeyNormPolicy::prefill, true, true, true, 64};
    return config;
}

class Fork : public testing::Test {
protected:
    Fork() { rows_.append_all(cache_, parent_, 1); }

    const std::byte* last_page(SequenceId id) const {
        return cache_.view(0, id).recent.pages.back();
    }

    CacheConfig config_ = transforming_config();
    TestSequence rows_{config_, 300};
    TestSequence more_{config_, 300, 5};
    Cache cache_{config_};
    SequenceId parent_ = cache_.create();
};

TEST_F(Fork, CostsNoPages) {
    const CacheUsage before = cache_.usage();
    const SequenceId child = cache_.fork(parent_);
    EXPECT_EQ(cache_.usage().bytes_in_use, before.bytes_in_use);
    EXPECT_TRUE(contents(cache_, child) == contents(cache_, parent_));
    EXPECT_EQ(last_page(child), last_page(parent_));
    EXPECT_EQ(cache_.view(0, child).transforms.data(), cache_.view(0, parent_).transforms.data());
    cache_.remove(parent_);
    EXPECT_EQ(cache_.usage().bytes_in_use, before.bytes_in_use);
    cache_.remove(child);
    EXPECT_EQ(cache_.usage().bytes_in_use, 0u);
}

TEST_F(Fork, AppendingCopiesOnlyThePartialPage) {
    const SequenceId child = cache_.fork(parent_);
    const Contents before = contents(cache_, parent_);
    const std::int64_t pages = cache_.usage().f16_pages;
    more_.append(cache_, child, 0, 1);
    EXPECT_EQ(cache_.usage().f16_pages, pages + 1);
    EXPECT_NE(last_page(child), last_page(parent_));
    EXPECT_EQ(cache_.view(0, child).recent.pages[0], cache_.view(0, parent_).recent.pages[0]);
    EXPECT_TRUE(contents(cache_, parent_) == before);
    // Both own their last page now: nothing more is copied.
    const std::byte* own = last_page(parent_);
    rows_.append(cache_, parent_, 0, 1);
    EXPECT_EQ(last_page(parent_), own);
    EXPECT_EQ(cache_.usage().f16_pages, pages + 1);
}

TEST_F(Fork, QuantizingASharedPageLeavesTheOtherSequenceAlone) {
    const SequenceId child = cache_.fork(parent_);
    const Contents before = contents(cache_, parent_);
    const std::int64_t quantized = cache_.usage().quantized_pages;
    more_.append(cache_, child, 0, 100);
    cache_.settle(child);
    EXPECT_EQ(cache_.usage().quantized_pages, quantized + 3);
    EXPECT_TRUE(contents(cache_, parent_) == before);
    rows_.append(cache_, parent_, 0, 100);
    cache_.settle(parent_);
    const SequenceView a = cache_.view(0, parent_);
    const SequenceView b = cache_.view(0, child);
    EXPECT_EQ(a.quantized.pages.size(), b.quantized.pages.size());
    EXPECT_EQ(a.quantized.pages[0], b.quantized.pages[0]);
    EXPECT_NE(a.quantized.pages.back(), b.quantized.pages.back());
}

TEST_F(Fork, TwoForksInOneBatchBothCopy) {
    const SequenceId child = cache_.fork(parent_);
    const std::int64_t pages = cache_.usage().f16_pages;
    const AppendRows batch[] = {rows_.rows(parent_, 0, 2), more_.rows(child, 0, 2)};
    cache_.append(0, batch);
    EXPECT_EQ(cache_.usage().f16_pages, pages + 1);
    EXPECT_NE(last_page(child), last_page(parent_));
    EXPECT_FALSE(contents(cache_, parent_) == contents(cache_, child));
}

TEST_F(Fork, AChildTruncatedIntoASharedPageCopiesItBeforeItWrites) {
    const Contents before = contents(cache_, parent_);
    const SequenceId child = cache_.fork(parent_);
    cache_.truncate(child, 290);
    EXPECT_EQ(last_page(child), last_page(parent_));
    more_.append(cache_, child, 0, 3);
    EXPECT_NE(last_page(child), last_page(parent_));
    EXPECT_TRUE(contents(cache_, parent_) == before);
}

} // namespace
} // namespace innerkv::test
