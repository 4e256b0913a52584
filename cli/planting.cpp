// SPDX-License-Identifier: Apache-2.0
#include "planting.h"

#include <algorithm>
#include <array>

#include <fmt/format.h>

#include "errors.h"

namespace innerkv::cli {
namespace {

// Cities of at most 5 letters: a question and its answer then fit into a page of 32 tokens even where a
// token is a byte.
constexpr std::array<const char*, kMostFacts> kKeys = {
    "Oslo",  "Paris", "Rome",  "Cairo", "Lima",  "Delhi", "Tokyo", "Seoul", "Hanoi", "Quito",
    "Accra", "Tunis", "Sofia", "Kyiv",  "Riga",  "Milan", "Turin", "Lyon",  "Lille", "Porto",
    "Miami", "Dakar", "Perth", "Basel", "Bern",  "Ghent", "Delft", "Leeds", "York",  "Derby",
    "Essen", "Bonn",  "Cork",  "Izmir", "Busan", "Kyoto", "Osaka", "Dubai", "Doha",  "Kabul"};

/// SplitMix64: the same numbers everywhere.
class Random {
public:
    explicit Random(std::uint64_t seed) : state_(seed) {}
    std::uint64_t below(std::uint64_t bound) {
        state_ += 0x9e3779b97f4a7c15U;
        std::uint64_t bits = state_;
        bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9U;
        bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebU;
        return (bits ^ (bits >> 31)) % bound;
    }

private:
    std::uint64_t state_;
};

std::size_t count_tokens(std::span<const std::vector<runner::Token>> statements) {
    std::size_t count = 0;
    for (const std::vector<runner::Token>& statement : statements) count += statement.size();
    return count;
}

} // namespace

std::vector<Fact> make_facts(int count, std::uint64_t document) {
    Random random(document);
    std::array<const char*, kMostFacts> keys = kKeys;
    std::vector<Fact> facts;
    for (std::size_t index = 0; index < static_cast<std::size_t>(count); ++index) {
        std::swap(keys[index], keys[index + random.below(keys.size() - index)]);
        const std::string key = keys[index];
        facts.push_back({fmt::format("\nThe code of {0} is {0}", key),
                         fmt::format(" {}", 10000 + random.below(90000)), ".\n"});
    }
    return facts;
}

std::vector<double> make_depths(int count) {
    std::vector<double> depths;
    depths.reserve(static_cast<std::size_t>(count));
    for (int index = 0; index < count; ++index)
        depths.push_back(count > 1 ? static_cast<double>(index) / (count - 1) : 0.5);
    return depths;
}

PlantedDocument plant(std::span<const runner::Token> text, std::span<const runner::Token> opening,
                      std::span<const Fact> facts, std::span<const double> depths,
                      std::size_t length, const Tokenize& tokenize) {
    PlantedDocument document;
    std::vector<std::vector<runner::Token>> statements;
    for (std::size_t index = 0; index < facts.size(); ++index) {
        document.facts.push_back(
            {depths[index], 0, tokenize(facts[index].question), tokenize(facts[index].value)});
        std::vector<runner::Token> statement = document.facts.back().question;
        const std::vector<runner::Token>& value = document.facts.back().value;
        const std::vector<runner::Token> end = tokenize(facts[index].end);
        statement.insert(statement.end(), value.begin(), value.end());
        statement.insert(statement.end(), end.begin(), end.end());
        statements.push_back(std::move(statement));
    }
    const std::size_t planted = opening.size() + count_tokens(statements);
    if (planted >= length)
        throw UsageError(
            fmt::format("the facts of --depths {} have {} tokens and leave no room in a "
                        "document of {}; choose a larger --ctx or fewer --depths",
                        facts.size(), planted, length));
    document.text_tokens = length - planted;
    document.tokens.assign(opening.begin(), opening.end());
    std::size_t taken = 0;
    const auto take_until = [&](std::size_t end) {
        const auto part = text.subspan(taken, end - taken);
        document.tokens.insert(document.tokens.end(), part.begin(), part.end());
        taken = end;
    };
    for (std::size_t index = 0; index < facts.size(); ++index) {
        take_until(
            static_cast<std::size_t>(depths[index] * static_cast<double>(document.text_tokens)));
        document.facts[index].position = document.tokens.size();
        document.tokens.insert(document.tokens.end(), statements[index].begin(),
                               statements[index].end());
    }
    take_until(document.text_tokens);
    return document;
}

} // namespace innerkv::cli
