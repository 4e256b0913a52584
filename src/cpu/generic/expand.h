// SPDX-License-Identifier: Apache-2.0
// From packed words to quads: the layouts of innerkv/format.h. Included inside an instruction set's
// namespace, after its primitives.

/// Packed codes by width; eight bits as they are (unsigned) or with the top bit flipped (signed);
/// expanded blocks, as expand_block leaves them, of small codes or of bytes.
enum Layout { two_bits, three_bits, four_bits, unsigned_bytes, signed_bytes, small, bytes };
constexpr int kLayouts = 7;

/// Codes fit the faster dot product.
constexpr bool is_small(Layout layout) {
    return layout != unsigned_bytes && layout != signed_bytes && layout != bytes;
}

constexpr Layout layout_of(int bits, bool is_signed) {
    return bits == 2   ? two_bits
           : bits == 3 ? three_bits
           : bits == 4 ? four_bits
           : is_signed ? signed_bytes
                       : unsigned_bytes;
}

/// Where tables by width have codes of so many bits.
constexpr int width_index(int bits) { return bits == 8 ? 3 : bits - 2; }

/// Bit position at which a tile's expanded codes stand, by the width of codes: the sums are 2^position
/// times too large.
constexpr int kPositions[9][4] = {{}, {}, {0, 2, 4, 4}, {0, 3, 0, 3}, {}, {}, {}, {}, {}};

/// 2^-position.
constexpr float kPositionScales[9][4] = {{},
                                         {},
                                         {1.0f, 0.25f, 0.0625f, 0.0625f},
                                         {1.0f, 0.125f, 1.0f, 0.125f},
                                         {1, 1, 1, 1},
                                         {},
                                         {},
                                         {},
                                         {1, 1, 1, 1}};

constexpr std::ptrdiff_t kQuadBytes = 64;

/// Quads 2p and 2p + 1 of a block's four tiles.
struct QuadPair {
    Quads quad[2][4];
};

template <Layout layout>
inline QuadPair expand(const std::byte* codes, int pair);

template <>
inline QuadPair expand<two_bits>(const std::byte* codes, int pair) {
    QuadPair out;
    for (int i = 0; i < 2; ++i) {
        const Quads word = load_quads(codes + (2 * pair + i) * kQuadBytes);
        out.quad[i][0] = keep_bits(word, 0x03);
        out.quad[i][1] = keep_bits(word, 0x0c);
        out.quad[i][2] = keep_bits(word, 0x30);
        out.quad[i][3] = keep_bits(shift_right<2>(word), 0x30);
    }
    return out;
}

template <>
inline QuadPair expand<three_bits>(const std::byte* codes, int pair) {
    const Quads even = load_quads(codes + 3 * pair * kQuadBytes);
    const Quads odd = load_quads(codes + (3 * pair + 1) * kQuadBytes);
    const Quads shared = load_quads(codes + (3 * pair + 2) * kQuadBytes);
    const Quads shared_odd = shift_right<4>(shared);
    QuadPair out;
    out.quad[0][0] = keep_bits(even, 0x07);
    out.quad[0][1] = keep_bits(even, 0x38);
    out.quad[0][2] = keep_bits(shared, 0x07);
    out.quad[0][3] = keep_bits(merge_bits(shared, shift_right<2>(even), 0x08), 0x38);
    out.quad[1][0] = keep_bits(odd, 0x07);
    out.quad[1][1] = keep_bits(odd, 0x38);
    out.quad[1][2] = keep_bits(shared_odd, 0x07);
    out.quad[1][3] = keep_bits(merge_bits(shared_odd, shift_right<2>(odd), 0x08), 0x38);
    return out;
}

template <>
inline QuadPair expand<four_bits>(const std::byte* codes, int pair) {
    QuadPair out;
    for (int i = 0; i < 2; ++i) {
        for (int half = 0; half < 2; ++half) {
            const Quads word = load_quads(codes + (4 * pair + 2 * i + half) * kQuadBytes);
            out.quad[i][2 * half] = keep_bits(word, 0x0f);
            out.quad[i][2 * half + 1] = keep_bits(shift_right<4>(word), 0x0f);
        }
    }
    return out;
}

template <>
inline QuadPair expand<unsigned_bytes>(const std::byte* codes, int pair) {
    QuadPair out;
    for (int i = 0; i < 2; ++i)
        for (int tile = 0; tile < 4; ++tile)
            out.quad[i][tile] = load_quads(codes + (8 * pair + 4 * i + tile) * kQuadBytes);
    return out;
}

template <>
inline QuadPair expand<signed_bytes>(const std::byte* codes, int pair) {
    QuadPair out = expand<unsigned_bytes>(codes, pair);
    for (auto& tiles : out.quad)
        for (Quads& quad : tiles) quad = flip_bits(quad, 0x80);
    return out;
}

template <>
inline QuadPair expand<small>(const std::byte* codes, int pair) {
    return expand<unsigned_bytes>(codes, pair);
}

template <>
inline QuadPair expand<bytes>(const std::byte* codes, int pair) {
    return expand<unsigned_bytes>(codes, pair);
}

/// Codes as pages have them, not in the cache yet.
constexpr bool is_packed(Layout layout) { return layout != small && layout != bytes; }

/// What is to be prefetched while a block is multiplied: lines of a later page.
struct Ahead {
    const std::byte* first;
    int lines;

    /// For the first rows of a block; later ones would ask for the same again.
    Ahead from(int row) const { return {first, row == 0 ? lines : 0}; }
    /// Work on a pair of quads lies between two quarters, so that the line-fill buffers are never all taken.
    [[gnu::always_inline]] void prefetch_quarter(int quarter) const {
        const int count = (lines + 3) / 4;
        const int last = lines - count;
        const int start = count * quarter < last ? count * quarter : last;
        for (int line = 0; line < count; ++line) prefetch(first + (start + line) * kQuadBytes);
    }
};

constexpr std::ptrdiff_t kExpandedBytes = 8 * 4 * kQuadBytes;

/// A whole block: `expanded` has kExpandedBytes.
template <Layout layout>
void expand_block(const std::byte* codes, const Ahead& ahead, std::byte* expanded) {
    for (int pair = 0; pair < 4; ++pair) {
        ahead.prefetch_quarter(pair);
        const QuadPair quads = expand<layout>(codes, pair);
        for (int i = 0; i < 2; ++i)
            for (int tile = 0; tile < 4; ++tile)
                store_quads(quads.quad[i][tile], expanded + (8 * pair + 4 * i + tile) * kQuadBytes);
    }
}

using ExpandBlock = void (*)(const std::byte*, const Ahead&, std::byte*);
constexpr ExpandBlock kExpandBlock[] = {expand_block<two_bits>, expand_block<three_bits>,
                                        expand_block<four_bits>, expand_block<unsigned_bytes>,
                                        expand_block<signed_bytes>};

/// What to subtract from an expanded code: the level 0 of a symmetric code, less what flipping its top
/// bit has already taken off.
inline int code_bias(const Side& side, bool is_signed) {
    return (side.asymmetric ? 0 : 1 << (side.bits - 1)) - (is_signed && side.bits == 8 ? 128 : 0);
}
