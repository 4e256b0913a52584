// SPDX-License-Identifier: Apache-2.0
// CUDA threads on one CPU thread, so that kernels can be tested where there is no device: what device code calls
// beside C++, included in front of it by the compiler's command line. Blocks run one after the other, their threads as
// coroutines that change places where a warp or a block meets. Right, not fast; races between warps that no barrier
// orders do not show.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace simt {

struct Place {
    unsigned x = 0;
    unsigned y = 0;
    unsigned z = 0;
};

/// Of the thread that runs.
struct Builtins {
    Place thread;
    Place block;
    Place threads; ///< of a block
    Place blocks;  ///< of the grid
};
const Builtins& builtins();

constexpr int kWarp = 32;
int lane();

/// Words that a lane brings where its warp meets.
struct Words {
    std::uint32_t word[8] = {};
};
/// Waits for all lanes of the warp; what lane l brought is [l], until the warp meets again.
const Words* meet_warp(const Words& mine);
void meet_block();

template <typename T>
Words words_of(T value) {
    static_assert(sizeof value <= sizeof(Words));
    Words words;
    std::memcpy(words.word, &value, sizeof value);
    return words;
}
template <typename T>
T value_of(const Words& words) {
    T value;
    std::memcpy(&value, words.word, sizeof value);
    return value;
}

} // namespace simt

#define threadIdx (simt::builtins().thread)
#define blockIdx (simt::builtins().block)
#define blockDim (simt::builtins().threads)
#define gridDim (simt::builtins().blocks)
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__
// Blocks run one after the other, so memory of a block is static; memory whose size the launch tells is `extern`
// already, and defined in runtime.cpp.
#undef __shared__
#ifdef SIMT_STATIC_SHARED
#define __shared__ static
#else
#define __shared__
#endif

using std::max;
using std::min;

inline void __syncwarp() { simt::meet_warp({}); }
inline void __syncthreads() { simt::meet_block(); }
int __syncthreads_or(int predicate);

template <typename T>
T __shfl_sync(unsigned /*mask*/, T value, int from) {
    return simt::value_of<T>(simt::meet_warp(simt::words_of(value))[from % simt::kWarp]);
}
template <typename T>
T __shfl_xor_sync(unsigned /*mask*/, T value, int bits) {
    return simt::value_of<T>(simt::meet_warp(simt::words_of(value))[simt::lane() ^ bits]);
}
template <typename T>
T __shfl_up_sync(unsigned /*mask*/, T value, int distance) {
    const simt::Words* all = simt::meet_warp(simt::words_of(value));
    return simt::value_of<T>(
        all[std::max(simt::lane() - distance, simt::lane() < distance ? simt::lane() : 0)]);
}
template <typename T, typename Combine>
T simt_reduce(T value, Combine combine) {
    const simt::Words* all = simt::meet_warp(simt::words_of(value));
    T result = simt::value_of<T>(all[0]);
    for (int l = 1; l < simt::kWarp; ++l) result = combine(result, simt::value_of<T>(all[l]));
    return result;
}
template <typename T>
T __reduce_add_sync(unsigned /*mask*/, T value) {
    return simt_reduce(value, [](T a, T b) { return a + b; });
}
template <typename T>
T __reduce_max_sync(unsigned /*mask*/, T value) {
    return simt_reduce(value, [](T a, T b) { return std::max(a, b); });
}
inline unsigned __ballot_sync(unsigned /*mask*/, int predicate) {
    const simt::Words* all = simt::meet_warp(simt::words_of(predicate));
    unsigned result = 0;
    for (int l = 0; l < simt::kWarp; ++l) result |= static_cast<unsigned>(all[l].word[0] != 0) << l;
    return result;
}
inline int __any_sync(unsigned mask, int predicate) {
    return __ballot_sync(mask, predicate) != 0 ? 1 : 0;
}

inline int __popc(unsigned bits) { return std::popcount(bits); }
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned select) {
    const std::uint64_t bytes = std::uint64_t{high} << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i)
        result |= static_cast<unsigned>(bytes >> (8 * (select >> (4 * i) & 7)) & 0xff) << (8 * i);
    return result;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
    for (int i = 0; i < 4; ++i) sum += (a >> (8 * i) & 0xff) * (b >> (8 * i) & 0xff);
    return sum;
}

inline std::uint32_t __float_as_uint(float value) { return std::bit_cast<std::uint32_t>(value); }
inline float __uint_as_float(std::uint32_t bits) { return std::bit_cast<float>(bits); }
inline float __fdividef(float a, float b) { return a / b; }
inline int __float2int_rn(float value) { return static_cast<int>(std::nearbyint(value)); }
inline int __float2int_rz(float value) { return static_cast<int>(value); }
inline int __float2int_ru(float value) { return static_cast<int>(std::ceil(value)); }
inline int __float2int_rd(float value) { return static_cast<int>(std::floor(value)); }

template <typename T>
T __ldg(const T* from) {
    return *from;
}
template <typename T>
T __ldcg(const T* from) {
    return *from;
}
inline void __threadfence() {}
inline int atomicAdd(int* at, int value) {
    const int before = *at;
    *at += value;
    return before;
}
inline int atomicExch(int* at, int value) {
    const int before = *at;
    *at = value;
    return before;
}
inline int atomicCAS(int* at, int expected, int value) {
    const int before = *at;
    if (before == expected) *at = value;
    return before;
}
