// SPDX-License-Identifier: Apache-2.0
// A buffer larger than the caches: what the memory can deliver, and a way to empty the caches.
#pragma once

#include <cstddef>
#include <memory>

#include "thread_pool.h"

namespace innerkv::bench {

class MemoryStream {
public:
    /// Each thread of the pool touches its own slice first. 0 bytes: default_bytes().
    explicit MemoryStream(ThreadPool& pool, std::size_t bytes = 0);
    ~MemoryStream();

    /// Twice the last-level cache, at least 256 MiB; at most 512 MiB and a quarter of the memory.
    static std::size_t default_bytes();

    std::size_t bytes() const { return bytes_; }

    /// Bytes per second of the fastest 8 MiB a thread of several passes, every thread reading its own slice
    /// as one, two or four streams with the widest registers there are.
    double read_bandwidth();

    /// One pass: what the caches held before is gone.
    void flush_caches();

private:
    struct Free {
        std::size_t bytes;
        void operator()(std::byte* data) const;
    };

    ThreadPool& pool_;
    std::size_t bytes_;
    std::size_t slice_bytes_; ///< a multiple of 4 pages
    std::unique_ptr<std::byte, Free> data_;
};

} // namespace innerkv::bench
