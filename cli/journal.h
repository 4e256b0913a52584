// SPDX-License-Identifier: Apache-2.0
// Finished items of a long measurement in a file, one JSON object a line, so that a run that was
// stopped goes on where it was. The first line says what was measured; the file may only be gone on
// with by a run that measures the same. What it holds is checked like any other input.
#pragma once

#include <cstdio>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "contest.h"
#include "output.h"
#include "text_file.h"

namespace innerkv::cli {

class Journal {
public:
    /// `rows` are those of every item that there is, none where text is generated; `caches` take part.
    /// An empty path: nothing is read or kept. Throws Failure where the file is another measurement's,
    /// naming the first difference, where it is broken, naming the line, and where another process
    /// writes it. A last line without an end was being written when a run was killed and is cut off.
    Journal(std::string path, const Json& header, std::vector<std::size_t> rows,
            std::size_t caches);

    /// The standings of an item that is done, or null.
    const std::vector<Standing>* find(std::size_t item) const;
    /// Keeps and writes an item. Throws Failure where it cannot be written.
    void add(std::size_t item, std::vector<Standing> standings);

private:
    void open();
    void read(const Json& header);
    void check_header(std::string_view line, const Json& header) const;
    void read_item(std::string_view line, std::size_t number);
    void check(const std::vector<Standing>& standings, std::size_t item) const;
    void write_line(const Json& json);

    std::string path_;
    std::vector<std::size_t> rows_;
    std::size_t caches_;
    File file_;
    std::map<std::size_t, std::vector<Standing>> done_;
};

/// Where two objects differ first, "ctx is 512 there and 1024 here"; empty where they do not.
std::string header_difference(const Json& theirs, const Json& ours);

/// A hash of a file's bytes. Throws Failure where it cannot be read.
std::string file_fingerprint(const std::string& path);

} // namespace innerkv::cli
