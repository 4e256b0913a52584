// SPDX-License-Identifier: Apache-2.0
#include "utf8.h"

#include <cstdint>

namespace innerkv::cli {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

enum class Status { complete, unfinished, invalid };

struct Character {
    Status status;
    std::size_t bytes; ///< of the character, or of the faulty prefix to be replaced
};

std::size_t length_by_lead(std::uint8_t lead) {
    if (lead < 0x80) return 1;
    if (lead >= 0xC2 && lead <= 0xDF) return 2;
    if (lead >= 0xE0 && lead <= 0xEF) return 3;
    if (lead >= 0xF0 && lead <= 0xF4) return 4;
    return 0;
}

/// The second byte's range excludes overlong forms, surrogates and code points past U+10FFFF.
bool fits(std::uint8_t lead, std::size_t index, std::uint8_t byte) {
    std::uint8_t low = 0x80;
    std::uint8_t high = 0xBF;
    if (index == 1) {
        if (lead == 0xE0) low = 0xA0;
        if (lead == 0xED) high = 0x9F;
        if (lead == 0xF0) low = 0x90;
        if (lead == 0xF4) high = 0x8F;
    }
    return byte >= low && byte <= high;
}

/// The character that `text`, not empty, begins with.
Character first_character(std::string_view text) {
    const auto lead = static_cast<std::uint8_t>(text.front());
    const std::size_t length = length_by_lead(lead);
    if (length == 0) return {Status::invalid, 1};
    for (std::size_t index = 1; index < length; ++index) {
        if (index == text.size()) return {Status::unfinished, index};
        if (!fits(lead, index, static_cast<std::uint8_t>(text[index])))
            return {Status::invalid, index};
    }
    return {Status::complete, length};
}

} // namespace

std::size_t find_invalid_utf8(std::string_view text) {
    for (std::size_t offset = 0; offset < text.size();) {
        const Character character = first_character(text.substr(offset));
        if (character.status != Status::complete) return offset;
        offset += character.bytes;
    }
    return std::string_view::npos;
}

bool ends_inside_character(std::string_view text, std::size_t offset) {
    return offset < text.size() &&
           first_character(text.substr(offset)).status == Status::unfinished;
}

std::string Utf8Stream::add(std::string_view bytes) {
    pending_ += bytes;
    std::string text;
    std::string_view rest = pending_;
    while (!rest.empty()) {
        const Character character = first_character(rest);
        if (character.status == Status::unfinished) break;
        text +=
            character.status == Status::complete ? rest.substr(0, character.bytes) : kReplacement;
        rest.remove_prefix(character.bytes);
    }
    pending_.erase(0, pending_.size() - rest.size());
    return text;
}

std::string Utf8Stream::finish() {
    std::string text(pending_.empty() ? std::string_view{} : kReplacement);
    pending_.clear();
    return text;
}

std::string printable(std::string_view text) {
    std::string result;
    while (!text.empty()) {
        const Character character = first_character(text);
        const std::string_view bytes = text.substr(0, character.bytes);
        const auto lead = static_cast<std::uint8_t>(bytes.front());
        // U+0000 to U+001F, U+007F, and U+0080 to U+009F as C2 80 to C2 9F
        const bool control = lead < 0x20 || lead == 0x7F || (lead == 0xC2 && bytes.back() < '\xA0');
        result += character.status == Status::complete && !control ? bytes : kReplacement;
        text.remove_prefix(character.bytes);
    }
    return result;
}

} // namespace innerkv::cli
