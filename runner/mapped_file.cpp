// SPDX-License-Identifier: Apache-2.0
#include "mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "runner/runner.h"

namespace innerkv::runner {
namespace {

/// Closes the descriptor; a mapping outlives it.
struct Descriptor {
    int value;
    ~Descriptor() {
        if (value >= 0) {
            ::close(value);
        }
    }
};

[[noreturn]] void fail(const std::string& path, const std::string& what) {
    throw ModelError(path + ": " + what);
}

} // namespace

MappedFile::MappedFile(const std::string& path) {
    // Without waiting: a FIFO's other end may never be opened.
    const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    if (file.value < 0) {
        fail(path, std::string("cannot open: ") + std::strerror(errno));
    }
    struct stat status {};
    if (::fstat(file.value, &status) != 0 || !S_ISREG(status.st_mode)) {
        fail(path, "is not a regular file; a GGUF file is expected");
    }
    if (status.st_size == 0) {
        fail(path, "is empty; a GGUF file is expected");
    }
    size_ = static_cast<std::size_t>(status.st_size);
    void* const mapping = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.value, 0);
    if (mapping == MAP_FAILED) {
        fail(path, std::string("cannot map the file into memory: ") + std::strerror(errno));
    }
    data_ = static_cast<std::byte*>(mapping);
}

MappedFile::~MappedFile() { ::munmap(data_, size_); }

void MappedFile::prefetch() const { ::madvise(data_, size_, MADV_WILLNEED); }

void MappedFile::release(std::size_t offset, std::size_t size) const {
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    const std::size_t begin = (offset + page - 1) / page * page;
    const std::size_t end = (offset + size) / page * page;
    if (begin < end) {
        ::madvise(data_ + begin, end - begin, MADV_DONTNEED);
    }
}

} // namespace innerkv::runner
