// SPDX-License-Identifier: Apache-2.0
// Characters, tables, progress lines: the parts that need no model.
#include <cstdio>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "errors.h"
#include "options.h"
#include "output.h"
#include "progress.h"
#include "text_file.h"
#include "utf8.h"

namespace innerkv::cli {
namespace {

const std::string kReplacement = "\xEF\xBF\xBD";

std::string stream(const std::vector<std::string>& pieces) {
    Utf8Stream utf8;
    std::string text;
    for (const std::string& piece : pieces) text += utf8.add(piece);
    return text + utf8.finish();
}

TEST(Utf8, EveryCodePointPassesWhateverTheCut) {
    for (char32_t code = 1; code <= 0x10FFFF; code += code < 0x900 ? 1 : 0x101) {
        if (code >= 0xD800 && code <= 0xDFFF) continue;
        std::string bytes;
        if (code < 0x80) {
            bytes = {static_cast<char>(code)};
        } else if (code < 0x800) {
            bytes = {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 63))};
        } else if (code < 0x10000) {
            bytes = {static_cast<char>(0xE0 | code >> 12),
                     static_cast<char>(0x80 | (code >> 6 & 63)),
                     static_cast<char>(0x80 | (code & 63))};
        } else {
            bytes = {
                static_cast<char>(0xF0 | code >> 18), static_cast<char>(0x80 | (code >> 12 & 63)),
                static_cast<char>(0x80 | (code >> 6 & 63)), static_cast<char>(0x80 | (code & 63))};
        }
        ASSERT_EQ(find_invalid_utf8(bytes), std::string::npos);
        for (std::size_t cut = 0; cut <= bytes.size(); ++cut) {
            Utf8Stream utf8;
            const std::string first = utf8.add(bytes.substr(0, cut));
            ASSERT_EQ(first, cut == bytes.size() ? bytes : "");
            ASSERT_EQ(first + utf8.add(bytes.substr(cut)), bytes);
            ASSERT_EQ(utf8.finish(), "");
        }
    }
}

TEST(Utf8, FaultyBytesBecomeReplacements) {
    EXPECT_EQ(stream({"a\xFF", "b"}), "a" + kReplacement + "b");
    EXPECT_EQ(stream({"\x80"}), kReplacement);
    EXPECT_EQ(stream({"\xC0\xAF"}), kReplacement + kReplacement);                    // overlong
    EXPECT_EQ(stream({"\xED\xA0\x80"}), kReplacement + kReplacement + kReplacement); // surrogate
    EXPECT_EQ(stream({"\xE2\x82", "x"}), kReplacement + "x"); // cut off by another character
    EXPECT_EQ(stream({"x\xF0\x9F", "\x99"}), "x" + kReplacement);
    EXPECT_EQ(stream({"\xF4\x90\x80\x80"}).substr(0, 3), kReplacement); // beyond U+10FFFF
}

TEST(Utf8, OffsetOfTheFirstFault) {
    EXPECT_EQ(find_invalid_utf8(""), std::string::npos);
    EXPECT_EQ(find_invalid_utf8("Gr\xC3\xBC\xC3\x9F"
                                "e"),
              std::string::npos);
    EXPECT_EQ(find_invalid_utf8("ab\xE9 c"), 2u);
    EXPECT_EQ(find_invalid_utf8("ab\xE2\x82"), 2u);
}

TEST(Utf8, EndInsideACharacter) {
    EXPECT_TRUE(ends_inside_character("ab\xE2\x82", 2));
    EXPECT_TRUE(ends_inside_character("\xF0", 0));
    EXPECT_FALSE(ends_inside_character("ab\xE9 c", 2));
    EXPECT_FALSE(ends_inside_character("ab\xFF", 2));
    EXPECT_FALSE(ends_inside_character("ab", 2));
}

TEST(Utf8, NothingThatActsIsPrintable) {
    EXPECT_EQ(printable("Gr\xC3\xBC\xC3\x9F"
                        "e, \xE4\xB8\xAD"),
              "Gr\xC3\xBC\xC3\x9F"
              "e, \xE4\xB8\xAD");
    EXPECT_EQ(printable("a\x1B[2J\nb\x7F"),
              "a" + kReplacement + "[2J" + kReplacement + "b" + kReplacement);
    EXPECT_EQ(printable("\xC2\x9B\xC2\xA0\x9B"), kReplacement + "\xC2\xA0" + kReplacement);
}

TEST(Output, Bytes) {
    EXPECT_EQ(format_bytes(0), "0 bytes");
    EXPECT_EQ(format_bytes(1023), "1023 bytes");
    EXPECT_EQ(format_bytes(1024), "1.0 KiB");
    EXPECT_EQ(format_bytes(1536 * 1024), "1.5 MiB");
    EXPECT_EQ(format_bytes((std::uint64_t{1} << 30) - 1), "1.0 GiB");
    EXPECT_EQ(format_bytes(~std::uint64_t{0}), "16384.0 PiB");
}

TEST(Output, Durations) {
    EXPECT_EQ(format_duration(0.4), "0 s");
    EXPECT_EQ(format_duration(59.4), "59 s");
    EXPECT_EQ(format_duration(200), "3 min 20 s");
    EXPECT_EQ(format_duration(3600 * 5 + 61), "5 h 1 min");
    EXPECT_EQ(format_duration(-1), "0 s");
}

TEST(Output, TableColumns) {
    Table table({"cache", "bits", ""});
    table.add({"base", "3.50", "x"});
    table.add({"a longer name", "16", ""});
    EXPECT_EQ(table.text(), "cache          bits\n"
                            "base           3.50  x\n"
                            "a longer name    16\n");
}

TEST(Progress, LineHasBarRateAndRemainingTime) {
    EXPECT_EQ(progress_line("prompt", "tokens", 512, 1024, 2.0, 80),
              "prompt [################................] 512/1024 tokens  256/s  2 s left");
    EXPECT_EQ(progress_line("prompt", "tokens", 0, 8, 0.0, 80),
              "prompt [................................] 0/8 tokens");
    EXPECT_EQ(progress_line("eval", "tokens", 8, 8, 4.0, 80),
              "eval [################################] 8/8 tokens  2.00/s  0 s left");
}

TEST(Progress, LineFitsTheTerminal) {
    for (int columns = 0; columns < 120; ++columns) {
        const std::string line = progress_line("prompt", "tokens", 123456, 1234567, 60.0, columns);
        EXPECT_LE(line.size(), static_cast<std::size_t>(std::max(columns - 1, 0)));
    }
}

TEST(Options, Lists) {
    EXPECT_EQ(split_list("a"), std::vector<std::string>{"a"});
    EXPECT_EQ(split_list("a,b,c"), (std::vector<std::string>{"a", "b", "c"}));
    for (const char* list : {"", ",", "a,", ",a", "a,,b", "a,a"})
        EXPECT_THROW(split_list(list), CLI::ValidationError) << list;
}

TEST(TextFile, FaultsAreNamed) {
    EXPECT_THROW(read_text("/no/such/file"), Failure);
    EXPECT_THROW(require_utf8("-p", "\xFF"), UsageError);
    EXPECT_NO_THROW(require_utf8("-p", "fine"));
}

} // namespace
} // namespace innerkv::cli
