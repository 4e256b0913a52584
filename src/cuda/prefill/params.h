// SPDX-License-Identifier: Apache-2.0
// Attention of long chunks in three launches: a plan, the history written out as fp16 rows, products on them. Plain
// data and numbers that host and device agree on.
//
// A tile has as many tokens as a product takes at a time, keys, then values, of one KV head, [padded_dim / 64][tokens]
// rows of 64 channels: 128 bytes, whose 16-byte piece c lies at c ^ (row % 8), as wgmma reads shared memory. Tiles of
// a chunk follow each other, [tile][kv_head].
#pragma once

#include "cuda/params.h"

namespace innerkv::cuda {

/// Sequences with fewer query rows a KV head are not worth writing their history out.
inline constexpr int kLeastChunkRows = 160;
inline constexpr int kChunkRows = 128; ///< query rows that a block of threads takes at a time

constexpr int tile_tokens(int padded_dim) { return padded_dim <= 128 ? 128 : 64; }
/// A part of an item that is cut has at least so many tiles.
inline constexpr int kLeastPartTiles = 4;

/// Of keys or of values.
constexpr int tile_side_bytes(int padded_dim) { return 2 * tile_tokens(padded_dim) * padded_dim; }

inline constexpr int kConsumers = 2;    ///< warpgroups of a block that multiply
inline constexpr int kWarpgroup = 128;  ///< threads
inline constexpr int kRowsOfThread = 2; ///< of an item
/// What a warpgroup leaves of a part of an item, [...][thread]: sums, then a reference and a weight for each row.
constexpr int part_floats(int padded_dim) {
    return kWarpgroup * (padded_dim / 2 + 2 * kRowsOfThread);
}

/// Tokens of a run that the chunk sees.
struct Piece {
    int first; ///< of the run
    int count;
    int position; ///< of the first one
};

/// What is known of a sequence whose query tokens are taken together.
struct Chunk {
    int sequence;
    int tokens;      ///< keys that any of its queries sees
    Piece pieces[3]; ///< sink, quantized, recent: these tokens, in this order
    int first_tile;  ///< of the chunk, and what lies in front of it in all chunks
    int first_page;
    int first_item;
};

/// In device memory.
struct PrefillPlan {
    int chunks;
    int pages; ///< of all chunks, each of all KV heads
    int items; ///< kChunkRows query rows of one KV head
    int whole; ///< items that are one part: as many as give all blocks the same
    int parts; ///< of each of the others
    Chunk chunk[kMaxSequences];
};

struct PrefillMemory {
    PrefillPlan* plan;
    Sequence* others; ///< [count]: the sequences, with no query tokens where they are a chunk's
    unsigned char* tiles;
    float* parts;  ///< [max_parts][kConsumers][part_floats()]
    int* arrivals; ///< [max_parts][kConsumers], all 0 between launches
    int max_tiles;
    int max_parts; ///< of all items together, where they are cut
    int blocks;    ///< of a launch that fills the device
};

} // namespace innerkv::cuda
