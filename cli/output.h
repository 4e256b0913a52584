// SPDX-License-Identifier: Apache-2.0
// Results on stdout: text, tables, JSON. Nothing else in the program writes there.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

namespace innerkv::cli {

/// Fields come out in the order they were put in.
using Json = nlohmann::ordered_json;

/// Writes and flushes. Throws ClosedPipe where the reader is gone, Failure on any other fault.
void write_output(std::string_view text);

/// One object and a line end; bytes that are not UTF-8 become U+FFFD.
void write_json(const Json& json);

/// A table with aligned columns; the first is left-aligned, the others right-aligned.
class Table {
public:
    explicit Table(std::vector<std::string> header);
    void add(std::vector<std::string> row);
    std::string text() const;

private:
    std::vector<std::vector<std::string>> rows_;
};

/// What something is, line by line: names of up to 15 letters and values, made printable.
using NamedLine = std::pair<const char*, std::string>;
std::string named_lines(std::span<const NamedLine> lines);

/// "512 bytes", "1.5 MiB".
std::string format_bytes(std::uint64_t bytes);
/// "8 s", "3 min 20 s".
std::string format_duration(double seconds);

} // namespace innerkv::cli
