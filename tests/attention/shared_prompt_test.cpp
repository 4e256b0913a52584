// SPDX-License-Identifier: Apache-2.0
// Forks of a prompt, attended in one call: pages that they share are read for all of them at once, and the
// result is what each alone gets.
#include <gtest/gtest.h>

#include <array>

#include "attention/partition.h"
#include "fixture.h"
#include "innerkv/cache.h"

namespace innerkv::test {
namespace {

class SharedPrompt : public testing::TestWithParam<std::string_view> {};

INSTANTIATE_TEST_SUITE_P(Available, SharedPrompt, testing::ValuesIn(available_isas()),
                         [](const auto& test) { return std::string(test.param); });

/// Largest number of strips that an item has rows of.
int strips_together(const Batch& batch) {
    const Partition partition(batch.shape, batch.blocks, 1);
    int most = 0;
    for (int i = 0; i < partition.items(); ++i)
        most = std::max(most, partition.item(i).bundle->members);
    return most;
}

/// Each block by itself.
Result attend_alone(const Batch& batch, Arithmetic arithmetic, std::string_view isa) {
    return collect(batch, [&] {
        for (const QueryBlock& block : batch.blocks)
            Attention(batch.shape, {&block, 1}, {arithmetic, isa, 1}).run_all();
    });
}

/// Sums are split elsewhere: fp32 rounding.
void expect_same_as_alone(const Batch& batch, std::string_view isa, int threads = 1) {
    for (const Arithmetic arithmetic : {Arithmetic::integer, Arithmetic::exact}) {
        const Result expected = attend_alone(batch, arithmetic, isa);
        const Result result = attend(batch, arithmetic, isa, threads);
        EXPECT_LT(largest_error(result, expected), 2e-6);
        EXPECT_LT(log_sum_exp_error(result, expected), 4e-6);
    }
}

/// A prompt of `pages` quantized pages and forks of it that have got on to unequal lengths.
Batch forked_batch(const AttentionShape& shape, int pages, SequenceSpec spec = {}) {
    Batch batch(shape);
    const bool quantized = shape.format.quantized();
    int& tokens = quantized ? spec.quantized : spec.recent;
    tokens += kPageTokens * pages;
    const std::int64_t prompt = spec.sink + spec.dropped + kPageTokens * pages + 64;
    batch.add(spec);
    for (const int own : {0, 1, 3, 40}) {
        spec.recent += 7;
        tokens += kPageTokens * own;
        batch.add_fork(0, prompt, spec, own == 1 ? 2 : 1);
    }
    return batch;
}

TEST_P(SharedPrompt, EveryFormatIsCloseToReference) {
    for (const NamedFormat& named : all_formats(64)) {
        SCOPED_TRACE(named.name);
        Batch batch = forked_batch(shape_of(named.format, 4, 2), 18);
        EXPECT_GE(strips_together(batch), 4);
        expect_close_to_reference(batch, GetParam());
        expect_same_as_alone(batch, GetParam());
    }
}

TEST_P(SharedPrompt, EveryHeadDimensionIsCloseToReference) {
    for (const int head_dim : kHeadDims) {
        SCOPED_TRACE(head_dim);
        Batch batch = forked_batch(shape_of(find_preset("base").format(head_dim), 3, 1), 17);
        EXPECT_EQ(strips_together(batch), 3); // 18 rows in two bundles
        expect_close_to_reference(batch, GetParam());
    }
}

TEST_P(SharedPrompt, WindowsCapsTransformsAndCentres) {
    for (const int window : {0, 620, 1000}) {
        for (const float cap : {0.0f, 4.0f}) {
            SCOPED_TRACE(testing::Message() << "window " << window << ", cap " << cap);
            SequenceSpec spec;
            spec.transform = {true, true, true, true};
            spec.epoch_pages = 8;
            spec.first_page = 5;
            spec.dropped = window == 1000 ? 64 : 0;
            AttentionShape shape = shape_of(find_preset("k4v3").format(80), 4, 2);
            shape.sliding_window = window;
            shape.soft_cap = cap;
            Batch batch = forked_batch(shape, 30, spec);
            EXPECT_GE(strips_together(batch), 2);
            expect_close_to_reference(batch, GetParam());
            expect_same_as_alone(batch, GetParam());
        }
    }
}

/// More rows than one bundle has, of strips of every size that leaves room for another.
TEST_P(SharedPrompt, EveryNumberOfRows) {
    for (int rows = 1; rows <= 9; ++rows) {
        SCOPED_TRACE(rows); // of one token; with two and nine heads 18, of which 2 are a strip
        Batch batch(shape_of(find_preset("base").format(64), rows, 1));
        SequenceSpec spec;
        spec.quantized = kPageTokens * 20;
        batch.add(spec);
        for (int fork = 1; fork < 7; ++fork)
            batch.add_fork(0, 32 + kPageTokens * 19, spec, 1 + fork % 2);
        EXPECT_GE(strips_together(batch), 2);
        EXPECT_LE(strips_together(batch), rows < 9 ? 16 / rows : 3);
        expect_same_as_alone(batch, GetParam());
        expect_same_as_alone(batch, GetParam(), 5);
    }
}

TEST_P(SharedPrompt, ForksOfForks) {
    Batch batch(shape_of(find_preset("hybrid").format(64), 2, 1));
    SequenceSpec spec;
    spec.transform = {true, true, true, true};
    spec.epoch_pages = 8;
    spec.quantized = kPageTokens * 30;
    batch.add(spec);
    spec.quantized += kPageTokens * 30;
    batch.add_fork(0, 32 + kPageTokens * 30, spec); // all that the prompt has quantized
    batch.add_fork(1, 32 + kPageTokens * 50, spec);
    batch.add_fork(2, 32 + kPageTokens * 50, spec);
    batch.add_fork(1, 32 + kPageTokens * 40, spec, 3);
    batch.add(spec); // none of the family
    EXPECT_EQ(strips_together(batch), 5);
    expect_same_as_alone(batch, GetParam());
    expect_close_to_reference(batch, GetParam());
}

/// A fork shows less of a page than its parent: nobody sees more than its own.
TEST_P(SharedPrompt, PagesFilledToDifferentLengths) {
    for (const char* preset : {"base", "f16"}) {
        SCOPED_TRACE(preset);
        Batch batch(shape_of(find_preset(preset).format(64), 2, 1));
        SequenceSpec spec = spec_for(batch.shape.format, kPageTokens * 20);
        batch.add(spec);
        batch.add_fork(0, 1 << 20, spec);
        batch.add_fork(0, 1 << 20, spec);
        // Blocks 1 and 2 look at shorter parts of the same memory, by views of their own.
        std::array<SequenceView, 2> views;
        for (std::size_t i = 0; i < views.size(); ++i) {
            views[i] = batch.sequences[i + 1].view();
            const std::int64_t cut = i == 0 ? 13 : 31;
            views[i].recent.tokens -= cut;
            views[i].length -= cut;
            batch.blocks[i + 1].sequence = &views[i];
            batch.blocks[i + 1].first_position -= i == 0 ? cut : 0; // one stands beyond its end
        }
        EXPECT_EQ(strips_together(batch), 3);
        const Result expected = reference(batch);
        EXPECT_LT(largest_error(attend(batch, Arithmetic::exact, GetParam()), expected), 1e-5);
        EXPECT_LT(largest_error(attend(batch, Arithmetic::integer, GetParam()), expected), 0.02);
        expect_same_as_alone(batch, GetParam());
    }
}

/// The same memory is not the same keys where what it went through, or where it stands, differs.
class NotShared : public testing::Test {
protected:
    NotShared() : batch_(shape_of(find_preset("base").format(64), 2, 1)) {
        spec_.transform = {true, true, true, true};
        spec_.epoch_pages = 8;
        spec_.quantized = kPageTokens * 40;
        spec_.sink = spec_.recent = 0;
        batch_.add(spec_);
        batch_.add_fork(0, 1 << 20, spec_);
        view_ = batch_.sequences[1].view();
        batch_.blocks[1].sequence = &view_;
    }
    void expect_alone() {
        EXPECT_EQ(strips_together(batch_), 1);
        expect_right();
    }
    void expect_right() {
        const Result expected = reference(batch_);
        EXPECT_LT(largest_error(attend(batch_, Arithmetic::exact, ""), expected), 1e-5);
        expect_same_as_alone(batch_, "");
    }

    SequenceSpec spec_;
    Batch batch_;
    SequenceView view_;
};

TEST_F(NotShared, UnlessSomethingDiffers) {
    EXPECT_EQ(strips_together(batch_), 2);
    expect_right();
}

TEST_F(NotShared, TransformsWithEqualPointersAreTheSame) {
    const std::vector<KeyTransform> copies(view_.transforms.begin(), view_.transforms.end());
    view_.transforms = copies;
    EXPECT_EQ(strips_together(batch_), 2);
    expect_right();
}

TEST_F(NotShared, OtherNorms) {
    const std::vector<float> norm(64, 0.5f);
    std::vector<KeyTransform> transforms(view_.transforms.begin(), view_.transforms.end());
    transforms[0].norm = norm.data();
    view_.transforms = transforms;
    expect_alone();
}

TEST_F(NotShared, NotRotated) {
    std::vector<KeyTransform> transforms(view_.transforms.begin(), view_.transforms.end());
    transforms[0].rotate = false;
    view_.transforms = transforms;
    expect_alone();
}

TEST_F(NotShared, OtherValueCentres) {
    std::vector<KeyTransform> transforms(view_.transforms.begin(), view_.transforms.end());
    transforms[0].value_centre = nullptr;
    view_.transforms = transforms;
    expect_alone();
}

TEST_F(NotShared, NoCentres) {
    view_.centres = {};
    expect_alone();
}

/// Epochs that begin elsewhere: the first pages have a centre in common, later ones do not.
TEST_F(NotShared, OtherEpochs) {
    std::vector<const std::byte*> epochs(view_.centres.epochs.begin(), view_.centres.epochs.end());
    epochs.push_back(epochs.front());
    view_.centres = {epochs, 8, 4};
    expect_alone();
}

/// Shared up to the page where the centre is another.
TEST_F(NotShared, AnotherCentreFromAPageOn) {
    std::vector<const std::byte*> epochs(view_.centres.epochs.begin(), view_.centres.epochs.end());
    epochs[3] = epochs[0];
    view_.centres.epochs = epochs;
    const Partition partition(batch_.shape, batch_.blocks, 1);
    ASSERT_EQ(partition.items(), 3);
    EXPECT_EQ(partition.item(0).bundle->members, 2);
    EXPECT_EQ(partition.item(0).pages.quantized.last, 24);
    expect_right();
}

TEST_F(NotShared, OtherPositions) {
    view_.quantized.first_token += 32;
    view_.length += 32;
    batch_.blocks[1].first_position += 32;
    expect_alone();
}

TEST_F(NotShared, OneAnotherPage) {
    std::vector<const std::byte*> pages(view_.quantized.pages.begin(), view_.quantized.pages.end());
    pages[10] = pages[11]; // too near to the start to read the ten before it apart
    view_.quantized.pages = pages;
    expect_alone();
}

/// The real thing: a cache's forks against caches of their own with the same tokens.
class CacheForks : public testing::TestWithParam<std::string_view> {
protected:
    static constexpr int kForks = 5;
    static constexpr int kPrompt = 900;
    static constexpr int kDim = 64;
    static constexpr int kKvHeads = 2;

    static CacheConfig config(std::string_view preset, int sequences) {
        CacheConfig config = CacheConfig::from_preset(find_preset(preset), 1, kKvHeads, kDim);
        config.max_tokens = 4000 * sequences;
        config.max_sequences = sequences;
        return config;
    }

    /// Tokens of one fork, the prompt being the same in all: [tokens, kv_heads, head_dim].
    static std::vector<float> rows(int fork, bool prompt, int tokens, bool key) {
        std::mt19937 random(static_cast<unsigned>(prompt ? 100 + key : 200 + 2 * fork + key));
        std::vector<float> row(static_cast<std::size_t>(tokens * kKvHeads * kDim));
        gaussian(random, row);
        for (std::size_t i = 0; i < row.size(); i += 7) row[i] += key ? 2.0f : 0.5f;
        return row;
    }

    static void append(Cache& cache, SequenceId sequence, int fork, bool prompt, int tokens) {
        const std::vector<float> k = rows(fork, prompt, tokens, true);
        const std::vector<float> v = rows(fork, prompt, tokens, false);
        for (int first = 0; first < tokens; first += 32) {
            const std::ptrdiff_t stride = kKvHeads * kDim;
            AppendRows append;
            append.sequence = sequence;
            append.tokens = std::min(32, tokens - first);
            append.k = {k.data() + first * stride, RowType::f32, stride, kDim};
            append.v = {v.data() + first * stride, RowType::f32, stride, kDim};
            cache.append(0, {&append, 1});
        }
    }

    /// Forks go on by so many tokens of their own.
    static int own_tokens(int fork) { return 1 + 57 * fork; }
};

INSTANTIATE_TEST_SUITE_P(Presets, CacheForks,
                         testing::Values("base", "small", "hybrid", "k4v4", "k8v8", "f16"),
                         [](const auto& test) { return std::string(test.param); });

TEST_P(CacheForks, AreReadTogetherAndGiveWhatSeparateCachesGive) {
    Cache shared(config(GetParam(), kForks));
    Cache separate(config(GetParam(), kForks));
    std::vector<SequenceId> forks = {shared.create()};
    append(shared, forks[0], 0, true, kPrompt);
    for (int fork = 1; fork < kForks; ++fork) forks.push_back(shared.fork(forks[0]));
    Batch together(shape_of(find_preset(GetParam()).format(kDim), 4, kKvHeads));
    for (int fork = 0; fork < kForks; ++fork) {
        together.add({}, 2);
        append(shared, forks[static_cast<std::size_t>(fork)], fork, false, own_tokens(fork));
    }
    std::vector<SequenceView> views(kForks);
    std::vector<SequenceView> separate_views(kForks);
    for (int fork = 0; fork < kForks; ++fork) {
        const SequenceId sequence = separate.create();
        append(separate, sequence, fork, true, kPrompt);
        append(separate, sequence, fork, false, own_tokens(fork));
        const auto at = static_cast<std::size_t>(fork);
        views[at] = shared.view(0, forks[at]);
        separate_views[at] = separate.view(0, sequence);
        together.blocks[at].sequence = &separate_views[at];
        together.blocks[at].first_position = views[at].length - 2;
    }
    EXPECT_EQ(strips_together(together), 1);
    const Result expected = reference(together);
    const Result apart = attend(together, Arithmetic::integer, "");
    for (std::size_t fork = 0; fork < views.size(); ++fork)
        together.blocks[fork].sequence = &views[fork];
    EXPECT_GE(strips_together(together), 2);
    for (const int threads : {1, 3}) {
        const Result result = attend(together, Arithmetic::integer, "", threads);
        EXPECT_LT(mean_error(result, expected), 0.01);
        EXPECT_LT(largest_error(result, apart), 2e-6);
        EXPECT_LT(log_sum_exp_error(result, apart), 4e-6);
    }
}

} // namespace
} // namespace innerkv::test
