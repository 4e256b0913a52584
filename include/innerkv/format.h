// SPDX-License-Identifier: Apache-2.0
// The byte-level specification of a page, and the table of presets. Layout only: quantization is in
// codec.h, and nothing here knows of sequences.
//
// Page. 32 consecutive tokens of one KV head of one layer, `head_dim` channels, padded to a multiple
// of 64:
//
//     [ K block 0 | K block 1 | ... | V block 0 | V block 1 | ... ]      padded_dim / 64 of each
//
// Block. 32 tokens x 64 channels of one side, four tiles:
//
//     [ codes: 256 * bits bytes | 64 scales, fp16 | 64 zero-points, fp16, unless symmetric ]
//     [ codes: 256 * bits bytes | 64 scales, 1 byte | 64 zero-points, 1 byte ]         affine
//
// Tile. 16 outer rows x 32 inner elements: one group (scale, zero-point) per outer row.
//
//              outer row r        inner element i       tile t in its block
//     K        token % 16         channel % 32          2 * (channel % 64 / 32) + token / 16
//     V        channel % 16       token                 channel % 64 / 16
//
// `token` counts from the page's first. The scale (and zero-point) of tile t, row r is element
// 16 * t + r of its array.
//
// Codes. The atom is a quad: four consecutive inner elements 4k..4k+3 of one row, one byte each once
// expanded: what vpdpbusd, tdpbusd, sdot and a register of mma.m16n8k32 consume. Element 4k + j is
// always in byte j of a 32-bit word. Word w of a block holds row r at byte offset (16 * w + r) * 4, so
// sixteen rows are one 64-byte register. Codes are unsigned. In every byte, the code of quad k (0..7)
// of tile t (0..3) lies here (bit 0 is the lowest):
//
//     8 bits   word 4k + t          bits 0-7
//     4 bits   word 2k + t / 2      bits 4 * (t % 2) ..
//     2 bits   word k               bits 2 * t ..
//     3 bits   quads 2p and 2p + 1 share words A = 3p, B = 3p + 1, C = 3p + 2; let E be A for an
//              even quad and B for an odd one, o = 0 for even and 4 for odd:
//                tile 0    E bits 0-2
//                tile 1    E bits 3-5
//                tile 2    C bits o .. o+2
//                tile 3    code >> 1 in E bits 6-7, code & 1 in C bit o + 3
//
// A kernel need not move a code to bit 0: at bit position n the integer sum is 2^n times too large,
// and the scale absorbs it. Three registers of 3-bit codes expand to eight in 13 integer operations;
// docs/format.md counts them for every width and processor.
//
// Value of a code c under scale s and zero-point z:
//
//     symmetric     s * (c - 2^(bits-1))
//     asymmetric    s * c + z
//     hybrid        asymmetric where the sign bit of the stored scale is set (s is its magnitude; it may
//                   be 0, so test the bit, not scale < 0), symmetric otherwise (z is stored as 0)
//     affine        s * (c - (2^bits - 1) / 2 + z / 8)
//
// An affine scale is the upper eight bits of an fp16 number without its sign: five of exponent, three of
// mantissa; s = fp16(byte << 7). Its zero-point is a signed byte, in eighths of a step, and moves the
// middle of the codes: so both cost what one fp16 scale costs, and symmetric and affine pages of a width
// have the same size. There is none of 8 bits, whose steps are finer than such a scale. A scale byte of f8
// or more would be infinity or NaN and is never written.
//
// The scale of a symmetric codec may be negative. Every scale and zero-point that this library writes
// is finite. All integers are little-endian. The same bytes on every backend.
//
// Padding. Padding channels are quantized as zeros. V groups and K groups of padding alone get scale 0
// and zero-point 0: value 0. In the K group that padding shares with channels (head_dim 80 and 112) it
// has value 0 under a symmetric scale, and lies within s / 2 of 0 under a zero-point. Queries are
// padded with zeros, so no sum sees it.
//
// f16 page: K rows [32][head_dim] fp16, then V rows likewise, without padding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace innerkv {

inline constexpr int kGroupSize = 32;     ///< products that share one scale
inline constexpr int kPageTokens = 32;    ///< tokens in a page
inline constexpr int kBlockChannels = 64; ///< channels in a block; head_dim is padded to a multiple
inline constexpr int kTileRows = 16;      ///< outer rows in a tile
inline constexpr int kTilesPerBlock = 4;
inline constexpr int kQuadsPerTile = kGroupSize / 4;
inline constexpr int kGroupsPerBlock = kTilesPerBlock * kTileRows;
inline constexpr std::size_t kPageAlignment = 64;

enum class CodecKind : std::uint8_t { f16, symmetric, asymmetric, hybrid, affine };
/// As it is spelled here.
std::string_view kind_name(CodecKind kind);

/// How one side (K or V) of a page is stored. `bits` is 2, 3, 4 or 8; 16 for f16.
struct Codec {
    CodecKind kind = CodecKind::f16;
    std::uint8_t bits = 16;

    friend constexpr bool operator==(const Codec&, const Codec&) = default;

    constexpr bool quantized() const { return kind != CodecKind::f16; }
    constexpr bool has_zero_points() const {
        return kind == CodecKind::asymmetric || kind == CodecKind::hybrid ||
               kind == CodecKind::affine;
    }
    /// The code of level 0 in a symmetric group.
    constexpr int bias() const { return 1 << (bits - 1); }
    constexpr std::size_t code_bytes() const { return std::size_t{256} * bits; }
    /// Of the 64 scales, and of the 64 zero-points where there are any.
    constexpr std::size_t scale_bytes() const {
        return kGroupsPerBlock * (kind == CodecKind::affine ? 1 : sizeof(std::uint16_t));
    }
    /// Bytes of a block of 32 tokens x 64 channels; quantized codecs only.
    constexpr std::size_t block_bytes() const {
        return code_bytes() + scale_bytes() * (has_zero_points() ? 2 : 1);
    }
};

inline constexpr Codec kF16{};
constexpr Codec symmetric(int bits) {
    return {CodecKind::symmetric, static_cast<std::uint8_t>(bits)};
}
constexpr Codec asymmetric(int bits) {
    return {CodecKind::asymmetric, static_cast<std::uint8_t>(bits)};
}
constexpr Codec hybrid(int bits) { return {CodecKind::hybrid, static_cast<std::uint8_t>(bits)}; }
constexpr Codec affine(int bits) { return {CodecKind::affine, static_cast<std::uint8_t>(bits)}; }

static_assert(symmetric(2).block_bytes() == 640 && symmetric(3).block_bytes() == 896);
static_assert(symmetric(4).block_bytes() == 1152 && symmetric(8).block_bytes() == 2176);
static_assert(affine(2).block_bytes() == symmetric(2).block_bytes());
static_assert(affine(3).block_bytes() == symmetric(3).block_bytes());
static_assert(affine(4).block_bytes() == symmetric(4).block_bytes());
static_assert(asymmetric(2).block_bytes() == 768 && hybrid(2).block_bytes() == 768);
static_assert(asymmetric(3).block_bytes() == 1024 && hybrid(3).block_bytes() == 1024);
static_assert(asymmetric(4).block_bytes() == 1280 && hybrid(4).block_bytes() == 1280);
static_assert(asymmetric(8).block_bytes() == 2304 && hybrid(8).block_bytes() == 2304);
// So blocks, and quantized pages one behind the other, begin at multiples of a line.
static_assert(symmetric(2).code_bytes() % kPageAlignment == 0);
static_assert(symmetric(2).scale_bytes() % kPageAlignment == 0);

/// Format of a page: both sides are quantized, or both are f16.
struct PageFormat {
    Codec k;
    Codec v;
    int head_dim = 0; ///< channels of K and of V

    friend constexpr bool operator==(const PageFormat&, const PageFormat&) = default;

    constexpr bool quantized() const { return k.quantized(); }
    constexpr int padded_dim() const {
        return (head_dim + kBlockChannels - 1) / kBlockChannels * kBlockChannels;
    }
    constexpr int blocks() const { return padded_dim() / kBlockChannels; }
    constexpr std::size_t side_bytes(Codec codec) const {
        return codec.quantized()
                   ? codec.block_bytes() * static_cast<std::size_t>(blocks())
                   : sizeof(std::uint16_t) * kPageTokens * static_cast<std::size_t>(head_dim);
    }
    /// Byte offset of the V side.
    constexpr std::size_t v_offset() const { return side_bytes(k); }
    constexpr std::size_t page_bytes() const { return side_bytes(k) + side_bytes(v); }
    /// Bits a value of K or V costs, scales and zero-points counted, padding counted.
    constexpr double bits_per_value() const {
        return 8.0 * static_cast<double>(page_bytes()) / (2.0 * kPageTokens * head_dim);
    }
    /// Throws InvalidArgument naming the fault unless codecs and head_dim are supported.
    void validate() const;
};

static_assert(PageFormat{symmetric(3), symmetric(3), 128}.page_bytes() == 3584);
static_assert(PageFormat{symmetric(3), symmetric(3), 128}.bits_per_value() == 3.5);
static_assert(PageFormat{kF16, kF16, 128}.page_bytes() == 16384);
static_assert(PageFormat{kF16, kF16, 80}.page_bytes() % kPageAlignment == 0);

/// Codecs of one layer's pages, where layers differ.
struct LayerCodecs {
    Codec k;
    Codec v;

    friend constexpr bool operator==(const LayerCodecs&, const LayerCodecs&) = default;
};

/// The codecs that presets have for so many bits of keys and of values: affine for 2, 3 and 4, symmetric for 8.
/// Throws InvalidArgument naming other numbers of bits.
LayerCodecs codecs_of_bits(int k_bits, int v_bits);
/// PageFormat::bits_per_value(), the mean of layers that have these codecs; 0 of none.
double mean_bits_per_value(std::span<const LayerCodecs> layers, int head_dim);

/// Head dimensions every backend supports.
inline constexpr int kHeadDims[] = {64, 80, 96, 112, 128, 192, 256};

enum class KeyNormPolicy : std::uint8_t {
    none,
    prefill,   ///< per sequence, from its first keys outside the windows (the paper, section 4)
    balanced,  ///< likewise, from keys and queries (TransformPolicy in cache.h)
    calibrated ///< `static` in the command line: one set per model, given by the caller
};

/// A named cache configuration. This table is the only list of presets.
struct Preset {
    std::string_view name;
    Codec k;
    Codec v;
    int sink_tokens;   ///< first tokens of a sequence that stay fp16
    int recent_tokens; ///< newest tokens that stay fp16; up to 32 more until a page is full
    KeyNormPolicy key_norm;
    bool rotate; ///< keys are centred, keys and values rotated (TransformPolicy in cache.h)
    std::string_view summary;

    constexpr PageFormat format(int head_dim) const { return {k, v, head_dim}; }
};

std::span<const Preset> presets();

/// none, prefill or balanced, by name; nothing for other names.
std::optional<KeyNormPolicy> find_key_norm(std::string_view name);

/// The preset with the codecs and the key transform of the InnerQ paper: symmetric codes, key norm alone.
Preset paper_preset(Preset preset);

/// The preset of that name; throws InvalidArgument listing the names there are.
const Preset& find_preset(std::string_view name);

} // namespace innerkv
