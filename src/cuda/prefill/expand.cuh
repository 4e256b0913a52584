// SPDX-License-Identifier: Apache-2.0
// What a chunk sees, as fp16 rows: quantized pages are dequantized and transformed back, as truncate() does it, pages
// that are fp16 are copied. A warp a page of one KV head; docs/kernels.md has the bytes.
#pragma once

#include "cuda/prefill/plan.cuh"
#include "cuda/rows.cuh"
#include "cuda/scales.cuh"
#include "cuda/stream.cuh"

namespace innerkv::cuda {

inline constexpr int kExpandWarps = 4; ///< of a block

/// Where byte `offset` of a page, a multiple of 16, goes.
template <class C>
__device__ inline int place_in_page(int offset) {
    if (offset < C::kValueOffset) {
        constexpr int kBytes = C::Key::block_bytes;
        return offset / kBytes * kBytes + place_in<typename C::Key>(offset % kBytes);
    }
    constexpr int kBytes = C::Value::block_bytes;
    const int side = offset - C::kValueOffset;
    return C::kValueOffset + side / kBytes * kBytes + place_in<typename C::Value>(side % kBytes);
}

/// What a warp has in shared memory.
template <class C>
struct alignas(128) Expansion {
    unsigned char page[C::kPageBytes];
    float norm[C::kDim]; ///< of keys, with the Hadamard matrix's factor
    float centre[C::kDim];
    float value_centre[C::kDim];
};

/// Where a page goes: token t of it, of those that the chunk sees, to row first_row + t of the chunk.
struct Place {
    unsigned char* tiles; ///< of the chunk, its KV head
    std::int64_t tile_stride;
    int first_row; ///< may be below 0
    int begin;     ///< tokens of the page
    int end;
};

/// The row of 128 bytes of 64 channels, and what its 16-byte pieces are swizzled by.
template <class C>
struct RowMemory {
    static constexpr int kTokens = tile_tokens(C::kDim);
    unsigned char* memory;
    int swizzle;

    __device__ RowMemory(const Place& place, int row)
        : memory(place.tiles + row / kTokens * place.tile_stride + row % kTokens * 128),
          swizzle(row % 8) {}
    /// Piece 0 .. 7 of 16 bytes of block `block` of 64 channels.
    __device__ unsigned char* piece(int block, int index) const {
        return memory + block * kTokens * 128 + (index ^ swizzle) * 16;
    }
};

/// Two fp16 numbers, saturated.
__device__ inline std::uint32_t saturated_halves(float first, float second) {
    const __half2 largest = __half2half2(__ushort_as_half(0x7bff)); // 65504
    const __half2 both =
        __hmin2(__hmax2(__floats2half2_rn(first, second), __hneg2(largest)), largest);
    return *reinterpret_cast<const std::uint32_t*>(&both);
}

/// What a group's codes, left at bit n, are multiplied by and what is added.
struct GroupTerms {
    float factor;
    float add;
};

template <class S>
__device__ inline GroupTerms group_terms(const RowScales& rows, bool second, int position) {
    const float unit = __uint_as_float(static_cast<std::uint32_t>(127 - position) << 23);
    const float scale = second ? rows.scale[1] : rows.scale[0];
    const float zero = second ? rows.zero[1] : rows.zero[0];
    if constexpr (S::kind == CodecKind::affine) {
        const float whole = scale * 0x1p112f;
        return {whole * unit, whole * 0.125f * (zero - middle_eighths(S::bits))};
    } else if constexpr (S::kind == CodecKind::symmetric) {
        return {scale * unit, -static_cast<float>(S::codec.bias()) * scale};
    } else {
        return {scale * unit, zero};
    }
}

/// Byte `index` of a quad as a float: put where a float from 2^23 on counts in ones.
__device__ inline float code_of(std::uint32_t quad, int index) {
    return __uint_as_float(__byte_perm(quad, 0x4b000000, 0x7440u + static_cast<unsigned>(index))) -
           8388608.0f;
}

/// Butterflies of elements `step` apart.
template <int kElements>
__device__ inline void cross_elements(float (&row)[kElements], int step) {
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
        if ((e & step) != 0) continue;
        const float a = row[e];
        const float b = row[e + step];
        row[e] = a + b;
        row[e + step] = a - b;
    }
}
/// The same of lanes.
template <int kElements>
__device__ inline void cross_lanes(float (&row)[kElements], int step, int lane) {
    const float sign = (lane & step) != 0 ? -1.0f : 1.0f;
#pragma unroll
    for (int e = 0; e < kElements; ++e)
        row[e] = fmaf(sign, row[e], __shfl_xor_sync(~0u, row[e], step));
}

/// Channels of a block of the Hadamard matrix.
template <class C>
constexpr int hadamard_channels() {
    return kBlockChannels * (C::kBlocks & -C::kBlocks);
}

/// A token's channels that lane i of its four has.
template <class C>
__device__ inline void write_key(const Expansion<C>& shared, const RowMemory<C>& memory,
                                 const float (&key)[16 * C::kBlocks], int i) {
#pragma unroll
    for (int at = 0; at < 2 * C::kBlocks; ++at) { // halves of blocks
        std::uint32_t halves[4];
#pragma unroll
        for (int c = 0; c < 8; c += 4) {
            const int channel = 32 * at + 8 * i + c;
            const float* from = key + 8 * at + c;
            const float4 norm = *reinterpret_cast<const float4*>(shared.norm + channel);
            const float4 centre = *reinterpret_cast<const float4*>(shared.centre + channel);
            halves[c / 2] =
                saturated_halves(fmaf(from[0], norm.x, centre.x), fmaf(from[1], norm.y, centre.y));
            halves[c / 2 + 1] =
                saturated_halves(fmaf(from[2], norm.z, centre.z), fmaf(from[3], norm.w, centre.w));
        }
        *reinterpret_cast<uint4*>(memory.piece(at / 2, 4 * (at % 2) + i)) = {halves[0], halves[1],
                                                                             halves[2], halves[3]};
    }
}

/// Keys of a page: lane 4g + i has 8 channels from 8i on of every 32, of tokens 2g, 2g + 1, 16 + 2g, 17 + 2g. One token at
/// a time in a loop: unrolled, instructions do not fit their cache.
template <class C>
__device__ void expand_keys(const Expansion<C>& shared, const Place& place, bool rotate, int lane) {
    using Key = typename C::Key;
    constexpr int kElements = 16 * C::kBlocks; // of a token: [block][high][8]
    const int g = lane / 4;
    const int i = lane % 4;
    QuadPair quads[C::kBlocks];
#pragma unroll
    for (int block = 0; block < C::kBlocks; ++block)
        quads[block] = load_quads<Key::bits>(shared.page + block * Key::block_bytes, g, i);
#pragma unroll 1
    for (int n = 0; n < 4; ++n) {
        const bool upper = n >= 2;
        const bool second = n % 2 != 0;
        float key[kElements];
#pragma unroll
        for (int block = 0; block < C::kBlocks; ++block)
#pragma unroll
            for (int high = 0; high < 2; ++high) {
                const int tile = 2 * high + (upper ? 1 : 0);
                const unsigned char* scales =
                    shared.page + block * Key::block_bytes + Key::code_bytes;
                const GroupTerms terms = group_terms<Key>(load_scales<Key>(scales, tile, g), second,
                                                          upper ? position_of<Key>(2 * high + 1)
                                                                : position_of<Key>(2 * high));
#pragma unroll
                for (int q = 0; q < 2; ++q) {
                    const auto& of_tiles = quads[block].quad[q];
                    const std::uint32_t lower_quad =
                        second ? of_tiles[2 * high][1] : of_tiles[2 * high][0];
                    const std::uint32_t upper_quad =
                        second ? of_tiles[2 * high + 1][1] : of_tiles[2 * high + 1][0];
                    const std::uint32_t quad = upper ? upper_quad : lower_quad;
#pragma unroll
                    for (int c = 0; c < 4; ++c)
                        key[16 * block + 8 * high + 4 * q + c] =
                            fmaf(code_of(quad, c), terms.factor, terms.add);
                }
            }
        if (rotate) {
            cross_elements(key, 1);
            cross_elements(key, 2);
            cross_elements(key, 4);
            cross_lanes(key, 1, lane);
            cross_lanes(key, 2, lane);
#pragma unroll
            for (int step = 8; step < hadamard_channels<C>() / 4; step *= 2)
                cross_elements(key, step);
        }
        const int token = (upper ? 16 : 0) + 2 * g + (second ? 1 : 0);
        if (token >= place.begin && token < place.end)
            write_key(shared, RowMemory<C>(place, place.first_row + token), key, i);
    }
}

/// Values of a page, into the second half of a tile: lane 4g + i has channels 2g, 2g + 1 of every 16, of tokens 8i ..
/// 8i + 7.
template <class C>
__device__ void expand_values(const Expansion<C>& shared, const Place& place, bool rotate,
                              int lane) {
    using Value = typename C::Value;
    constexpr int kElements = 8 * C::kBlocks; // of a token: [block][tile][row]
    const int g = lane / 4;
    const int i = lane % 4;
    const float factor = rotate ? hadamard_scale(hadamard_channels<C>()) : 1.0f;
    QuadPair quads[C::kBlocks];
    GroupTerms terms[kElements];
#pragma unroll
    for (int block = 0; block < C::kBlocks; ++block) {
        const unsigned char* codes = shared.page + C::kValueOffset + block * Value::block_bytes;
        quads[block] = load_quads<Value::bits>(codes, g, i);
#pragma unroll
        for (int tile = 0; tile < 4; ++tile) {
            const RowScales rows = load_scales<Value>(codes + Value::code_bytes, tile, g);
#pragma unroll
            for (int row = 0; row < 2; ++row)
                terms[8 * block + 2 * tile + row] =
                    group_terms<Value>(rows, row != 0, position_of<Value>(tile));
        }
    }
#pragma unroll 1
    for (int t = 0; t < 8; ++t) {
        float value[kElements];
#pragma unroll
        for (int e = 0; e < kElements; ++e) {
            const auto& quad = quads[e / 8].quad;
            value[e] =
                fmaf(code_of(t < 4 ? quad[0][e / 2 % 4][e % 2] : quad[1][e / 2 % 4][e % 2], t % 4),
                     terms[e].factor, terms[e].add);
        }
        if (rotate) {
            cross_elements(value, 1);
            cross_lanes(value, 4, lane);
            cross_lanes(value, 8, lane);
            cross_lanes(value, 16, lane);
#pragma unroll
            for (int step = 2; step < hadamard_channels<C>() / 8; step *= 2)
                cross_elements(value, step);
        }
        const int token = 8 * i + t;
        if (token < place.begin || token >= place.end) continue;
        const RowMemory<C> memory(place, place.first_row + token);
#pragma unroll
        for (int e = 0; e < kElements; e += 2) {
            const int block = e / 8;
            const int tile = e / 2 % 4;
            const float2 centre = *reinterpret_cast<const float2*>(shared.value_centre +
                                                                   64 * block + 16 * tile + 2 * g);
            *reinterpret_cast<std::uint32_t*>(memory.piece(block, 2 * tile + g / 4) + g % 4 * 4) =
                saturated_halves(fmaf(value[e], factor, centre.x),
                                 fmaf(value[e + 1], factor, centre.y));
        }
    }
}

/// Norm, centre of the page's epoch and value centre into shared memory; 1 and 0 where there is none.
template <class C>
__device__ void load_transforms(const AttentionParams& params, const Sequence& sequence, int head,
                                int page, Expansion<C>& shared, int lane) {
    const int at = head * params.head_dim;
    const std::byte* epoch =
        sequence.epochs != nullptr
            ? sequence.epochs[(sequence.first_page + page) / sequence.epoch_pages]
            : nullptr;
    const float factor = sequence.rotate != 0 ? hadamard_scale(hadamard_channels<C>()) : 1.0f;
    for (int channel = lane; channel < C::kDim; channel += kWarpSize) {
        const bool present = channel < params.head_dim;
        float centre = 0.0f;
        if (present && sequence.centre != nullptr) centre = sequence.centre[at + channel];
        if (present && epoch != nullptr)
            centre = __half2float(reinterpret_cast<const __half*>(epoch)[at + channel]);
        shared.norm[channel] =
            (present && sequence.norm != nullptr ? sequence.norm[at + channel] : 1.0f) * factor;
        shared.centre[channel] = centre;
        shared.value_centre[channel] = present && sequence.value_centre != nullptr
                                           ? sequence.value_centre[at + channel]
                                           : 0.0f;
    }
}

template <class C>
__device__ void expand_quantized(const AttentionParams& params, const Sequence& sequence, int head,
                                 int page, const Place& place, Expansion<C>& shared, int lane) {
    const auto* from = reinterpret_cast<const unsigned char*>(sequence.quantized.pages[page]) +
                       sequence.quantized.head_stride * static_cast<unsigned>(head);
    for (int offset = 16 * lane; offset < C::kPageBytes; offset += 16 * kWarpSize)
        copy_16_bytes(shared.page + place_in_page<C>(offset), from + offset);
    commit_copies();
    load_transforms(params, sequence, head, page, shared, lane);
    wait_for_copies<0>();
    __syncwarp();
    const bool rotate = uniform(sequence.rotate) != 0;
    expand_keys(shared, place, rotate, lane);
    Place values = place;
    values.tiles += tile_side_bytes(C::kDim);
    expand_values(shared, values, rotate, lane);
    __syncwarp(); // before the next page is copied
}

/// Rows [begin, end) of a chunk from `rows`, [rows][head_dim] fp16, keys or values; null: zeros. Channels beyond
/// head_dim become zeros.
template <class C>
__device__ void write_rows(const Place& place, int begin, int end, const unsigned char* rows,
                           int head_dim, int lane) {
    constexpr int kPieces = C::kDim / 8; // of a row
    for (int at = begin * kPieces + lane; at < end * kPieces; at += kWarpSize) {
        const int token = at / kPieces;
        const int piece = at % kPieces;
        uint4 channels{};
        if (rows != nullptr && 8 * piece < head_dim)
            channels = *reinterpret_cast<const uint4*>(rows + 2 * (token * head_dim + 8 * piece));
        const RowMemory<C> memory(place, place.first_row + token);
        *reinterpret_cast<uint4*>(memory.piece(piece / 8, piece % 8)) = channels;
    }
}

template <class C>
__device__ void copy_page(const AttentionParams& params, const Run& run, int head, int page,
                          const Place& place, int lane) {
    const auto* from = reinterpret_cast<const unsigned char*>(run.pages[page]) +
                       run.head_stride * static_cast<unsigned>(head);
    write_rows<C>(place, place.begin, place.end, from, params.head_dim, lane);
    Place values = place;
    values.tiles += tile_side_bytes(C::kDim);
    write_rows<C>(values, place.begin, place.end, from + 2 * kPageTokens * params.head_dim,
                  params.head_dim, lane);
}

/// Page `index` of a chunk, counted through its pieces, and behind the last one the rest of its tile: zeros, since a
/// weight of 0 times what is no number is none.
template <class C>
__device__ void expand_page(const AttentionParams& params, const PrefillMemory& memory,
                            const Chunk& chunk, int index, int head, Expansion<C>& shared,
                            int lane) {
    constexpr int kTokens = tile_tokens(C::kDim);
    constexpr std::int64_t kTileBytes = 2 * tile_side_bytes(C::kDim);
    const Sequence& sequence = params.sequences[chunk.sequence];
    Place place;
    place.tile_stride = params.kv_heads * kTileBytes;
    place.tiles = memory.tiles + chunk.first_tile * place.tile_stride + head * kTileBytes;
    const bool last = uniform(pages_of(chunk)) == index + 1;
    int piece = 0;
    int before = 0; // keys
    int count = uniform(pages_of(chunk.pieces[0]));
    while (index >= count) {
        index -= count;
        before += chunk.pieces[piece].count;
        ++piece;
        count = uniform(pages_of(chunk.pieces[piece]));
    }
    const Piece& own = chunk.pieces[piece];
    const int page = uniform(own.first / kPageTokens + index);
    const int start = kPageTokens * page; // of the page's tokens in the run
    place.first_row = before + start - own.first;
    place.begin = max(own.first - start, 0);
    place.end = min(own.first + own.count - start, kPageTokens);
    if (piece == 1)
        expand_quantized(params, sequence, head, page, place, shared, lane);
    else
        copy_page<C>(params, piece == 0 ? sequence.sink : sequence.recent, head, page, place, lane);
    if (!last) return;
    place.first_row = 0;
    const int tile_end = (chunk.tokens + kTokens - 1) / kTokens * kTokens;
    write_rows<C>(place, chunk.tokens, tile_end, nullptr, params.head_dim, lane);
    place.tiles += tile_side_bytes(C::kDim);
    write_rows<C>(place, chunk.tokens, tile_end, nullptr, params.head_dim, lane);
}

template <class C>
__global__ void __launch_bounds__(kExpandWarps* kWarpSize)
    expand_kernel(const __grid_constant__ AttentionParams params,
                  const __grid_constant__ PrefillMemory memory) {
    extern __shared__ __align__(128) unsigned char shared[];
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    auto& own = reinterpret_cast<Expansion<C>*>(shared)[warp];
    const PrefillPlan& plan = *memory.plan;
    const int units = uniform(plan.pages * params.kv_heads);
    int chunk = 0;
    for (int unit = uniform(static_cast<int>(blockIdx.x) * kExpandWarps + warp); unit < units;
         unit += static_cast<int>(gridDim.x) * kExpandWarps) {
        const int page = unit / params.kv_heads;
        chunk = uniform(find_chunk(plan, &Chunk::first_page, page, chunk));
        expand_page(params, memory, plan.chunk[chunk], uniform(page - plan.chunk[chunk].first_page),
                    unit - page * params.kv_heads, own, lane);
    }
}

} // namespace innerkv::cuda
