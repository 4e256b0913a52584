// SPDX-License-Identifier: Apache-2.0
#include "journal.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "errors.h"
#include "runner/hash.h"
#include "standing.h"

namespace innerkv::cli {
std::string file_fingerprint(const std::string& path) {
    const File file = open_file(path, "rb");
    runner::Hash hash;
    std::int64_t size = 0;
    std::vector<char> block(std::size_t{1} << 20);
    std::size_t count = 0;
    while ((count = std::fread(block.data(), 1, block.size(), file.get())) > 0) {
        size += static_cast<std::int64_t>(count);
        std::fill(block.begin() + static_cast<std::ptrdiff_t>(count), block.end(), '\0');
        hash.add_words(block.data(), (count + 7) / 8);
    }
    if (std::ferror(file.get()))
        throw Failure(fmt::format("cannot read {}: {}", path, std::strerror(errno)));
    hash.add(size); // tells apart what the last word was filled up with
    return hash.text();
}

std::string header_difference(const Json& theirs, const Json& ours) {
    const auto shown = [](const Json& json) {
        return json.dump(-1, ' ', false, Json::error_handler_t::replace);
    };
    for (const auto& [name, value] : ours.items()) {
        if (!theirs.contains(name))
            return fmt::format("{} is not there and {} here", name, shown(value));
        if (theirs[name] != value)
            return fmt::format("{} is {} there and {} here", name, shown(theirs[name]),
                               shown(value));
    }
    for (const auto& [name, value] : theirs.items())
        if (!ours.contains(name))
            return fmt::format("{} is {} there and not here", name, shown(value));
    return {};
}

Journal::Journal(std::string path, const Json& header, std::vector<std::size_t> rows,
                 std::size_t caches)
    : path_(std::move(path)), rows_(std::move(rows)), caches_(caches) {
    if (path_.empty()) return;
    open();
    // A model's name may be no UTF-8; what is compared is what the file can hold.
    read(Json::parse(header.dump(-1, ' ', false, Json::error_handler_t::replace)));
}

void Journal::open() {
    file_ = open_file(path_, "a+b");
    struct stat status {};
    if (fstat(fileno(file_.get()), &status) != 0 || !S_ISREG(status.st_mode))
        throw Failure(fmt::format("{} is not a regular file, which --resume needs", path_));
    if (flock(fileno(file_.get()), LOCK_EX | LOCK_NB) != 0)
        throw Failure(fmt::format("{} is in use by another run", path_));
}

void Journal::read(const Json& header) {
    const std::string text = read_whole(file_.get(), path_);
    const std::string first_line = header.dump() + "\n";
    std::size_t begin = 0;
    std::size_t number = 0;
    for (std::size_t end = 0; (end = text.find('\n', begin)) != std::string::npos;
         begin = end + 1) {
        const std::string_view line = std::string_view(text).substr(begin, end - begin);
        if (++number == 1)
            check_header(line, header);
        else
            read_item(line, number);
    }
    // Only what a run of ours may have left behind is cut off.
    if (number == 0 && !first_line.starts_with(text))
        throw Failure(fmt::format("{} is not a file that --resume wrote; name another", path_));
    if (begin < text.size() && ftruncate(fileno(file_.get()), static_cast<off_t>(begin)) != 0)
        throw Failure(fmt::format("cannot write to {}: {}", path_, std::strerror(errno)));
    if (number == 0) write_line(header);
}

void Journal::check_header(std::string_view line, const Json& header) const {
    const Json theirs = Json::parse(line, nullptr, false);
    if (!theirs.is_object() || !theirs.contains("innerkv"))
        throw Failure(fmt::format("{}:1: not a file that --resume wrote; name another", path_));
    const std::string difference = header_difference(theirs, header);
    if (!difference.empty())
        throw Failure(fmt::format("{} belongs to another measurement: {}; give the same options or "
                                  "another file",
                                  path_, difference));
}

void Journal::read_item(std::string_view line, std::size_t number) {
    try {
        const Json json = Json::parse(line, nullptr, false);
        if (!json.is_object() || !json.contains("item") || !json.contains("caches"))
            throw Failure("this is no finished item");
        const Json& item = json["item"];
        if (!item.is_number_unsigned() || item.get<std::uint64_t>() >= rows_.size())
            throw Failure(fmt::format("item {}; there are {}", item.dump(), rows_.size()));
        std::vector<Standing> standings = standings_from_json(json["caches"]);
        const auto index = item.get<std::size_t>();
        check(standings, index);
        if (!done_.emplace(index, std::move(standings)).second)
            throw Failure(fmt::format("item {} is there twice", index));
    } catch (const Failure& error) {
        throw Failure(
            fmt::format("{}:{}: {}; without this line the item is measured again, or name "
                        "another file",
                        path_, number, error.what()));
    }
}

void Journal::check(const std::vector<Standing>& standings, std::size_t item) const {
    if (standings.size() != caches_)
        throw Failure(fmt::format("{} caches where {} take part", standings.size(), caches_));
    const std::int64_t generated = standings.front().generated;
    const bool generates = rows_[item] == 0;
    for (const Standing& standing : standings) {
        if (standing.rows.size() != rows_[item])
            throw Failure(fmt::format("{} rows in item {}, which has {}", standing.rows.size(),
                                      item, rows_[item]));
        if (standing.generated != generated || generates != (generated > 0) ||
            standing.common > generated)
            throw Failure(fmt::format("{} of {} tokens generated in item {}", standing.common,
                                      standing.generated, item));
        if (standing.report.tokens < static_cast<std::int64_t>(standing.rows.size()))
            throw Failure(fmt::format("{} rows from {} tokens in item {}", standing.rows.size(),
                                      standing.report.tokens, item));
    }
}

const std::vector<Standing>* Journal::find(std::size_t item) const {
    const auto found = done_.find(item);
    return found == done_.end() ? nullptr : &found->second;
}

void Journal::add(std::size_t item, std::vector<Standing> standings) {
    if (file_) write_line({{"item", item}, {"caches", to_json(standings)}});
    done_[item] = std::move(standings);
}

void Journal::write_line(const Json& json) {
    const std::string line = json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    const bool written = std::fwrite(line.data(), 1, line.size(), file_.get()) == line.size();
    if (!written || std::fflush(file_.get()) != 0)
        throw Failure(fmt::format("cannot write to {}: {}", path_, std::strerror(errno)));
}

} // namespace innerkv::cli
