// SPDX-License-Identifier: Apache-2.0
// Products with codes where dot and dot_small multiply unsigned by signed bytes: codes of keys are the unsigned
// side, queries the signed one; probabilities the unsigned side, codes of values the signed one. Included
// inside an instruction set's namespace, after its primitives; one whose dot products have equal signs on both
// sides has its own (neon/primitives.h).

/// Whether 8-bit codes are multiplied as signed bytes, with their top bit flipped.
constexpr bool kSignedKeyBytes = false;
constexpr bool kSignedValueBytes = true;

/// sums + codes of keys x queries (int8), four products a lane. small_codes: they are 0 to 63.
template <bool small_codes>
inline Sums dot_keys(Sums sums, Quads codes, Quads queries) {
    return small_codes ? dot_small(sums, codes, queries) : dot(sums, codes, queries);
}
/// sums + probabilities (uint8) x codes of values, likewise.
template <bool small_codes>
inline Sums dot_values(Sums sums, Quads probabilities, Quads codes) {
    return small_codes ? dot_small(sums, probabilities, codes) : dot(sums, probabilities, codes);
}
