// SPDX-License-Identifier: Apache-2.0
// Text that a command is given, and what it writes to a file.
#pragma once

#include <cstdio>
#include <initializer_list>
#include <memory>
#include <string>

namespace innerkv::cli {

struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

/// As fopen; throws Failure where that fails.
File open_file(const std::string& path, const char* mode);

/// Everything from where an open file is; `name` is what a Failure calls it.
std::string read_whole(std::FILE* file, const std::string& name);

/// A file's text, or standard input's for "-"; a byte order mark is left out. Throws Failure where it
/// cannot be read, is empty, or is not UTF-8 text.
std::string read_text(const std::string& path);

/// Throws Failure where a file cannot be written: asked before a long measurement. Leaves nothing behind.
void require_writable(const std::string& path);
/// The whole text or, where that fails, a Failure and no file.
void write_file(const std::string& path, const std::string& text);

/// A file that a command reads, and what it is to it: "the model".
struct NamedFile {
    const char* what;
    std::string path; ///< empty: none
};
/// Throws UsageError where `output`, the value of `option`, is one of them.
void protect_inputs(const std::string& option, const std::string& output,
                    std::initializer_list<NamedFile> inputs);

/// Throws UsageError unless an option's value is UTF-8.
void require_utf8(const std::string& option, const std::string& value);

} // namespace innerkv::cli
