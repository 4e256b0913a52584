// SPDX-License-Identifier: Apache-2.0
// Primitives in plain C++: what a register of the other instruction sets does, lane by lane. The
// reference they are tested against. Included inside the namespace of this instruction set.

constexpr int kLanes = 16;

/// Rows that share one expansion in registers; rows and registers of the tiles of dense products.
constexpr int kRowsInRegisters = 1;
constexpr int kDenseRows = 1;
constexpr int kDenseColumns = 1;

struct Floats {
    float lane[kLanes];
};
struct Sums { // 32-bit integers
    std::int32_t lane[kLanes];
};
struct Quads { // sixteen rows, four codes each
    std::uint32_t lane[kLanes];
};

template <class Operation>
inline Floats each(Operation operation) {
    Floats result;
    for (int i = 0; i < kLanes; ++i) result.lane[i] = operation(i);
    return result;
}
template <class Operation>
inline Sums each_int(Operation operation) {
    Sums result;
    for (int i = 0; i < kLanes; ++i) result.lane[i] = operation(i);
    return result;
}
template <class Operation>
inline Quads each_quad(Operation operation) {
    Quads result;
    for (int i = 0; i < kLanes; ++i) result.lane[i] = operation(i);
    return result;
}

// Floats

inline Floats broadcast(float value) {
    return each([=](int) { return value; });
}
inline Floats load(const float* from) {
    return each([=](int i) { return from[i]; });
}
inline Floats load_f16(const std::byte* from) {
    return each([=](int i) {
        std::uint16_t bits;
        __builtin_memcpy(&bits, from + 2 * i, sizeof bits);
        return float_from_f16(bits);
    });
}
/// Sixteen bytes that are the upper half of fp16 numbers, less their sign.
inline Floats load_scale_bytes(const std::byte* from) {
    return each([=](int i) {
        return float_from_f16(static_cast<std::uint16_t>(std::to_integer<unsigned>(from[i]) << 7));
    });
}
inline void store(Floats a, float* to) {
    for (int i = 0; i < kLanes; ++i) to[i] = a.lane[i];
}
inline Floats add(Floats a, Floats b) {
    return each([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline Floats subtract(Floats a, Floats b) {
    return each([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline Floats multiply(Floats a, Floats b) {
    return each([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline Floats divide(Floats a, Floats b) {
    return each([&](int i) { return a.lane[i] / b.lane[i]; });
}
inline Floats maximum(Floats a, Floats b) {
    return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Floats absolute(Floats a) {
    return each([&](int i) { return __builtin_fabsf(a.lane[i]); });
}
inline Floats copy_sign(Floats magnitude, Floats sign) {
    return each([&](int i) { return __builtin_copysignf(magnitude.lane[i], sign.lane[i]); });
}
/// a * b + c, rounded once everywhere: integer arithmetic gives the same bits on every instruction set.
inline Floats fused_multiply_add(Floats a, Floats b, Floats c) {
    return each([&](int i) { return __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]); });
}
/// a * b + c, however it is fastest.
inline Floats multiply_add(Floats a, Floats b, Floats c) {
    return each([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
}
inline Floats minimum(Floats a, Floats b) {
    return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
/// To the nearest integer, half to even; magnitudes below 2^22.
inline Floats round_even(Floats a) {
    constexpr float kUnitIsLastPlace = 12582912.0f; // 1.5 * 2^23
    return each([&](int i) {
        const float shifted = a.lane[i] + kUnitIsLastPlace;
        return shifted - kUnitIsLastPlace;
    });
}
/// a * 2^exponent for whole exponents from -126 to 127.
inline Floats scale_exponent(Floats a, Floats exponent) {
    return each([&](int i) {
        const std::int32_t bits = (static_cast<std::int32_t>(exponent.lane[i]) + 127) << 23;
        float power;
        __builtin_memcpy(&power, &bits, sizeof power);
        return a.lane[i] * power;
    });
}
/// a * 2^exponent where neither is 0, an infinity or below 2^-126; exponents as exponent_bits makes them.
inline Floats add_exponents(Floats a, Sums exponents) {
    return each([&](int i) {
        std::int32_t bits;
        __builtin_memcpy(&bits, a.lane + i, sizeof bits);
        bits += exponents.lane[i];
        float scaled;
        __builtin_memcpy(&scaled, &bits, sizeof scaled);
        return scaled;
    });
}
/// Where an fp32 number has its exponent.
inline Sums exponent_bits(Sums exponents) {
    return each_int([&](int i) { return exponents.lane[i] * (1 << 23); });
}
inline Floats select_less(Floats a, Floats b, Floats then, Floats otherwise) {
    return each([&](int i) { return a.lane[i] < b.lane[i] ? then.lane[i] : otherwise.lane[i]; });
}
/// By the sign bit, that of zero counted.
inline Floats select_negative(Floats a, Floats then, Floats otherwise) {
    return each([&](int i) {
        return __builtin_signbit(a.lane[i]) != 0 ? then.lane[i] : otherwise.lane[i];
    });
}
/// Lanes outside [begin, end) become minus infinity, whatever they held.
inline Floats keep_lanes(Floats a, int begin, int end) {
    return each([&](int i) { return i >= begin && i < end ? a.lane[i] : -__builtin_inff(); });
}
inline float reduce_max(Floats a) {
    float result = a.lane[0];
    for (int i = 1; i < kLanes; ++i) result = a.lane[i] > result ? a.lane[i] : result;
    return result;
}
inline float reduce_add(Floats a) {
    float result = 0.0f;
    for (int i = 0; i < kLanes; ++i) result += a.lane[i];
    return result;
}
/// The sum of each register.
inline void reduce_add_columns(const Floats (&a)[kDenseColumns], float* to) {
    to[0] = reduce_add(a[0]);
}

/// Lane i of the result is lane index.lane[i] % 16 of `a`.
inline Floats permute(Floats a, Sums index) {
    return each([&](int i) { return a.lane[index.lane[i] % kLanes]; });
}
inline bool any_less(Floats a, Floats b) {
    bool any = false;
    for (int i = 0; i < kLanes; ++i) any = any || a.lane[i] < b.lane[i];
    return any;
}
/// The largest of each of sixteen rows of 32.
inline Floats max_of_rows(const float* from) {
    Floats result;
    for (int row = 0; row < kLanes; ++row, from += 2 * kLanes)
        result.lane[row] = reduce_max(maximum(load(from), load(from + kLanes)));
    return result;
}

// Sums

inline Sums broadcast_int(std::int32_t value) {
    return each_int([=](int) { return value; });
}
inline Sums load_signed_bytes(const std::byte* from) {
    return each_int([=](int i) {
        const auto byte = std::to_integer<std::int32_t>(from[i]);
        return byte < 128 ? byte : byte - 256;
    });
}
inline Sums load_ints(const std::int32_t* from) {
    return each_int([=](int i) { return from[i]; });
}
inline void store_ints(Sums a, std::int32_t* to) {
    for (int i = 0; i < kLanes; ++i) to[i] = a.lane[i];
}
inline Sums multiply_ints(Sums a, Sums b) {
    return each_int([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline Sums add_ints(Sums a, Sums b) {
    return each_int([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline std::int32_t reduce_add_ints(Sums a) {
    std::int32_t result = 0;
    for (int i = 0; i < kLanes; ++i) result += a.lane[i];
    return result;
}
inline Floats to_floats(Sums a) {
    return each([&](int i) { return static_cast<float>(a.lane[i]); });
}
/// Half to even.
inline Sums to_ints(Floats a) {
    const Floats rounded = round_even(a);
    return each_int([&](int i) { return static_cast<std::int32_t>(rounded.lane[i]); });
}
/// The low byte of each lane.
inline void store_bytes(Sums a, void* to) {
    for (int i = 0; i < kLanes; ++i)
        static_cast<std::uint8_t*>(to)[i] = static_cast<std::uint8_t>(a.lane[i]);
}

/// Of each of sixteen rows of 32.
inline Sums sums_of_rows(const std::uint8_t* from) {
    Sums sums = broadcast_int(0);
    for (int row = 0; row < kLanes; ++row, from += 2 * kLanes)
        for (int i = 0; i < 2 * kLanes; ++i) sums.lane[row] += from[i];
    return sums;
}

// Quads

inline Quads load_quads(const std::byte* from) {
    Quads result;
    __builtin_memcpy(result.lane, from, sizeof result.lane);
    return result;
}
inline void store_quads(Quads a, std::byte* to) { __builtin_memcpy(to, a.lane, sizeof a.lane); }
inline Quads broadcast_quad(const void* from) {
    std::uint32_t quad;
    __builtin_memcpy(&quad, from, sizeof quad);
    return each_quad([=](int) { return quad; });
}
template <int bits>
inline Quads shift_right(Quads a) {
    return each_quad([&](int i) { return a.lane[i] >> bits; });
}
inline Quads keep_bits(Quads a, std::uint8_t mask) {
    return each_quad([&](int i) { return a.lane[i] & (0x01010101u * mask); });
}
inline Quads flip_bits(Quads a, std::uint8_t mask) {
    return each_quad([&](int i) { return a.lane[i] ^ (0x01010101u * mask); });
}
/// Bits of `mask` from `a`, the others from `b`.
inline Quads merge_bits(Quads a, Quads b, std::uint8_t mask) {
    const std::uint32_t wide = 0x01010101u * mask;
    return each_quad([&](int i) { return (a.lane[i] & wide) | (b.lane[i] & ~wide); });
}

/// sums + unsigned bytes x signed bytes, four products a lane.
inline Sums dot(Sums sums, Quads unsigned_bytes, Quads signed_bytes) {
    return each_int([&](int i) {
        std::int32_t sum = sums.lane[i];
        for (int byte = 0; byte < 32; byte += 8) {
            const auto a = static_cast<std::uint8_t>(unsigned_bytes.lane[i] >> byte);
            const auto b = static_cast<std::int8_t>(signed_bytes.lane[i] >> byte);
            sum += a * b;
        }
        return sum;
    });
}
/// The same where one side's magnitudes are at most 63.
inline Sums dot_small(Sums sums, Quads unsigned_bytes, Quads signed_bytes) {
    return dot(sums, unsigned_bytes, signed_bytes);
}

inline void prefetch(const std::byte*) {}
