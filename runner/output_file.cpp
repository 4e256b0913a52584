// SPDX-License-Identifier: Apache-2.0
#include "runner/output_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

namespace innerkv::runner {

std::string link_target(const std::string& path) {
    constexpr int kMostLinks = 40; // as Linux; the system's own error tells of more
    std::filesystem::path target = path;
    std::error_code error;
    for (int links = 0; links < kMostLinks && std::filesystem::is_symlink(target, error); ++links) {
        target = target.parent_path() / std::filesystem::read_symlink(target, error);
    }
    return target.string();
}

std::string write_obstacle(const std::string& path) {
    const std::string target = link_target(path);
    int file = ::open(target.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file >= 0) {
        ::unlink(target.c_str()); // a run that is killed leaves no empty file
    } else if (errno == EEXIST) {
        // Without waiting for the reader of a FIFO, which may come later.
        file = ::open(target.c_str(), O_WRONLY | O_CLOEXEC | O_NONBLOCK);
    }
    if (file < 0) {
        return errno == ENXIO ? std::string() : std::strerror(errno);
    }
    ::close(file);
    return {};
}

} // namespace innerkv::runner
