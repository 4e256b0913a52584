// SPDX-License-Identifier: Apache-2.0
// src/cuda/ptx.cuh in C++: found in its place.
#pragma once

#include <cstdint>

namespace innerkv::cuda {

inline constexpr std::uint32_t kMagicBits = 0x4b400000;
inline constexpr float kMagic = 12582912.0f;

struct Accumulator {
    std::uint32_t value[4];
    float at(int i) const { return __uint_as_float(value[i]); }
};

inline Accumulator magic_accumulator() {
    return {{kMagicBits, kMagicBits, kMagicBits, kMagicBits}};
}

/// Element `index` of an operand register: of 4 bytes, or of 2 halves.
template <typename Element>
float element_of(std::uint32_t word, int index) {
    if constexpr (std::is_same_v<Element, __half>)
        return __half2float(__ushort_as_half(static_cast<unsigned short>(word >> (16 * index))));
    else
        return static_cast<float>(static_cast<Element>(word >> (8 * index)));
}

/// The sums of a product of 16 rows and 8 columns that a lane gets: `per_word` elements a register, lanes of a row four
/// side by side. Words: a0 .. a3, b0, b1.
template <typename A, typename B, typename Add>
void multiply(const simt::Words& mine, const Add& add) {
    const simt::Words* all = simt::meet_warp(mine);
    const int g = simt::lane() / 4;
    const int i = simt::lane() % 4;
    constexpr int kElements = 4 / sizeof(A);
    for (int c = 0; c < 4; ++c) {
        const int upper = c / 2; // rows g + 8
        const int column = 2 * i + c % 2;
        double sum = 0;
        for (int half = 0; half < 2; ++half)
            for (int from = 0; from < 4; ++from)
                for (int e = 0; e < kElements; ++e)
                    sum += static_cast<double>(
                               element_of<A>(all[4 * g + from].word[2 * half + upper], e)) *
                           static_cast<double>(
                               element_of<B>(all[4 * column + from].word[4 + half], e));
        add(c, sum);
    }
}

inline void multiply_u8_s8(Accumulator& c, std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                           std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
    multiply<std::uint8_t, std::int8_t>({{a0, a1, a2, a3, b0, b1}}, [&](int at, double sum) {
        c.value[at] += static_cast<std::uint32_t>(static_cast<std::int32_t>(sum));
    });
}
inline void multiply_u8_u8(Accumulator& c, std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                           std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
    multiply<std::uint8_t, std::uint8_t>({{a0, a1, a2, a3, b0, b1}}, [&](int at, double sum) {
        c.value[at] += static_cast<std::uint32_t>(sum);
    });
}
inline void multiply_f16(float (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                         std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
    multiply<__half, __half>({{a0, a1, a2, a3, b0, b1}},
                             [&](int at, double sum) { c[at] += static_cast<float>(sum); });
}

inline float fast_exp2(float x) {
    const float result = std::exp2(x);
    return result < 0x1p-126f ? 0.0f : result;
}

inline int second_signed_byte(std::uint32_t word) { return static_cast<std::int8_t>(word >> 8); }

inline int add_acquire_release(int* counter, int value) { return atomicAdd(counter, value); }

inline void prefetch_line(const void* /*global*/) {}

inline void copy_16_bytes(void* shared, const void* global) { std::memcpy(shared, global, 16); }
inline void commit_copies() {}
template <int pending>
inline void wait_for_copies() {}

} // namespace innerkv::cuda
