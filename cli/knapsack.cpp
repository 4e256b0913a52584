// SPDX-License-Identifier: Apache-2.0
#include "knapsack.h"

#include <limits>
#include <string>

#include "innerkv/error.h"

namespace innerkv::cli {
namespace {

constexpr double kImpossible = std::numeric_limits<double>::infinity();

/// What an item adds to the items before it.
struct Step {
    std::vector<double> loss;        ///< [budget + 1], the least within each cost
    std::vector<std::size_t> choice; ///< [budget + 1], with which it is had
};

Step add_item(const std::vector<Choice>& item, const std::vector<double>& before) {
    Step step{std::vector<double>(before.size(), kImpossible),
              std::vector<std::size_t>(before.size())};
    for (std::size_t within = 0; within < before.size(); ++within) {
        for (std::size_t index = 0; index < item.size(); ++index) {
            const auto cost = static_cast<std::size_t>(item[index].cost);
            if (cost > within) continue;
            const double loss = before[within - cost] + item[index].loss;
            if (!(loss < step.loss[within])) continue;
            step.loss[within] = loss;
            step.choice[within] = index;
        }
    }
    return step;
}

} // namespace

std::vector<std::size_t> choose_within(std::span<const std::vector<Choice>> items, int budget) {
    std::vector<Step> steps;
    std::vector<double> loss(budget < 0 ? 0 : static_cast<std::size_t>(budget) + 1, 0.0);
    for (const std::vector<Choice>& item : items) {
        steps.push_back(add_item(item, loss));
        loss = steps.back().loss;
    }
    if (loss.empty() || loss.back() == kImpossible)
        throw InvalidArgument("no choice of " + std::to_string(items.size()) +
                              " items costs as little as the budget of " + std::to_string(budget));
    std::vector<std::size_t> choices(items.size());
    auto within = static_cast<std::size_t>(budget);
    for (std::size_t item = items.size(); item-- > 0;) {
        choices[item] = steps[item].choice[within];
        within -= static_cast<std::size_t>(items[item][choices[item]].cost);
    }
    return choices;
}

} // namespace innerkv::cli
