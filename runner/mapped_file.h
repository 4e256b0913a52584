// SPDX-License-Identifier: Apache-2.0
// A file mapped read-only.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace innerkv::runner {

class MappedFile {
public:
    /// Throws ModelError where the file cannot be read or is empty.
    explicit MappedFile(const std::string& path);
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    std::span<const std::byte> bytes() const { return {data_, size_}; }
    /// Asks the system to read the file ahead.
    void prefetch() const;
    /// The range is not needed any more: its whole pages may leave memory.
    void release(std::size_t offset, std::size_t size) const;

private:
    std::byte* data_ = nullptr;
    std::size_t size_ = 0;
};

} // namespace innerkv::runner
