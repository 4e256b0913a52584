// SPDX-License-Identifier: Apache-2.0
// Facts planted in a text: what `eval recall` asks for.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "runner/runner.h"

namespace innerkv::cli {

/// "\nThe code of Oslo is Oslo" " 48213" ".\n": what is planted; the question is its first part. The key
/// stands right before the value because that is what small models can look up: with "The code of Oslo
/// is 48213" SmolLM2-135M on an f16 cache of 2,048 tokens finds 55% of the values, so 91%.
struct Fact {
    std::string question;
    std::string value;
    std::string end;
};

/// Facts of the most that one document may have.
inline constexpr int kMostFacts = 40;

/// `count` facts with different keys, the same for the same document.
std::vector<Fact> make_facts(int count, std::uint64_t document);

/// Depths from 0 to 1 at equal distances.
std::vector<double> make_depths(int count);

struct PlantedFact {
    double depth = 0;
    std::size_t position = 0; ///< of its first token in the document
    std::vector<runner::Token> question;
    std::vector<runner::Token> value;
};

struct PlantedDocument {
    std::vector<runner::Token> tokens;
    std::vector<PlantedFact> facts; ///< by depth
    std::size_t text_tokens = 0;    ///< of the text, the opening token not counted
};

using Tokenize = std::function<std::vector<runner::Token>(const std::string&)>;

/// A document of `length` tokens: `opening` if there is one, then the beginning of `text` with the facts,
/// so that fact i has the share depths[i] of the document's text before it. Throws UsageError where
/// the facts alone are longer; `text` must have `length` tokens.
PlantedDocument plant(std::span<const runner::Token> text, std::span<const runner::Token> opening,
                      std::span<const Fact> facts, std::span<const double> depths,
                      std::size_t length, const Tokenize& tokenize);

} // namespace innerkv::cli
