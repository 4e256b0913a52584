// SPDX-License-Identifier: Apache-2.0
#include "text_file.h"

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include <fmt/format.h>

#include "errors.h"
#include "runner/output_file.h"
#include "utf8.h"

namespace innerkv::cli {
namespace {

void require_text(const std::string& text, const std::string& name) {
    std::size_t offset = text.find('\0');
    if (offset == std::string::npos) offset = find_invalid_utf8(text);
    if (offset == std::string::npos) return;
    if (ends_inside_character(text, offset))
        throw Failure(
            fmt::format("{} ends inside a UTF-8 character, which begins at offset {}; it was "
                        "cut off",
                        name, offset));
    throw Failure(fmt::format("{} is not UTF-8 text: byte 0x{:02x} at offset {}; convert it first, "
                              "for example with iconv",
                              name, static_cast<std::uint8_t>(text[offset]), offset));
}

} // namespace

File open_file(const std::string& path, const char* mode) {
    File file(std::fopen(path.c_str(), mode));
    if (!file) throw Failure(fmt::format("cannot open {}: {}", path, std::strerror(errno)));
    return file;
}

std::string read_whole(std::FILE* file, const std::string& name) {
    std::string text;
    char block[1 << 16];
    std::size_t count = 0;
    errno = 0;
    while ((count = std::fread(block, 1, sizeof block, file)) > 0) text.append(block, count);
    if (std::ferror(file))
        throw Failure(fmt::format("cannot read {}: {}", name, std::strerror(errno)));
    return text;
}

std::string read_text(const std::string& path) {
    const bool standard_input = path == "-";
    const std::string name = standard_input ? "standard input" : path;
    std::string text;
    if (standard_input) {
        text = read_whole(stdin, name);
    } else {
        text = read_whole(open_file(path, "rb").get(), name);
    }
    if (text.starts_with("\xEF\xBB\xBF")) text.erase(0, 3);
    if (text.empty()) throw Failure(fmt::format("{} is empty", name));
    require_text(text, name);
    return text;
}

void require_writable(const std::string& path) {
    const std::string obstacle = runner::write_obstacle(path);
    if (!obstacle.empty()) throw Failure(fmt::format("cannot write {}: {}", path, obstacle));
}

void write_file(const std::string& path, const std::string& text) {
    std::FILE* const file = std::fopen(path.c_str(), "wb");
    if (!file) throw Failure(fmt::format("cannot write {}: {}", path, std::strerror(errno)));
    errno = 0;
    const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
    const bool flushed = std::fflush(file) == 0;
    const int reason = errno;
    if (std::fclose(file) == 0 && written && flushed) return;
    std::error_code error;
    if (std::filesystem::is_regular_file(path, error))
        std::filesystem::remove(runner::link_target(path), error);
    throw Failure(fmt::format("cannot write {}: {}", path, std::strerror(reason ? reason : EIO)));
}

void protect_inputs(const std::string& option, const std::string& output,
                    std::initializer_list<NamedFile> inputs) {
    for (const NamedFile& input : inputs) {
        std::error_code error;
        // The names too: a file to resume from may not be there yet.
        if (input.path == output || std::filesystem::equivalent(input.path, output, error))
            throw UsageError(fmt::format("{} {} is the file that {} is read from; choose another",
                                         option, output, input.what));
    }
}

void require_utf8(const std::string& option, const std::string& value) {
    const std::size_t offset = find_invalid_utf8(value);
    if (offset != std::string::npos)
        throw UsageError(fmt::format("{}: not UTF-8 at byte {}", option, offset));
}

} // namespace innerkv::cli
