// SPDX-License-Identifier: Apache-2.0
// Quantized pages of a warp on their way into its ring of shared memory, a few pages ahead of those that are read.
#pragma once

#include <type_traits>

#include "cuda/layout.cuh"
#include "cuda/ptx.cuh"

namespace innerkv::cuda {

/// Where byte `offset` of a block, a multiple of 16, goes.
template <class S>
__device__ inline int place_in(int offset) {
    return offset < S::code_bytes ? swizzled<S::bits>(offset) : offset;
}

/// Pages first, first + step, ... of a run: `count` of them. Keys and values come apart: while one side of a page is read,
/// its other side, or the next page's, takes the place of the side that was read before. So half a page less than the
/// ring is on its way at most. With more, multiprocessors compete for the memory and some of them lose: the slowest one
/// took 20% longer than the mean, which is now 3%.
template <class C>
class PageStream {
public:
    __device__ PageStream(const Run& run, int kv_head, int first, int step, int count,
                          unsigned char* ring, int lane)
        : pages_(run.pages), head_offset_(run.head_stride * static_cast<unsigned>(kv_head)),
          first_(first), step_(step), count_(count), ring_(ring), lane_(lane) {
        load_pointers(0);
        if constexpr (kRemembers) {
#pragma unroll
            for (int chunk = 0; chunk < kKeyChunks; ++chunk) {
                places_[chunk] = place_in_block<Key>(chunk);
                asm("" : "+r"(places_[chunk])); // a register, not the computation again
            }
        }
    }

    /// Sends the first pages, whose pointers have been on their way since this was made.
    __device__ void begin() {
#pragma unroll
        for (int page = 0; page < C::kPages; ++page) {
            if (page < count_) {
                send_keys(page, page);
                send_values(page, page);
            }
            commit_copies();
        }
#pragma unroll
        for (int more = 1; more < C::kPages; ++more) commit_copies();
    }

    /// The next page, its keys in shared memory until values() is called. All lanes call it.
    __device__ const unsigned char* keys() {
        wait();
        constexpr int kAhead = C::kPages - 1;
        if (read_ > 0 && read_ + kAhead < count_)
            send_values(read_ + kAhead, slot_of(slot_ + kAhead));
        commit_copies();
        return ring_ + slot_ * C::kPageBytes;
    }

    /// Its values, until keys() is called again. All lanes call it.
    __device__ const unsigned char* values() {
        wait();
        const unsigned char* page = ring_ + slot_ * C::kPageBytes;
        if (read_ + C::kPages < count_) send_keys(read_ + C::kPages, slot_);
        commit_copies();
        ++read_;
        slot_ = slot_of(slot_ + 1);
        return page + C::kValueOffset;
    }

private:
    using Key = typename C::Key;
    using Value = typename C::Value;
    static constexpr int kChunkBytes = 16 * kWarpSize;
    static constexpr int chunks_of(int bytes) { return (bytes + kChunkBytes - 1) / kChunkBytes; }
    static constexpr int kKeyChunks = chunks_of(C::kValueOffset);
    static constexpr bool kRemembers = kKeyChunks <= 5; ///< where this lane's chunks of keys go

    __device__ static int slot_of(int index) {
        return index >= C::kPages ? index - C::kPages : index;
    }

    __device__ void wait() {
        wait_for_copies<2 * C::kPages - 2>();
        __syncwarp(); // what all lanes copied is there, and all have read what was read before
    }

    /// Where this lane's bytes of a side's chunk go.
    template <class S>
    __device__ int place_in_block(int chunk) const {
        const int offset = kChunkBytes * chunk + 16 * lane_;
        const int block = offset / S::block_bytes * S::block_bytes;
        return block + place_in<S>(offset - block);
    }
    template <class S>
    __device__ int place(int chunk) const {
        if constexpr (kRemembers && std::is_same_v<S, Key>) return places_[chunk];
        return place_in_block<S>(chunk);
    }

    template <class S>
    __device__ void send(unsigned char* to, const unsigned char* from) const {
        constexpr int kBytes = C::kBlocks * S::block_bytes;
#pragma unroll
        for (int chunk = 0; chunk < chunks_of(kBytes); ++chunk) {
            const int offset = kChunkBytes * chunk + 16 * lane_;
            if (kChunkBytes * (chunk + 1) <= kBytes || offset < kBytes)
                copy_16_bytes(to + place<S>(chunk), from + offset);
        }
    }
    __device__ void send_keys(int page, int slot) {
        if (page > 0 && page % kWarpSize == 0) load_pointers(page);
        send<Key>(ring_ + slot * C::kPageBytes, page_at(page));
    }
    __device__ void send_values(int page, int slot) const {
        send<Value>(ring_ + slot * C::kPageBytes + C::kValueOffset,
                    page_at(page) + C::kValueOffset);
    }

    /// Of the 32 pages from `page` on, one a lane.
    __device__ void load_pointers(int page) {
        const int index = page + lane_;
        if (index < count_)
            pointer_ =
                reinterpret_cast<unsigned long long>(pages_[first_ + index * step_]) + head_offset_;
    }
    __device__ const unsigned char* page_at(int page) const {
        return reinterpret_cast<const unsigned char*>(__shfl_sync(~0u, pointer_, page % kWarpSize));
    }

    const std::byte* const* pages_;
    unsigned long long head_offset_;
    unsigned long long pointer_ = 0;
    int first_;
    int step_;
    int count_;
    int read_ = 0; ///< pages that have been read
    int slot_ = 0; ///< of the next one
    int places_[kRemembers ? kKeyChunks : 1];
    unsigned char* ring_;
    int lane_;
};

} // namespace innerkv::cuda
