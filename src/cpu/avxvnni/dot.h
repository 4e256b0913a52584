// SPDX-License-Identifier: Apache-2.0
// The dot products of AVX-VNNI; included after avx2/primitives.h.

inline Sums dot(Sums sums, Quads unsigned_bytes, Quads signed_bytes) {
    return {_mm256_dpbusd_avx_epi32(sums.low, unsigned_bytes.low, signed_bytes.low),
            _mm256_dpbusd_avx_epi32(sums.high, unsigned_bytes.high, signed_bytes.high)};
}
inline Sums dot_small(Sums sums, Quads unsigned_bytes, Quads signed_bytes) {
    return dot(sums, unsigned_bytes, signed_bytes);
}
