// SPDX-License-Identifier: Apache-2.0
// Primitives in AVX-512 with VNNI; scalar/primitives.h says what each does. Included inside the
// namespace of this instruction set.

constexpr int kLanes = 16;

// Four rows of four tiles are sixteen accumulators; with eight registers of codes, 24 of 32 are in use.
constexpr int kRowsInRegisters = 4;
constexpr int kDenseRows = 4;
constexpr int kDenseColumns = 4;

struct Floats {
    __m512 all;
};
struct Sums {
    __m512i all;
};
struct Quads {
    __m512i all;
};

inline Floats broadcast(float value) { return {_mm512_set1_ps(value)}; }
inline Floats load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline Floats load_f16(const std::byte* from) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
}
inline __m128i load_sixteen_bytes(const std::byte* from) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}
inline Floats load_scale_bytes(const std::byte* from) {
    return {_mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(load_sixteen_bytes(from)), 7))};
}
inline void store(Floats a, float* to) { _mm512_storeu_ps(to, a.all); }
inline Floats add(Floats a, Floats b) { return {_mm512_add_ps(a.all, b.all)}; }
inline Floats subtract(Floats a, Floats b) { return {_mm512_sub_ps(a.all, b.all)}; }
inline Floats multiply(Floats a, Floats b) { return {_mm512_mul_ps(a.all, b.all)}; }
inline Floats divide(Floats a, Floats b) { return {_mm512_div_ps(a.all, b.all)}; }
inline Floats maximum(Floats a, Floats b) { return {_mm512_max_ps(a.all, b.all)}; }
inline Floats absolute(Floats a) { return {_mm512_abs_ps(a.all)}; }
inline Floats copy_sign(Floats magnitude, Floats sign) {
    const __m512 bit = _mm512_set1_ps(-0.0f);
    return {_mm512_or_ps(_mm512_andnot_ps(bit, magnitude.all), _mm512_and_ps(bit, sign.all))};
}
inline Floats fused_multiply_add(Floats a, Floats b, Floats c) {
    return {_mm512_fmadd_ps(a.all, b.all, c.all)};
}
inline Floats multiply_add(Floats a, Floats b, Floats c) { return fused_multiply_add(a, b, c); }
inline Floats minimum(Floats a, Floats b) { return {_mm512_min_ps(a.all, b.all)}; }
inline Floats round_even(Floats a) {
    return {_mm512_roundscale_ps(a.all, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Floats scale_exponent(Floats a, Floats exponent) {
    return {_mm512_scalef_ps(a.all, exponent.all)};
}
inline Floats add_exponents(Floats a, Sums exponents) {
    return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a.all), exponents.all))};
}
inline Sums exponent_bits(Sums exponents) { return {_mm512_slli_epi32(exponents.all, 23)}; }
inline Floats select_less(Floats a, Floats b, Floats then, Floats otherwise) {
    const __mmask16 less = _mm512_cmp_ps_mask(a.all, b.all, _CMP_LT_OQ);
    return {_mm512_mask_blend_ps(less, otherwise.all, then.all)};
}
inline Floats select_negative(Floats a, Floats then, Floats otherwise) {
    const __mmask16 negative = _mm512_movepi32_mask(_mm512_castps_si512(a.all));
    return {_mm512_mask_blend_ps(negative, otherwise.all, then.all)};
}
inline Floats keep_lanes(Floats a, int begin, int end) {
    const int first = begin < 0 ? 0 : begin > kLanes ? kLanes : begin;
    const int last = end < first ? first : end > kLanes ? kLanes : end;
    const auto keep = static_cast<__mmask16>((1u << last) - (1u << first));
    return {_mm512_mask_blend_ps(keep, _mm512_set1_ps(-__builtin_inff()), a.all)};
}
inline float reduce_max(Floats a) { return _mm512_reduce_max_ps(a.all); }
inline float reduce_add(Floats a) { return _mm512_reduce_add_ps(a.all); }
inline __m512 max_pairs(__m512 a, __m512 b) {
    return _mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
}
/// Each of four rows of 32, in order.
inline __m128 max_of_four_rows(const float* from) {
    __m512 rows[4];
    for (int row = 0; row < 4; ++row)
        rows[row] =
            _mm512_max_ps(_mm512_loadu_ps(from + 32 * row), _mm512_loadu_ps(from + 32 * row + 16));
    const __m512d low = _mm512_castps_pd(max_pairs(rows[0], rows[1]));
    const __m512d high = _mm512_castps_pd(max_pairs(rows[2], rows[3]));
    const __m512 sixteen = _mm512_max_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)),
                                         _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
    const __m256 eight =
        _mm256_max_ps(_mm512_castps512_ps256(sixteen), _mm512_extractf32x8_ps(sixteen, 1));
    return _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
}
inline Floats max_of_rows(const float* from) {
    const __m256 low = _mm256_insertf128_ps(_mm256_castps128_ps256(max_of_four_rows(from)),
                                            max_of_four_rows(from + 4 * 32), 1);
    const __m256 high =
        _mm256_insertf128_ps(_mm256_castps128_ps256(max_of_four_rows(from + 8 * 32)),
                             max_of_four_rows(from + 12 * 32), 1);
    return {_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1)};
}
inline Floats permute(Floats a, Sums index) { return {_mm512_permutexvar_ps(index.all, a.all)}; }
inline bool any_less(Floats a, Floats b) {
    return _mm512_cmp_ps_mask(a.all, b.all, _CMP_LT_OQ) != 0;
}
inline __m512 add_pairs(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
}
inline void reduce_add_columns(const Floats (&a)[kDenseColumns], float* to) {
    const __m512d low = _mm512_castps_pd(add_pairs(a[0].all, a[1].all));
    const __m512d high = _mm512_castps_pd(add_pairs(a[2].all, a[3].all));
    // Four sums of four elements each, in every 128 bits.
    const __m512 sixteen = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)),
                                         _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
    const __m256 eight =
        _mm256_add_ps(_mm512_castps512_ps256(sixteen), _mm512_extractf32x8_ps(sixteen, 1));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1)));
}

inline Sums broadcast_int(std::int32_t value) { return {_mm512_set1_epi32(value)}; }
inline Sums load_signed_bytes(const std::byte* from) {
    return {_mm512_cvtepi8_epi32(load_sixteen_bytes(from))};
}
inline Sums load_ints(const std::int32_t* from) { return {_mm512_loadu_si512(from)}; }
inline void store_ints(Sums a, std::int32_t* to) { _mm512_storeu_si512(to, a.all); }
inline Sums multiply_ints(Sums a, Sums b) { return {_mm512_mullo_epi32(a.all, b.all)}; }
inline Sums add_ints(Sums a, Sums b) { return {_mm512_add_epi32(a.all, b.all)}; }
inline std::int32_t reduce_add_ints(Sums a) { return _mm512_reduce_add_epi32(a.all); }
inline Floats to_floats(Sums a) { return {_mm512_cvtepi32_ps(a.all)}; }
inline Sums to_ints(Floats a) {
    return {_mm512_cvt_roundps_epi32(a.all, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline void store_bytes(Sums a, void* to) {
    _mm_storeu_si128(static_cast<__m128i*>(to), _mm512_cvtepi32_epi8(a.all));
}

/// Sums of the 64-bit elements of each half of a and b, at a0 b0 a1 b1 of the eight 64-bit elements, twice.
inline __m512i add_halves(__m512i a, __m512i b) {
    const __m512i pairs =
        _mm512_add_epi64(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    return _mm512_add_epi64(pairs, _mm512_permutex_epi64(pairs, 0x4e));
}
inline Sums sums_of_rows(const std::uint8_t* from) {
    __m512i eight[8]; // bytes of two rows each, summed by eight
    for (int i = 0; i < 8; ++i)
        eight[i] = _mm512_sad_epu8(_mm512_loadu_si512(from + 64 * i), _mm512_setzero_si512());
    // Sums fit into 16 bits: four registers share one.
    __m512i all = add_halves(eight[0], eight[1]);
    all = _mm512_or_si512(all, _mm512_slli_epi64(add_halves(eight[2], eight[3]), 16));
    all = _mm512_or_si512(all, _mm512_slli_epi64(add_halves(eight[4], eight[5]), 32));
    all = _mm512_or_si512(all, _mm512_slli_epi64(add_halves(eight[6], eight[7]), 48));
    // Row 4i + 2j + k is the word i of element 4k + j.
    const __m512i order = _mm512_setr_epi32(0, 8, 2, 10, 0, 8, 2, 10, 1, 9, 3, 11, 1, 9, 3, 11);
    const __m512i shift = _mm512_setr_epi32(0, 0, 0, 0, 16, 16, 16, 16, 0, 0, 0, 0, 16, 16, 16, 16);
    const __m512i words = _mm512_srlv_epi32(_mm512_permutexvar_epi32(order, all), shift);
    return {_mm512_and_si512(words, _mm512_set1_epi32(0xffff))};
}

inline Quads load_quads(const std::byte* from) {
    __m512i quads = _mm512_loadu_si512(from);
    asm("" : "+v"(quads)); // once: GCC 12 would load again for each use
    return {quads};
}
inline void store_quads(Quads a, std::byte* to) { _mm512_storeu_si512(to, a.all); }
inline Quads broadcast_quad(const void* from) {
    std::int32_t quad;
    __builtin_memcpy(&quad, from, sizeof quad);
    return {_mm512_set1_epi32(quad)};
}
template <int bits>
inline Quads shift_right(Quads a) {
    return {_mm512_srli_epi32(a.all, bits)};
}
inline Quads keep_bits(Quads a, std::uint8_t mask) {
    return {_mm512_and_si512(a.all, _mm512_set1_epi8(static_cast<char>(mask)))};
}
inline Quads flip_bits(Quads a, std::uint8_t mask) {
    return {_mm512_xor_si512(a.all, _mm512_set1_epi8(static_cast<char>(mask)))};
}
inline Quads merge_bits(Quads a, Quads b, std::uint8_t mask) {
    const __m512i wide = _mm512_set1_epi8(static_cast<char>(mask));
    return {_mm512_ternarylogic_epi32(wide, a.all, b.all, 0xca)}; // wide ? a : b
}

inline Sums dot(Sums sums, Quads unsigned_bytes, Quads signed_bytes) {
    // Not the intrinsic: GCC 12 copies the accumulator before each.
    asm("vpdpbusd %2, %1, %0" : "+v"(sums.all) : "v"(unsigned_bytes.all), "v"(signed_bytes.all));
    return sums;
}
inline Sums dot_small(Sums sums, Quads unsigned_bytes, Quads signed_bytes) {
    return dot(sums, unsigned_bytes, signed_bytes);
}

inline void prefetch(const std::byte* at) {
    // Not the intrinsic: in a loop of its own it is no effect to GCC 12.
    asm volatile("prefetcht1 %0" ::"m"(*at));
}
