// SPDX-License-Identifier: Apache-2.0
// Primitives in AArch64's vector instructions, four registers where AVX-512 has one; scalar/primitives.h
// says what each does. Included inside the namespace of this instruction set.

constexpr int kLanes = 16;

// Thirty-two registers: one row of four tiles is sixteen accumulators.
constexpr int kRowsInRegisters = 1;
constexpr int kDenseRows = 2;
constexpr int kDenseColumns = 2;

// SDOT and UDOT: both sides of a product have the signs of queries or of probabilities.
constexpr bool kSignedKeyBytes = true;
constexpr bool kSignedValueBytes = false;

/// Sixteen lanes, in order.
template <class Register>
struct Four {
    Register a, b, c, d;
};
using Floats = Four<float32x4_t>;
using Sums = Four<int32x4_t>;
using Quads = Four<uint32x4_t>;

/// `operation` on each register, or on those in the same place.
template <class Operation, class First, class... Rest>
inline auto each(Operation operation, Four<First> x, Four<Rest>... y)
    -> Four<decltype(operation(x.a, y.a...))> {
    return {operation(x.a, y.a...), operation(x.b, y.b...), operation(x.c, y.c...),
            operation(x.d, y.d...)};
}

inline Floats broadcast(float value) {
    const float32x4_t all = vdupq_n_f32(value);
    return {all, all, all, all};
}
inline Floats load(const float* from) {
    return {vld1q_f32(from), vld1q_f32(from + 4), vld1q_f32(from + 8), vld1q_f32(from + 12)};
}
inline uint8x16_t load_sixteen_bytes(const void* from) {
    return vld1q_u8(static_cast<const std::uint8_t*>(from));
}
/// Of fp16 in the halves of eight bytes.
inline Floats floats_of_halves(uint16x8_t low, uint16x8_t high) {
    const float16x8_t first = vreinterpretq_f16_u16(low);
    const float16x8_t second = vreinterpretq_f16_u16(high);
    return {vcvt_f32_f16(vget_low_f16(first)), vcvt_high_f32_f16(first),
            vcvt_f32_f16(vget_low_f16(second)), vcvt_high_f32_f16(second)};
}
inline Floats load_f16(const std::byte* from) {
    return floats_of_halves(vreinterpretq_u16_u8(load_sixteen_bytes(from)),
                            vreinterpretq_u16_u8(load_sixteen_bytes(from + 16)));
}
inline Floats load_scale_bytes(const std::byte* from) {
    const uint8x16_t bytes = load_sixteen_bytes(from);
    return floats_of_halves(vshll_n_u8(vget_low_u8(bytes), 7), vshll_high_n_u8(bytes, 7));
}
inline void store(Floats x, float* to) {
    vst1q_f32(to, x.a);
    vst1q_f32(to + 4, x.b);
    vst1q_f32(to + 8, x.c);
    vst1q_f32(to + 12, x.d);
}
inline Floats add(Floats x, Floats y) {
    return each([](auto i, auto j) { return vaddq_f32(i, j); }, x, y);
}
inline Floats subtract(Floats x, Floats y) {
    return each([](auto i, auto j) { return vsubq_f32(i, j); }, x, y);
}
inline Floats multiply(Floats x, Floats y) {
    return each([](auto i, auto j) { return vmulq_f32(i, j); }, x, y);
}
inline Floats divide(Floats x, Floats y) {
    return each([](auto i, auto j) { return vdivq_f32(i, j); }, x, y);
}
inline Floats maximum(Floats x, Floats y) {
    return each([](auto i, auto j) { return vmaxnmq_f32(i, j); }, x, y);
}
inline Floats minimum(Floats x, Floats y) {
    return each([](auto i, auto j) { return vminnmq_f32(i, j); }, x, y);
}
inline Floats absolute(Floats x) {
    return each([](auto i) { return vabsq_f32(i); }, x);
}
inline Floats copy_sign(Floats magnitude, Floats sign) {
    const uint32x4_t sign_bit = vdupq_n_u32(0x80000000u);
    return each([=](auto i, auto j) { return vbslq_f32(sign_bit, j, i); }, magnitude, sign);
}
inline Floats fused_multiply_add(Floats x, Floats y, Floats z) {
    return each([](auto i, auto j, auto k) { return vfmaq_f32(k, i, j); }, x, y, z);
}
inline Floats multiply_add(Floats x, Floats y, Floats z) { return fused_multiply_add(x, y, z); }
inline Floats round_even(Floats x) {
    return each([](auto i) { return vrndnq_f32(i); }, x);
}
inline Floats scale_exponent(Floats x, Floats exponent) {
    return each(
        [](auto i, auto whole) {
            const int32x4_t biased = vaddq_s32(vcvtq_s32_f32(whole), vdupq_n_s32(127));
            return vmulq_f32(i, vreinterpretq_f32_s32(vshlq_n_s32(biased, 23)));
        },
        x, exponent);
}
inline Floats add_exponents(Floats x, Sums exponents) {
    return each(
        [](auto i, auto j) {
            return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(i), j));
        },
        x, exponents);
}
inline Sums exponent_bits(Sums exponents) {
    return each([](auto i) { return vshlq_n_s32(i, 23); }, exponents);
}
inline Floats select_less(Floats x, Floats y, Floats then, Floats otherwise) {
    return each([](auto i, auto j, auto k, auto l) { return vbslq_f32(vcltq_f32(i, j), k, l); }, x,
                y, then, otherwise);
}
inline Floats select_negative(Floats x, Floats then, Floats otherwise) {
    return each([](auto i, auto j,
                   auto k) { return vbslq_f32(vcltzq_s32(vreinterpretq_s32_f32(i)), j, k); },
                x, then, otherwise);
}
inline Sums lane_numbers() {
    const std::int32_t first[4] = {0, 1, 2, 3};
    const int32x4_t a = vld1q_s32(first);
    return {a, vaddq_s32(a, vdupq_n_s32(4)), vaddq_s32(a, vdupq_n_s32(8)),
            vaddq_s32(a, vdupq_n_s32(12))};
}
inline Floats keep_lanes(Floats x, int begin, int end) {
    return each(
        [=](auto i, auto lane) {
            const uint32x4_t keep =
                vandq_u32(vcgeq_s32(lane, vdupq_n_s32(begin)), vcltq_s32(lane, vdupq_n_s32(end)));
            return vbslq_f32(keep, i, vdupq_n_f32(-__builtin_inff()));
        },
        x, lane_numbers());
}
inline float32x4_t max_of_four(Floats x) {
    return vmaxnmq_f32(vmaxnmq_f32(x.a, x.b), vmaxnmq_f32(x.c, x.d));
}
inline float32x4_t sum_of_four(Floats x) {
    return vaddq_f32(vaddq_f32(x.a, x.b), vaddq_f32(x.c, x.d));
}
inline float reduce_max(Floats x) { return vmaxnmvq_f32(max_of_four(x)); }
inline float reduce_add(Floats x) { return vaddvq_f32(sum_of_four(x)); }
inline void reduce_add_columns(const Floats (&x)[kDenseColumns], float* to) {
    const float32x4_t pairs = vpaddq_f32(sum_of_four(x[0]), sum_of_four(x[1]));
    vst1_f32(to, vget_low_f32(vpaddq_f32(pairs, pairs)));
}
inline Floats permute(Floats x, Sums index) {
    const uint8x16x4_t table = {{vreinterpretq_u8_f32(x.a), vreinterpretq_u8_f32(x.b),
                                 vreinterpretq_u8_f32(x.c), vreinterpretq_u8_f32(x.d)}};
    return each(
        [&](auto i) {
            const uint32x4_t lane = vandq_u32(vreinterpretq_u32_s32(i), vdupq_n_u32(kLanes - 1));
            const uint32x4_t bytes =
                vmlaq_u32(vdupq_n_u32(0x03020100u), lane, vdupq_n_u32(0x04040404u));
            return vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_u32(bytes)));
        },
        index);
}
inline bool any_less(Floats x, Floats y) {
    const Quads less = each([](auto i, auto j) { return vcltq_f32(i, j); }, x, y);
    return vmaxvq_u32(vorrq_u32(vorrq_u32(less.a, less.b), vorrq_u32(less.c, less.d))) != 0;
}
/// Each of four rows of 32, in order.
inline float32x4_t max_of_four_rows(const float* from) {
    float32x4_t rows[4];
#pragma GCC unroll 4
    for (float32x4_t& row : rows) {
        row = max_of_four(maximum(load(from), load(from + kLanes)));
        from += 2 * kLanes;
    }
    return vpmaxnmq_f32(vpmaxnmq_f32(rows[0], rows[1]), vpmaxnmq_f32(rows[2], rows[3]));
}
inline Floats max_of_rows(const float* from) {
    return {max_of_four_rows(from), max_of_four_rows(from + 4 * 32),
            max_of_four_rows(from + 8 * 32), max_of_four_rows(from + 12 * 32)};
}

inline Sums broadcast_int(std::int32_t value) {
    const int32x4_t all = vdupq_n_s32(value);
    return {all, all, all, all};
}
inline Sums load_signed_bytes(const std::byte* from) {
    const int8x16_t bytes = vreinterpretq_s8_u8(load_sixteen_bytes(from));
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes));
    const int16x8_t high = vmovl_high_s8(bytes);
    return {vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)),
            vmovl_high_s16(high)};
}
inline Sums load_ints(const std::int32_t* from) {
    return {vld1q_s32(from), vld1q_s32(from + 4), vld1q_s32(from + 8), vld1q_s32(from + 12)};
}
inline void store_ints(Sums x, std::int32_t* to) {
    vst1q_s32(to, x.a);
    vst1q_s32(to + 4, x.b);
    vst1q_s32(to + 8, x.c);
    vst1q_s32(to + 12, x.d);
}
inline Sums multiply_ints(Sums x, Sums y) {
    return each([](auto i, auto j) { return vmulq_s32(i, j); }, x, y);
}
inline Sums add_ints(Sums x, Sums y) {
    return each([](auto i, auto j) { return vaddq_s32(i, j); }, x, y);
}
inline std::int32_t reduce_add_ints(Sums x) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(x.a, x.b), vaddq_s32(x.c, x.d)));
}
inline Floats to_floats(Sums x) {
    return each([](auto i) { return vcvtq_f32_s32(i); }, x);
}
inline Sums to_ints(Floats x) {
    return each([](auto i) { return vcvtnq_s32_f32(i); }, x);
}
inline void store_bytes(Sums x, void* to) {
    const int16x8_t low = vuzp1q_s16(vreinterpretq_s16_s32(x.a), vreinterpretq_s16_s32(x.b));
    const int16x8_t high = vuzp1q_s16(vreinterpretq_s16_s32(x.c), vreinterpretq_s16_s32(x.d));
    vst1q_s8(static_cast<std::int8_t*>(to),
             vuzp1q_s8(vreinterpretq_s8_s16(low), vreinterpretq_s8_s16(high)));
}

/// Each of four rows of 32, in order.
inline int32x4_t sums_of_four_rows(const std::uint8_t* from) {
    const uint8x16_t ones = vdupq_n_u8(1);
    uint32x4_t rows[4];
#pragma GCC unroll 4
    for (uint32x4_t& row : rows) {
        row = vdotq_u32(vdupq_n_u32(0), load_sixteen_bytes(from), ones);
        row = vdotq_u32(row, load_sixteen_bytes(from + kLanes), ones);
        from += 2 * kLanes;
    }
    return vreinterpretq_s32_u32(
        vpaddq_u32(vpaddq_u32(rows[0], rows[1]), vpaddq_u32(rows[2], rows[3])));
}
inline Sums sums_of_rows(const std::uint8_t* from) {
    return {sums_of_four_rows(from), sums_of_four_rows(from + 4 * 32),
            sums_of_four_rows(from + 8 * 32), sums_of_four_rows(from + 12 * 32)};
}

inline Quads load_quads(const std::byte* from) {
    return {vreinterpretq_u32_u8(load_sixteen_bytes(from)),
            vreinterpretq_u32_u8(load_sixteen_bytes(from + 16)),
            vreinterpretq_u32_u8(load_sixteen_bytes(from + 32)),
            vreinterpretq_u32_u8(load_sixteen_bytes(from + 48))};
}
inline void store_quads(Quads x, std::byte* to) {
    auto* words = reinterpret_cast<std::uint8_t*>(to);
    vst1q_u8(words, vreinterpretq_u8_u32(x.a));
    vst1q_u8(words + 16, vreinterpretq_u8_u32(x.b));
    vst1q_u8(words + 32, vreinterpretq_u8_u32(x.c));
    vst1q_u8(words + 48, vreinterpretq_u8_u32(x.d));
}
inline Quads broadcast_quad(const void* from) {
    std::uint32_t quad;
    __builtin_memcpy(&quad, from, sizeof quad);
    const uint32x4_t all = vdupq_n_u32(quad);
    return {all, all, all, all};
}
inline uint32x4_t broadcast_byte(std::uint8_t value) {
    return vreinterpretq_u32_u8(vdupq_n_u8(value));
}
template <int bits>
inline Quads shift_right(Quads x) {
    return each([](auto i) { return vshrq_n_u32(i, bits); }, x);
}
inline Quads keep_bits(Quads x, std::uint8_t mask) {
    return each([=](auto i) { return vandq_u32(i, broadcast_byte(mask)); }, x);
}
inline Quads flip_bits(Quads x, std::uint8_t mask) {
    return each([=](auto i) { return veorq_u32(i, broadcast_byte(mask)); }, x);
}
inline Quads merge_bits(Quads x, Quads y, std::uint8_t mask) {
    return each([=](auto i, auto j) { return vbslq_u32(broadcast_byte(mask), i, j); }, x, y);
}

template <bool small_codes>
inline Sums dot_keys(Sums sums, Quads codes, Quads queries) {
    return each(
        [](auto sum, auto code, auto query) {
            return vdotq_s32(sum, vreinterpretq_s8_u32(code), vreinterpretq_s8_u32(query));
        },
        sums, codes, queries);
}
template <bool small_codes>
inline Sums dot_values(Sums sums, Quads probabilities, Quads codes) {
    return each(
        [](auto sum, auto p, auto code) {
            return vreinterpretq_s32_u32(vdotq_u32(
                vreinterpretq_u32_s32(sum), vreinterpretq_u8_u32(p), vreinterpretq_u8_u32(code)));
        },
        sums, probabilities, codes);
}

inline void prefetch(const std::byte* at) {
    // Not the builtin: in a loop of its own it is no effect to GCC 12.
    asm volatile("prfm pldl2keep, %a0" ::"p"(at));
}
