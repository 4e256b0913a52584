// SPDX-License-Identifier: Apache-2.0
// The dot products of AVX2 without VNNI; included after primitives.h.

/// Bytes to 16 bits first: the sum of two products of full bytes does not fit into them.
inline __m256i dot_half(__m256i sums, __m256i unsigned_bytes, __m256i signed_bytes) {
    const __m256i low_byte = _mm256_set1_epi16(0xff);
    const __m256i even =
        _mm256_madd_epi16(_mm256_and_si256(unsigned_bytes, low_byte),
                          _mm256_srai_epi16(_mm256_slli_epi16(signed_bytes, 8), 8));
    const __m256i odd =
        _mm256_madd_epi16(_mm256_srli_epi16(unsigned_bytes, 8), _mm256_srai_epi16(signed_bytes, 8));
    return _mm256_add_epi32(sums, _mm256_add_epi32(even, odd));
}
inline Sums dot(Sums sums, Quads unsigned_bytes, Quads signed_bytes) {
    return {dot_half(sums.low, unsigned_bytes.low, signed_bytes.low),
            dot_half(sums.high, unsigned_bytes.high, signed_bytes.high)};
}
/// Two products of at most 255 * 63 fit into 16 bits.
inline __m256i dot_small_half(__m256i sums, __m256i unsigned_bytes, __m256i signed_bytes) {
    const __m256i pairs = _mm256_maddubs_epi16(unsigned_bytes, signed_bytes);
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline Sums dot_small(Sums sums, Quads unsigned_bytes, Quads signed_bytes) {
    return {dot_small_half(sums.low, unsigned_bytes.low, signed_bytes.low),
            dot_small_half(sums.high, unsigned_bytes.high, signed_bytes.high)};
}
