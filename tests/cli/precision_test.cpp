// SPDX-License-Identifier: Apache-2.0
// Bits by layer: the choice within a budget, against all there are.
#include <gtest/gtest.h>

#include <limits>
#include <numeric>
#include <random>

#include "errors.h"
#include "innerkv/error.h"
#include "knapsack.h"
#include "precision.h"

namespace innerkv::cli {
namespace {

using Items = std::vector<std::vector<Choice>>;

struct Sum {
    int cost = 0;
    double loss = 0;
};

Sum sum_of(const Items& items, const std::vector<std::size_t>& chosen) {
    Sum sum;
    for (std::size_t item = 0; item < items.size(); ++item) {
        sum.cost += items[item][chosen[item]].cost;
        sum.loss += items[item][chosen[item]].loss;
    }
    return sum;
}

/// The least loss of all sets that fit; infinity: none does.
double least_loss(const Items& items, int budget) {
    std::vector<std::size_t> chosen(items.size());
    double least = std::numeric_limits<double>::infinity();
    for (;;) {
        const Sum sum = sum_of(items, chosen);
        if (sum.cost <= budget) least = std::min(least, sum.loss);
        std::size_t item = 0;
        while (item < items.size() && ++chosen[item] == items[item].size()) chosen[item++] = 0;
        if (item == items.size()) return least;
    }
}

TEST(Knapsack, IsTheBestOfAll) {
    std::mt19937 random(5);
    const auto below = [&](int count) {
        return static_cast<int>(random() % static_cast<unsigned>(count));
    };
    int impossible = 0;
    for (int round = 0; round < 2000; ++round) {
        Items items(static_cast<std::size_t>(1 + below(6)));
        for (auto& item : items)
            for (int choice = 1 + below(4); choice > 0; --choice)
                item.push_back({below(9), 0.125 * below(40)}); // sums of eighths are exact
        const int budget = below(30);
        const double least = least_loss(items, budget);
        if (least == std::numeric_limits<double>::infinity()) {
            ++impossible;
            EXPECT_THROW(choose_within(items, budget), InvalidArgument);
            continue;
        }
        const Sum sum = sum_of(items, choose_within(items, budget));
        EXPECT_LE(sum.cost, budget);
        EXPECT_EQ(sum.loss, least) << "round " << round;
    }
    EXPECT_GT(impossible, 20);
}

TEST(Knapsack, Edges) {
    EXPECT_TRUE(choose_within({}, 0).empty());
    const Items free_one{{{0, 2.0}, {0, 1.0}}};
    EXPECT_EQ(choose_within(free_one, 0), std::vector<std::size_t>{1});
    EXPECT_THROW(choose_within(free_one, -1), InvalidArgument);
    const Items none{{}};
    EXPECT_THROW(choose_within(none, 5), InvalidArgument);
}

double mean_bits(const std::vector<LayerCodecs>& layers, int head_dim) {
    double sum = 0;
    for (const LayerCodecs& layer : layers)
        sum += PageFormat{layer.k, layer.v, head_dim}.bits_per_value();
    return sum / static_cast<double>(layers.size());
}

TEST(Precision, FewBitsGoWhereTheyCostLeast) {
    const Sensitivity sensitivity{0.01, {{1.0, 0.001}, {0.002, 0.004}, {0.5, 0.25}}};
    EXPECT_EQ(layer_digits(choose_codecs(sensitivity, 128, 2.5)), "222222");
    // A first bit more is worth 0.85 of what its side adds at 2 bits, a second 0.15.
    EXPECT_EQ(layer_digits(choose_codecs(sensitivity, 128, 2.75)), "322222");
    EXPECT_EQ(layer_digits(choose_codecs(sensitivity, 128, 3.0)), "322233");
    EXPECT_EQ(layer_digits(choose_codecs(sensitivity, 128, 3.5)), "422244");
    EXPECT_EQ(layer_digits(choose_codecs(sensitivity, 128, 4.5)), "444444");
}

/// Where no side is better than another, the budget decides; it is used up as far as whole steps go.
TEST(Precision, TheBudgetIsUsedUp) {
    for (const int head_dim : kHeadDims) {
        const PageFormat least{affine(2), affine(2), head_dim};
        const PageFormat most{affine(4), affine(4), head_dim};
        const double step = (most.bits_per_value() - least.bits_per_value()) / 2;
        for (const double share : {0.0, 0.3, 0.5, 0.77, 1.0}) {
            const double bits = least.bits_per_value() + 2 * share * step;
            const Sensitivity same{0.0, std::vector<Sides>(10, {0.01, 0.01})};
            const double mean = mean_bits(choose_codecs(same, head_dim, bits), head_dim);
            EXPECT_LE(mean, bits + 1e-9) << head_dim;
            EXPECT_GT(mean, bits - step / 20 - 1e-9) << head_dim; // one of 20 sides a bit finer
        }
    }
}

/// What cannot be told from nothing, or less, is worth no bits while others are.
TEST(Precision, NoiseBelowNothing) {
    const Sensitivity sensitivity{0.01, {{-0.1, 0.0}, {0.3, 0.2}}};
    EXPECT_EQ(layer_digits(choose_codecs(sensitivity, 64, 3.5)), "2244");
}

TEST(Precision, BudgetsOutOfReachAreRefused) {
    const Sensitivity any{0.0, {{0.1, 0.1}}};
    for (const double bits : {2.49, 4.51, 0.0, std::numeric_limits<double>::quiet_NaN()})
        EXPECT_THROW(choose_codecs(any, 128, bits), UsageError) << bits;
    // 80 channels are padded to 128
    EXPECT_THROW(choose_codecs(any, 80, 3.5), UsageError);
    EXPECT_EQ(layer_digits(choose_codecs(any, 80, 4.0)), "22");
}

} // namespace
} // namespace innerkv::cli
