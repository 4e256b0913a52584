// SPDX-License-Identifier: Apache-2.0
// Instructions that C++ has no name for, one function each. Nothing here knows of pages.
#pragma once

#include <cstdint>

namespace innerkv::cuda {

/// 12582912: a float from 2^23 to 2^24 counts in ones, so an integer below 2^22 added to this one's bits is
/// added to its value. Accumulators of integer products start with it and are floats without a conversion,
/// which would take a quarter of the rate.
inline constexpr std::uint32_t kMagicBits = 0x4b400000;
inline constexpr float kMagic = 12582912.0f;

struct Accumulator {
    std::uint32_t value[4];
    __device__ float at(int i) const { return __uint_as_float(value[i]); }
};

__device__ inline Accumulator magic_accumulator() {
    return {{kMagicBits, kMagicBits, kMagicBits, kMagicBits}};
}

/// c += a . b: a is 16 rows x 32 unsigned bytes, b 32 signed bytes x 8 columns. Lane 4g + i holds rows g (a0, a2) and
/// g + 8 (a1, a3), bytes 4i.. (a0, a1, b0) and 16 + 4i.. (a2, a3, b1), column g of b; of c columns 2i and
/// 2i + 1 of row g (0, 1) and of row g + 8 (2, 3).
__device__ inline void multiply_u8_s8(Accumulator& c, std::uint32_t a0, std::uint32_t a1,
                                      std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                      std::uint32_t b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, "
        "%9}, "
        "{%0, %1, %2, %3};"
        : "+r"(c.value[0]), "+r"(c.value[1]), "+r"(c.value[2]), "+r"(c.value[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// The same with b unsigned.
__device__ inline void multiply_u8_u8(Accumulator& c, std::uint32_t a0, std::uint32_t a1,
                                      std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                      std::uint32_t b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, "
        "%9}, "
        "{%0, %1, %2, %3};"
        : "+r"(c.value[0]), "+r"(c.value[1]), "+r"(c.value[2]), "+r"(c.value[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// c += a . b in fp16 with fp32 sums: 16 rows x 16, 16 x 8 columns. a0: row g, elements 2i, 2i + 1; a1: row g + 8; a2
/// and a3: 8 elements on; b0, b1 likewise for column g; c as above.
__device__ inline void multiply_f16(float (&c)[4], std::uint32_t a0, std::uint32_t a1,
                                    std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                    std::uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// 2^x to 2^-22; 0 below 2^-126.
__device__ inline float fast_exp2(float x) {
    float result = 0.0f;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

/// The second byte, its sign in the three above. (__byte_perm does not know of signs.)
__device__ inline int second_signed_byte(std::uint32_t word) {
    int result = 0;
    asm("prmt.b32 %0, %1, 0, 0x9991;" : "=r"(result) : "r"(word));
    return result;
}

/// Adds to a counter that blocks share: what this thread saw written before is seen by whom sees the sum, and the other
/// way round. Returns what it was.
__device__ inline int add_acquire_release(int* counter, int value) {
    int before = 0;
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(counter), "r"(value)
                 : "memory");
    return before;
}

/// A line of 128 bytes into the second-level cache; nothing waits for it.
__device__ inline void prefetch_line(const void* global) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

/// 16 bytes from global to shared memory, behind the thread's back until wait_for_copies.
__device__ inline void copy_16_bytes(void* shared, const void* global) {
    const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// All but the newest `pending` groups of this thread have arrived.
template <int pending>
__device__ inline void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

} // namespace innerkv::cuda
