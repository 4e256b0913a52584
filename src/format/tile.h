// SPDX-License-Identifier: Apache-2.0
// A tile, expanded: what quantization makes and packing takes, sixteen rows side by side so that the
// compiler works on whole registers. Gives the same codes and scales as group.cpp, group by group.
#pragma once

#include <cstddef>
#include <cstdint>

#include "innerkv/format.h"

namespace innerkv {

/// Values of a tile, [inner][row].
using TileValues = float[kGroupSize][kTileRows];

/// Codes, byte j of quads[k][r] is the code of inner element 4k + j of row r; scales and zero-points
/// as they are stored.
struct Tile {
    alignas(64) std::uint32_t quads[kQuadsPerTile][kTileRows];
    alignas(32) std::uint16_t scales[kTileRows];
    alignas(32) std::uint16_t zero_points[kTileRows];
};

/// False if a value is not finite or beyond 65504; the tile is then unspecified.
bool quantize_tile(Codec codec, const TileValues& values, Tile& tile);
void dequantize_tile(Codec codec, const Tile& tile, TileValues& values);

/// Writes a block, all of it, or reads it back.
void pack_block(Codec codec, const Tile (&tiles)[kTilesPerBlock], std::byte* block);
void expand_block(Codec codec, const std::byte* block, Tile (&tiles)[kTilesPerBlock]);

} // namespace innerkv
