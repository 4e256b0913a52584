// SPDX-License-Identifier: Apache-2.0
// UTF-8: tokens end inside characters, terminals and JSON want whole ones.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace innerkv::cli {

/// Offset of the first byte that is not part of well-formed UTF-8; npos where there is none.
std::size_t find_invalid_utf8(std::string_view text);

/// Whether the text from `offset` on is the beginning of a character and nothing else.
bool ends_inside_character(std::string_view text, std::size_t offset);

/// Passes bytes on in whole characters. Bytes that cannot become one are replaced by U+FFFD.
class Utf8Stream {
public:
    /// Adds bytes; returns the characters that are complete now.
    std::string add(std::string_view bytes);
    /// What is left at the end: nothing, or U+FFFD for an unfinished character.
    std::string finish();

private:
    std::string pending_;
};

/// For a terminal, where a file's text must not act: bytes that are not UTF-8 and control characters
/// become U+FFFD.
std::string printable(std::string_view text);

} // namespace innerkv::cli
