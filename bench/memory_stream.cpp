// SPDX-License-Identifier: Apache-2.0
#include "memory_stream.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#include "keep.h"
#include "processor.h"
#include "read_loops.h"

namespace innerkv::bench {
namespace {

constexpr std::size_t kMebibyte = std::size_t{1} << 20;
constexpr std::size_t kSliceUnit = 4 * 4096; // up to four streams of whole pages
constexpr int kPasses = 3;
/// Of a slice, timed at once: on a busy machine a longer one is interrupted. Many times what a stream reads
/// ahead.
constexpr std::size_t kTimedBytes = std::size_t{8} << 20;

std::byte* map_memory(std::size_t bytes) {
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    madvise(data, bytes, MADV_HUGEPAGE); // a hint: fewer misses of the page table
#endif
    return static_cast<std::byte*>(data);
}

} // namespace

void MemoryStream::Free::operator()(std::byte* data) const { munmap(data, bytes); }

std::size_t MemoryStream::default_bytes() {
    const auto pages = static_cast<std::size_t>(std::max(sysconf(_SC_PHYS_PAGES), 1L));
    const auto page_bytes = static_cast<std::size_t>(std::max(sysconf(_SC_PAGESIZE), 1L));
    const std::size_t wanted = std::max(2 * last_level_cache_bytes(), 256 * kMebibyte);
    return std::min({wanted, 512 * kMebibyte, pages * page_bytes / 4});
}

MemoryStream::MemoryStream(ThreadPool& pool, std::size_t bytes)
    : pool_(pool), bytes_(bytes ? bytes : default_bytes()) {
    const auto threads = static_cast<std::size_t>(pool.threads());
    slice_bytes_ = std::max(bytes_ / threads / kSliceUnit, std::size_t{1}) * kSliceUnit;
    bytes_ = slice_bytes_ * threads;
    data_ = {map_memory(bytes_), Free{bytes_}};
    pool_.run([this](int thread) {
        // Not zeros: a page of zeros may be one page in the processor's eyes.
        std::memset(data_.get() + static_cast<std::size_t>(thread) * slice_bytes_, thread + 1,
                    slice_bytes_);
    });
}

MemoryStream::~MemoryStream() = default;

double MemoryStream::read_bandwidth() {
    using Clock = std::chrono::steady_clock;
    std::vector<std::uint64_t> sums(static_cast<std::size_t>(pool_.threads()));
    double best = 0;
    const ReadLoop loop = supported_read_loops().front();
    const std::size_t timed_bytes = std::min(kTimedBytes, slice_bytes_);
    for (const int streams : {1, 2, 4}) {
        for (int pass = 0; pass < kPasses; ++pass) {
            for (std::size_t at = 0; at + timed_bytes <= slice_bytes_; at += timed_bytes) {
                const auto start = Clock::now();
                pool_.run([&](int thread) {
                    const auto index = static_cast<std::size_t>(thread);
                    sums[index] =
                        loop(data_.get() + index * slice_bytes_ + at, timed_bytes, streams);
                });
                const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
                best = std::max(best, static_cast<double>(timed_bytes * sums.size()) / seconds);
            }
        }
    }
    keep(sums.data());
    return best;
}

void MemoryStream::flush_caches() {
    std::uint64_t sum = 0;
    for (std::size_t offset = 0; offset < bytes_; offset += slice_bytes_)
        sum += supported_read_loops().front()(data_.get() + offset, slice_bytes_, 1);
    keep(&sum);
}

} // namespace innerkv::bench
