// SPDX-License-Identifier: Apache-2.0
// FNV-1a, 64 bits: tells files and texts apart, protects against damage and not against intent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>

namespace innerkv::runner {

class Hash {
public:
    void add(const void* data, std::size_t bytes) {
        const auto* next = static_cast<const unsigned char*>(data);
        for (const unsigned char* end = next + bytes; next != end; ++next) {
            state_ = (state_ ^ *next) * 0x100000001b3u;
        }
    }
    /// Eight bytes a step, for files of gigabytes: another hash than that of the bytes.
    void add_words(const void* data, std::size_t words) {
        const auto* next = static_cast<const unsigned char*>(data);
        for (std::size_t index = 0; index < words; ++index, next += 8) {
            std::uint64_t word;
            std::memcpy(&word, next, sizeof word);
            state_ = (state_ ^ word) * 0x100000001b3u;
        }
    }
    void add(std::string_view bytes) { add(bytes.data(), bytes.size()); }
    void add(std::int64_t number) { add(&number, sizeof number); }
    /// With its length, so that what follows cannot be taken for a part of it.
    void add_text(std::string_view text) {
        add(static_cast<std::int64_t>(text.size()));
        add(text);
    }
    /// 16 hexadecimal digits.
    std::string text() const {
        char digits[17];
        std::snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(state_));
        return digits;
    }

private:
    std::uint64_t state_ = 0xcbf29ce484222325u;
};

} // namespace innerkv::runner
