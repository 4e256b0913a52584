// SPDX-License-Identifier: Apache-2.0
// Primitives in AVX2 with FMA and F16C, two registers where AVX-512 has one; scalar/primitives.h says
// what each does. Included inside the namespace of this instruction set.

constexpr int kLanes = 16;

// Sixteen registers: one row of four tiles is eight accumulators.
constexpr int kRowsInRegisters = 1;
constexpr int kDenseRows = 2;
constexpr int kDenseColumns = 2;

struct Floats {
    __m256 low;
    __m256 high;
};
struct Sums {
    __m256i low;
    __m256i high;
};
struct Quads {
    __m256i low;
    __m256i high;
};

inline __m256i load_half(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
inline void store_half(__m256i a, void* to) { _mm256_storeu_si256(static_cast<__m256i*>(to), a); }

inline Floats broadcast(float value) {
    const __m256 all = _mm256_set1_ps(value);
    return {all, all};
}
inline Floats load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline Floats load_f16(const std::byte* from) {
    const __m256i halves = load_half(from);
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)),
            _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
}
inline __m128i load_sixteen_bytes(const std::byte* from) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}
inline Floats load_scale_bytes(const std::byte* from) {
    const __m256i halves = _mm256_slli_epi16(_mm256_cvtepu8_epi16(load_sixteen_bytes(from)), 7);
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)),
            _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
}
inline void store(Floats a, float* to) {
    _mm256_storeu_ps(to, a.low);
    _mm256_storeu_ps(to + 8, a.high);
}
inline Floats add(Floats a, Floats b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline Floats subtract(Floats a, Floats b) {
    return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
inline Floats multiply(Floats a, Floats b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline Floats divide(Floats a, Floats b) {
    return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
inline Floats maximum(Floats a, Floats b) {
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
inline Floats absolute(Floats a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}
inline Floats copy_sign(Floats magnitude, Floats sign) {
    const __m256 bit = _mm256_set1_ps(-0.0f);
    const Floats positive = absolute(magnitude);
    return {_mm256_or_ps(positive.low, _mm256_and_ps(bit, sign.low)),
            _mm256_or_ps(positive.high, _mm256_and_ps(bit, sign.high))};
}
inline Floats fused_multiply_add(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Floats multiply_add(Floats a, Floats b, Floats c) { return fused_multiply_add(a, b, c); }
inline Floats minimum(Floats a, Floats b) {
    return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
inline Floats round_even(Floats a) {
    constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.low, kMode), _mm256_round_ps(a.high, kMode)};
}
inline __m256 power_of_two(__m256 exponent) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(exponent), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
inline Floats scale_exponent(Floats a, Floats exponent) {
    return {_mm256_mul_ps(a.low, power_of_two(exponent.low)),
            _mm256_mul_ps(a.high, power_of_two(exponent.high))};
}
inline Floats add_exponents(Floats a, Sums exponents) {
    return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.low), exponents.low)),
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.high), exponents.high))};
}
inline Sums exponent_bits(Sums exponents) {
    return {_mm256_slli_epi32(exponents.low, 23), _mm256_slli_epi32(exponents.high, 23)};
}
inline Floats select_less(Floats a, Floats b, Floats then, Floats otherwise) {
    return {_mm256_blendv_ps(otherwise.low, then.low, _mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ)),
            _mm256_blendv_ps(otherwise.high, then.high, _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ))};
}
inline Floats select_negative(Floats a, Floats then, Floats otherwise) {
    return {_mm256_blendv_ps(otherwise.low, then.low, a.low),
            _mm256_blendv_ps(otherwise.high, then.high, a.high)};
}
inline __m256 keep_half(__m256 a, __m256i lanes, int begin, int end) {
    const __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(begin), lanes);
    const __m256i within = _mm256_cmpgt_epi32(_mm256_set1_epi32(end), lanes);
    const __m256 keep = _mm256_castsi256_ps(_mm256_andnot_si256(below, within));
    return _mm256_blendv_ps(_mm256_set1_ps(-__builtin_inff()), a, keep);
}
inline Floats keep_lanes(Floats a, int begin, int end) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return {keep_half(a.low, lanes, begin, end), keep_half(a.high, lanes, begin - 8, end - 8)};
}
inline float reduce_max(Floats a) {
    const __m256 eight = _mm256_max_ps(a.low, a.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline float reduce_add(Floats a) {
    const __m256 eight = _mm256_add_ps(a.low, a.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline void reduce_add_columns(const Floats (&a)[kDenseColumns], float* to) {
    for (int i = 0; i < kDenseColumns; ++i) to[i] = reduce_add(a[i]);
}

inline __m256 permute_half(Floats a, __m256i index) {
    const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)); // bit 3 to the sign
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(a.low, index),
                            _mm256_permutevar8x32_ps(a.high, index), upper);
}
inline Floats permute(Floats a, Sums index) {
    return {permute_half(a, index.low), permute_half(a, index.high)};
}
inline bool any_less(Floats a, Floats b) {
    return _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ),
                                           _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ))) != 0;
}
inline Floats max_of_rows(const float* from) {
    float largest[kLanes];
    for (int row = 0; row < kLanes; ++row, from += 2 * kLanes)
        largest[row] = reduce_max(maximum(load(from), load(from + kLanes)));
    return load(largest);
}

inline Sums broadcast_int(std::int32_t value) {
    const __m256i all = _mm256_set1_epi32(value);
    return {all, all};
}
inline Sums load_signed_bytes(const std::byte* from) {
    const __m128i bytes = load_sixteen_bytes(from);
    return {_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))};
}
inline Sums load_ints(const std::int32_t* from) { return {load_half(from), load_half(from + 8)}; }
inline void store_ints(Sums a, std::int32_t* to) {
    store_half(a.low, to);
    store_half(a.high, to + 8);
}
inline Sums multiply_ints(Sums a, Sums b) {
    return {_mm256_mullo_epi32(a.low, b.low), _mm256_mullo_epi32(a.high, b.high)};
}
inline Sums add_ints(Sums a, Sums b) {
    return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
inline std::int32_t reduce_add_ints(Sums a) {
    const __m256i eight = _mm256_add_epi32(a.low, a.high);
    const __m128i four =
        _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
inline Floats to_floats(Sums a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
inline Sums to_ints(Floats a) {
    const Floats rounded = round_even(a);
    return {_mm256_cvttps_epi32(rounded.low), _mm256_cvttps_epi32(rounded.high)};
}
inline void store_bytes(Sums a, void* to) {
    const __m256i byte = _mm256_set1_epi32(0xff);
    const __m256i words =
        _mm256_packus_epi32(_mm256_and_si256(a.low, byte), _mm256_and_si256(a.high, byte));
    const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
    _mm_storeu_si128(
        static_cast<__m128i*>(to),
        _mm_packus_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1)));
}

inline Sums sums_of_rows(const std::uint8_t* from) {
    std::int32_t sums[kLanes];
    for (std::int32_t& sum : sums) {
        const __m256i four = _mm256_sad_epu8(load_half(from), _mm256_setzero_si256());
        const __m128i two =
            _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
        sum = _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_srli_si128(two, 8)));
        from += 2 * kLanes;
    }
    return load_ints(sums);
}

inline Quads load_quads(const std::byte* from) { return {load_half(from), load_half(from + 32)}; }
inline void store_quads(Quads a, std::byte* to) {
    store_half(a.low, to);
    store_half(a.high, to + 32);
}
inline Quads broadcast_quad(const void* from) {
    std::int32_t quad;
    __builtin_memcpy(&quad, from, sizeof quad);
    const __m256i all = _mm256_set1_epi32(quad);
    return {all, all};
}
template <int bits>
inline Quads shift_right(Quads a) {
    return {_mm256_srli_epi32(a.low, bits), _mm256_srli_epi32(a.high, bits)};
}
inline Quads keep_bits(Quads a, std::uint8_t mask) {
    const __m256i wide = _mm256_set1_epi8(static_cast<char>(mask));
    return {_mm256_and_si256(a.low, wide), _mm256_and_si256(a.high, wide)};
}
inline Quads flip_bits(Quads a, std::uint8_t mask) {
    const __m256i wide = _mm256_set1_epi8(static_cast<char>(mask));
    return {_mm256_xor_si256(a.low, wide), _mm256_xor_si256(a.high, wide)};
}
inline Quads merge_bits(Quads a, Quads b, std::uint8_t mask) {
    const Quads first = keep_bits(a, mask);
    const Quads second = keep_bits(b, static_cast<std::uint8_t>(~mask));
    return {_mm256_or_si256(first.low, second.low), _mm256_or_si256(first.high, second.high)};
}

inline void prefetch(const std::byte* at) {
    // Not the intrinsic: in a loop of its own it is no effect to GCC 12.
    asm volatile("prefetcht1 %0" ::"m"(*at));
}
