// SPDX-License-Identifier: Apache-2.0
// Parts of `innerkv eval` that need no model: planting, positions, files of --resume.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <set>
#include <sstream>

#include <gtest/gtest.h>
#include <unistd.h>

#include "errors.h"
#include "journal.h"
#include "planting.h"
#include "runner/calibration.h"
#include "score.h"

namespace innerkv::cli {
namespace {

using runner::Token;

/// A token a byte, above all tokens of the texts below.
std::vector<Token> tokenize(const std::string& text) {
    std::vector<Token> tokens;
    for (const char letter : text) tokens.push_back(100000 + letter);
    return tokens;
}

std::vector<Token> counting(std::size_t count) {
    std::vector<Token> tokens(count);
    std::iota(tokens.begin(), tokens.end(), 0);
    return tokens;
}

std::vector<Token> statement(const Fact& fact) {
    return tokenize(fact.question + fact.value + fact.end);
}

TEST(Planting, FactsLandAtTheirDepths) {
    constexpr std::size_t kLength = 2016;
    const std::vector<Token> text = counting(kLength);
    const std::vector<Token> opening = {77777};
    for (const int count : {2, 5, 11, kMostFacts}) {
        const std::vector<Fact> facts = make_facts(count, 3);
        const PlantedDocument document =
            plant(text, opening, facts, make_depths(count), kLength, tokenize);
        ASSERT_EQ(document.tokens.size(), kLength);
        EXPECT_EQ(document.tokens.front(), 77777);
        std::vector<Token> rest;
        for (std::size_t index = 0; index < facts.size(); ++index) {
            const PlantedFact& fact = document.facts[index];
            const std::vector<Token> expected = statement(facts[index]);
            const auto begin = document.tokens.begin() + static_cast<std::ptrdiff_t>(fact.position);
            ASSERT_TRUE(std::equal(expected.begin(), expected.end(), begin));
            EXPECT_EQ(fact.question, tokenize(facts[index].question));
            EXPECT_EQ(fact.value, tokenize(facts[index].value));
            const auto before = std::count_if(document.tokens.begin(), begin,
                                              [](Token token) { return token < 77777; });
            EXPECT_NEAR(static_cast<double>(before), fact.depth * document.text_tokens, 1);
        }
        std::ranges::copy_if(document.tokens, std::back_inserter(rest),
                             [](Token token) { return token < 77777; });
        EXPECT_EQ(rest, counting(document.text_tokens)); // whole and in order
    }
}

TEST(Planting, DepthsAndFacts) {
    EXPECT_EQ(make_depths(3), (std::vector<double>{0, 0.5, 1}));
    const std::vector<Fact> facts = make_facts(kMostFacts, 1);
    std::set<std::string> questions;
    for (const Fact& fact : facts) {
        questions.insert(fact.question);
        EXPECT_LE(fact.question.size() + fact.value.size() - 1, 32U) << fact.question;
    }
    EXPECT_EQ(questions.size(), facts.size());
    EXPECT_EQ(make_facts(5, 7).back().value, make_facts(5, 7).back().value);
    EXPECT_NE(make_facts(5, 7).back().value, make_facts(5, 8).back().value);
}

TEST(Planting, RefusesADocumentOfFactsAlone) {
    EXPECT_THROW(plant(counting(300), {}, make_facts(11, 0), make_depths(11), 300, tokenize),
                 UsageError);
}

std::vector<RowScore> some_rows(std::size_t count) {
    std::vector<RowScore> rows;
    for (std::size_t row = 0; row < count; ++row) {
        const double value = std::sin(static_cast<double>(row) + 0.1);
        rows.push_back({-1 - value * value / 3, value * value * 1e-3, row % 3 != 0, row % 2 == 0});
    }
    return rows;
}

TEST(ByPosition, SumsToTheWhole) {
    for (const std::size_t length : {3u, 16u, 255u}) {
        const std::vector<RowScore> rows = some_rows(4 * length);
        const Score whole = summarize(rows);
        const std::vector<Stretch> stretches = by_position(rows, length, 1, 16);
        EXPECT_EQ(stretches.size(), std::min<std::size_t>(length, 16));
        std::int64_t tokens = 0;
        double divergence = 0;
        double log_perplexity = 0;
        for (const Stretch& stretch : stretches) {
            EXPECT_EQ(stretch.position, 1 + tokens / 4);
            tokens += stretch.score.tokens;
            const auto weight = static_cast<double>(stretch.score.tokens);
            divergence += weight * stretch.score.divergence_mean;
            log_perplexity += weight * std::log(stretch.score.perplexity);
        }
        const auto count = static_cast<double>(whole.tokens);
        EXPECT_EQ(tokens, whole.tokens);
        EXPECT_NEAR(divergence / count, whole.divergence_mean, 1e-12);
        EXPECT_NEAR(std::exp(log_perplexity / count), whole.perplexity, 1e-9);
    }
}

class JournalTest : public testing::Test {
protected:
    void SetUp() override {
        path_ = std::filesystem::temp_directory_path() /
                ("journal-" + std::to_string(getpid()) + "-" +
                 testing::UnitTest::GetInstance()->current_test_info()->name());
        std::filesystem::remove(path_);
    }
    void TearDown() override { std::filesystem::remove(path_); }

    Journal open() const { return Journal(path_, header_, {3, 4, 0}, 2); }
    void write(const std::string& text) const { std::ofstream(path_, std::ios::binary) << text; }
    std::string read() const {
        std::ostringstream text;
        text << std::ifstream(path_, std::ios::binary).rdbuf();
        return text.str();
    }
    std::string error_of(const std::string& text) const {
        write(text);
        try {
            open();
        } catch (const Failure& error) {
            EXPECT_EQ(read(), text); // untouched
            return error.what();
        }
        return "no error";
    }
    static std::vector<Standing> standings(std::size_t rows) {
        Standing standing;
        standing.rows = some_rows(rows);
        standing.report = {1000, 12345, 7, 54321, 0.0};
        if (rows == 0) standing.generated = 9, standing.common = 4;
        return {standing, standing};
    }

    Json header_ = {{"innerkv", "eval x"}, {"ctx", 512}};
    std::filesystem::path path_;
};

TEST_F(JournalTest, ItemsComeBackBitByBit) {
    {
        Journal journal = open();
        EXPECT_EQ(journal.find(1), nullptr);
        journal.add(1, standings(4));
        journal.add(2, standings(0));
    }
    const Journal journal = open();
    EXPECT_EQ(journal.find(0), nullptr);
    ASSERT_NE(journal.find(1), nullptr);
    const Standing& found = journal.find(1)->back();
    const Standing expected = standings(4).back();
    for (std::size_t row = 0; row < 4; ++row) {
        EXPECT_EQ(found.rows[row].log_likelihood, expected.rows[row].log_likelihood);
        EXPECT_EQ(found.rows[row].divergence, expected.rows[row].divergence);
        EXPECT_EQ(found.rows[row].same_top, expected.rows[row].same_top);
        EXPECT_EQ(found.rows[row].correct, expected.rows[row].correct);
    }
    EXPECT_EQ(found.report.bytes, 12345U);
    EXPECT_EQ(found.report.f16_bytes, 54321U);
    EXPECT_EQ(found.report.quantized_pages, 7);
    EXPECT_EQ(journal.find(2)->front().common, 4);
}

TEST_F(JournalTest, ACutLastLineIsLeftOut) {
    {
        Journal journal = open();
        journal.add(0, standings(3));
    }
    const std::string whole = read();
    const std::size_t header_end = whole.find('\n') + 1;
    for (std::size_t cut = 0; cut < whole.size(); ++cut) {
        write(whole.substr(0, cut));
        {
            Journal journal = open();
            EXPECT_EQ(journal.find(0), nullptr) << cut;
            EXPECT_EQ(read(), whole.substr(0, header_end)) << cut;
            journal.add(0, standings(3));
        }
        EXPECT_EQ(read(), whole) << cut;
    }
}

TEST_F(JournalTest, AnotherMeasurementIsRefused) {
    { Journal journal = open(); }
    const std::string mine = read();
    header_["ctx"] = 1024;
    EXPECT_NE(error_of(mine).find("ctx is 512 there and 1024 here"), std::string::npos);
    header_ = {{"innerkv", "eval x"}};
    EXPECT_NE(error_of(mine).find("ctx is 512 there and not here"), std::string::npos);
    for (const char* other : {"A novel.", "A novel\nof two lines\n", "[]\n", "7\n", "{}\n", "\n"})
        EXPECT_NE(error_of(other).find("not a file that --resume wrote"), std::string::npos);
}

TEST_F(JournalTest, BrokenLinesAreToldByNumber) {
    std::string item;
    {
        Journal journal = open();
        journal.add(0, standings(3));
    }
    const std::string whole = read();
    const std::string header = whole.substr(0, whole.find('\n') + 1);
    const std::string line = whole.substr(header.size());
    const auto changed = [&](const std::string& from, const std::string& to) {
        std::string text = line;
        const std::size_t place = text.find(from);
        EXPECT_NE(place, std::string::npos) << from;
        return header + text.replace(place, from.size(), to);
    };
    EXPECT_NE(error_of(header + line + line).find(":3: "), std::string::npos);
    for (const std::string& text : {header + "{\n",
                                    header + "\n",
                                    header + "[]\n",
                                    header + "{}\n",
                                    header + "\xff\n",
                                    changed("\"item\":0", "\"item\":3"),
                                    changed("\"item\":0", "\"item\":-1"),
                                    changed("\"item\":0", "\"item\":0.5"),
                                    changed("\"item\":0", "\"item\":1"),
                                    changed("\"item\":0", "\"item\":2"),
                                    changed("\"caches\":[", "\"caches\":[{},"),
                                    changed("\"kld\":[", "\"kld\":[1,"),
                                    changed("\"kld\":[", "\"kld\":[null,"),
                                    changed("\"same_top\":\"011", "\"same_top\":\"01x"),
                                    changed("\"same_top\":\"011\"", "\"same_top\":7"),
                                    changed("\"bytes\":12345", "\"bytes\":-1"),
                                    changed("\"bytes\":12345", "\"bytes\":1e99"),
                                    changed("\"generated\":0", "\"generated\":5"),
                                    changed("\"tokens\"", "\"spoken\""),
                                    changed("\"log_likelihood\":[", "\"log_likelihood\":[[[[[")})
        EXPECT_NE(error_of(text).find(":2: "), std::string::npos) << text << error_of(text);
    // In words of this program, with what to do.
    for (const std::string& text : {header + "{\n", header + "NaN\n", header + "{\"item\":0}\n"})
        EXPECT_NE(error_of(text).find(
                      ":2: this is no finished item; without this line the item is measured again"),
                  std::string::npos)
            << error_of(text);
    const auto first = [&](const std::string& name, const std::string& value) {
        const std::size_t begin = line.find("\"" + name + "\":[") + name.size() + 4;
        return header + line.substr(0, begin) + value + line.substr(line.find(',', begin));
    };
    for (const auto& [text, part] :
         {std::pair{first("kld", "-5"), "a kld of -5"},
          std::pair{first("kld", "1e300"), "a kld of 1e+300"},
          std::pair{first("kld", "NaN"), "no finished item"},
          std::pair{first("kld", "\"1\""), "kld holds what is not a number"},
          std::pair{first("log_likelihood", "1"), "log_likelihood of 1 "},
          std::pair{first("log_likelihood", "-1e7"), "log_likelihood of -1"},
          std::pair{changed("\"tokens\":1000", "\"tokens\":0"), "tokens is 0, not a count of 1"},
          std::pair{changed("\"tokens\":1000", "\"tokens\":2"), "3 rows from 2 tokens"},
          std::pair{changed("\"bytes\":12345", "\"bytes\":0"), "bytes is 0"},
          std::pair{changed("\"f16_bytes\":54321", "\"f16_bytes\":0"), "f16_bytes is 0"},
          std::pair{changed("\"correct\"", "\"wrong\""), "correct is missing"}})
        EXPECT_NE(error_of(text).find(part), std::string::npos) << part << ": " << error_of(text);
    // Rounding is no damage.
    write(first("kld", "-1e-7"));
    EXPECT_NE(open().find(0), nullptr);
}

TEST_F(JournalTest, NamesThatAreNoUtf8AreTheSameAgain) {
    header_["model_name"] = "M\xff";
    { Journal journal = open(); }
    const std::string text = read();
    EXPECT_NE(text, "");
    { Journal journal = open(); }
    EXPECT_EQ(read(), text);
}

TEST_F(JournalTest, OneRunAtATime) {
    const Journal journal = open();
    try {
        open();
        FAIL();
    } catch (const Failure& error) {
        EXPECT_NE(std::string(error.what()).find("in use"), std::string::npos);
    }
}

TEST_F(JournalTest, Fingerprints) {
    // Of "" and "foobar" as the authors of FNV publish them.
    EXPECT_EQ(runner::hash_of(""), "cbf29ce484222325");
    EXPECT_EQ(runner::hash_of("foobar"), "85944171f73967e8");
    std::string bytes(3'000'000, 'a');
    write(bytes);
    const std::string whole = file_fingerprint(path_);
    for (std::size_t place = 0; place < bytes.size(); place += 99'999) {
        bytes[place] = 'b';
        write(bytes);
        EXPECT_NE(file_fingerprint(path_), whole) << place;
        bytes[place] = 'a';
    }
    write(bytes);
    EXPECT_EQ(file_fingerprint(path_), whole);
    write(bytes + std::string(3, '\0')); // what the last word is filled up with
    EXPECT_NE(file_fingerprint(path_), whole);
    EXPECT_THROW(file_fingerprint("no-such-file"), Failure);
}

} // namespace
} // namespace innerkv::cli
