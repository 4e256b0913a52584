// SPDX-License-Identifier: Apache-2.0
// Barriers in shared memory, and copies that arrive at them (sm_90).
#pragma once

#include "cuda/prefill/wgmma.cuh"

namespace innerkv::cuda {

struct alignas(8) Barrier {
    std::uint64_t state;

    /// A phase is over when so many have arrived, and the bytes they expect.
    __device__ void init(int arrivals) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)),
                     "r"(arrivals)
                     : "memory");
    }
    __device__ void arrive() {
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this))
                     : "memory");
    }
    __device__ void arrive_and_expect(int bytes) {
        asm volatile(
            "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)),
            "r"(bytes)
            : "memory");
    }
    /// Until the phase of this parity is over; the one before the first counts as over, with parity 1.
    __device__ void wait(int parity) {
        asm volatile("{.reg .pred done;\n"
                     "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                     "@!done bra again; }" ::"r"(shared_address(this)),
                     "r"(parity)
                     : "memory");
    }
};

/// What init() wrote is seen by copies and by other threads once they have met.
__device__ inline void publish_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
/// What this thread wrote to shared memory is seen by products and copies, once threads have met.
__device__ inline void publish_shared() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// `bytes`, a multiple of 16, from global to shared memory; they arrive at the barrier.
__device__ inline void copy_to_shared(void* shared, const void* global, int bytes,
                                      Barrier& barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], "
                 "%2, [%3];" ::"r"(shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(shared_address(&barrier))
                 : "memory");
}

/// Threads of one warpgroup meet, by number of the barrier: 1 .. 15.
__device__ inline void meet_warpgroup(int number) {
    asm volatile("bar.sync %0, 128;" ::"r"(number) : "memory");
}

/// Registers of each thread of a warpgroup from here on.
template <int count>
__device__ inline void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
__device__ inline void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}

} // namespace innerkv::cuda
