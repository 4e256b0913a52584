// SPDX-License-Identifier: Apache-2.0
// Quantized pages of a warp on their way into its ring of shared memory, a few pages ahead of those that are read.
#pragma once

#include "cuda/layout.cuh"
#include "cuda/ptx.cuh"

namespace innerkv::cuda {

/// Where byte `offset` of a page, a multiple of 16, goes.
template <class S>
__device__ inline int place_in_block(int offset) {
    return offset < S::code_bytes ? swizzled<S::bits>(offset) : offset;
}
template <class C>
__device__ inline int place_in_page(int offset) {
    if (offset < C::kValueOffset) {
        const int block = offset / C::Key::block_bytes * C::Key::block_bytes;
        return block + place_in_block<typename C::Key>(offset - block);
    }
    const int side = offset - C::kValueOffset;
    const int block = side / C::Value::block_bytes * C::Value::block_bytes;
    return C::kValueOffset + block + place_in_block<typename C::Value>(side - block);
}

/// Pages first, first + step, ... of a run: `count` of them.
template <class C>
class PageStream {
public:
    __device__ PageStream(const Run& run, int kv_head, int first, int step, int count,
                          unsigned char* ring, int lane)
        : pages_(run.pages), head_offset_(run.head_stride * static_cast<unsigned>(kv_head)),
          first_(first), step_(step), count_(count), ring_(ring), lane_(lane) {
        load_pointers();
        if constexpr (kRemembers) {
#pragma unroll
            for (int chunk = 0; chunk < kChunks; ++chunk) {
                places_[chunk] = place_in_page<C>(kChunkBytes * chunk + 16 * lane);
                asm("" : "+r"(places_[chunk])); // a register, not the computation again
            }
        }
    }

    /// Sends the first pages, whose pointers have been on their way since this was made.
    __device__ void begin() {
#pragma unroll
        for (int stage = 0; stage < C::kStages - 1; ++stage) send_next();
    }

    /// The next page, in shared memory until next() is called again. All lanes call it.
    __device__ const unsigned char* next() {
        wait_for_copies<C::kStages - 2>();
        __syncwarp(); // what all lanes copied is there, and all have read the page before
        const unsigned char* page = ring_ + read_stage_ * C::kPageBytes;
        read_stage_ = read_stage_ + 1 == C::kStages ? 0 : read_stage_ + 1;
        send_next();
        return page;
    }

private:
    static constexpr int kChunkBytes = 16 * kWarpSize;
    static constexpr int kChunks = (C::kPageBytes + kChunkBytes - 1) / kChunkBytes;
    static constexpr bool kRemembers = kChunks <= 10; ///< where this lane's chunks go

    __device__ int place(int chunk) const {
        if constexpr (kRemembers) return places_[chunk];
        return place_in_page<C>(kChunkBytes * chunk + 16 * lane_);
    }

    __device__ void send_next() {
        if (sent_ < count_) {
            if (sent_ > 0 && sent_ % kWarpSize == 0) load_pointers();
            const unsigned char* from = reinterpret_cast<const unsigned char*>(
                __shfl_sync(~0u, pointer_, sent_ % kWarpSize));
            unsigned char* to = ring_ + send_stage_ * C::kPageBytes;
#pragma unroll
            for (int chunk = 0; chunk < kChunks; ++chunk) {
                const int offset = kChunkBytes * chunk + 16 * lane_;
                if (kChunkBytes * (chunk + 1) <= C::kPageBytes || offset < C::kPageBytes)
                    copy_16_bytes(to + place(chunk), from + offset);
            }
            send_stage_ = send_stage_ + 1 == C::kStages ? 0 : send_stage_ + 1;
            ++sent_;
        }
        commit_copies();
    }

    /// Of the next 32 pages, one a lane.
    __device__ void load_pointers() {
        const int index = sent_ + lane_;
        if (index < count_)
            pointer_ =
                reinterpret_cast<unsigned long long>(pages_[first_ + index * step_]) + head_offset_;
    }

    const std::byte* const* pages_;
    unsigned long long head_offset_;
    unsigned long long pointer_ = 0;
    int first_;
    int step_;
    int count_;
    int sent_ = 0;
    int send_stage_ = 0;
    int read_stage_ = 0;
    int places_[kRemembers ? kChunks : 1];
    unsigned char* ring_;
    int lane_;
};

} // namespace innerkv::cuda
