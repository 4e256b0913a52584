// SPDX-License-Identifier: Apache-2.0
#include "format/layout.h"

#include <cstring>

namespace innerkv {
namespace {

/// A run of bits of byte `inner % 4` of word `word` that holds bits of a code.
struct BitField {
    int word;
    int shift;
    int bits;
};

/// The field of a whole code, or of the bits above the lowest where a 3-bit code is split (tile 3).
BitField main_field(int bits, int tile, int quad) {
    if (bits == 8) return {4 * quad + tile, 0, 8};
    if (bits == 4) return {2 * quad + tile / 2, 4 * (tile % 2), 4};
    if (bits == 2) return {quad, 2 * tile, 2};
    const int first_word = quad / 2 * 3;
    if (tile == 2) return {first_word + 2, 4 * (quad % 2), 3};
    if (tile == 3) return {first_word + quad % 2, 6, 2};
    return {first_word + quad % 2, 3 * tile, 3};
}

bool is_split(int bits, int tile) { return bits == 3 && tile == 3; }

/// The lowest bit of a split code.
BitField low_field(int quad) { return {quad / 2 * 3 + 2, 4 * (quad % 2) + 3, 1}; }

std::size_t byte_offset(BitField field, int row, int inner) {
    return static_cast<std::size_t>((kTileRows * field.word + row) * 4 + inner % 4);
}

unsigned read_field(const std::byte* block, BitField field, int row, int inner) {
    const auto byte = std::to_integer<unsigned>(block[byte_offset(field, row, inner)]);
    return byte >> field.shift & ((1u << field.bits) - 1);
}

void write_field(std::byte* block, BitField field, int row, int inner, unsigned value) {
    std::byte& byte = block[byte_offset(field, row, inner)];
    const auto mask = static_cast<std::byte>(((1u << field.bits) - 1) << field.shift);
    byte = (byte & ~mask) | (static_cast<std::byte>(value << field.shift) & mask);
}

std::size_t group_offset(Codec codec, int tile, int row) {
    return codec.scale_bytes() / kGroupsPerBlock * static_cast<std::size_t>(kTileRows * tile + row);
}

} // namespace

std::uint8_t read_code(Codec codec, const std::byte* block, int tile, int row, int inner) {
    const int quad = inner / 4;
    unsigned code = read_field(block, main_field(codec.bits, tile, quad), row, inner);
    if (is_split(codec.bits, tile))
        code = code << 1 | read_field(block, low_field(quad), row, inner);
    return static_cast<std::uint8_t>(code);
}

void write_code(Codec codec, std::byte* block, int tile, int row, int inner, std::uint8_t code) {
    const int quad = inner / 4;
    const bool split = is_split(codec.bits, tile);
    write_field(block, main_field(codec.bits, tile, quad), row, inner,
                split ? code >> 1u : unsigned{code});
    if (split) write_field(block, low_field(quad), row, inner, code & 1u);
}

std::uint16_t read_scale(Codec codec, const std::byte* block, int tile, int row) {
    std::uint16_t scale = 0;
    std::memcpy(&scale, block + codec.code_bytes() + group_offset(codec, tile, row),
                codec.scale_bytes() / kGroupsPerBlock);
    return scale;
}

std::uint16_t read_zero_point(Codec codec, const std::byte* block, int tile, int row) {
    return read_scale(codec, block + codec.scale_bytes(), tile, row);
}

void write_scale(Codec codec, std::byte* block, int tile, int row, std::uint16_t scale) {
    std::memcpy(block + codec.code_bytes() + group_offset(codec, tile, row), &scale,
                codec.scale_bytes() / kGroupsPerBlock);
}

void write_zero_point(Codec codec, std::byte* block, int tile, int row, std::uint16_t zero_point) {
    write_scale(codec, block + codec.scale_bytes(), tile, row, zero_point);
}

} // namespace innerkv
