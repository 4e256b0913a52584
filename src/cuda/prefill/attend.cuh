// SPDX-License-Identifier: Apache-2.0
// Attention of chunks on the rows that expand.cuh wrote: 128 query rows a block, one warpgroup that sends tiles of keys
// and values to shared memory, two that multiply 64 rows each. While the tensor cores work on the logits of one tile and
// the values of the tile before, nothing waits but the warpgroup itself; the other's exponentials fill the gaps.
#pragma once

#include "cuda/prefill/barrier.cuh"
#include "cuda/prefill/plan.cuh"
#include "cuda/query.cuh"
#include "cuda/softmax.cuh"

namespace innerkv::cuda {

inline constexpr int kConsumers = 2; ///< warpgroups
inline constexpr int kWarpgroup = 128;
inline constexpr int kAttendThreads = (kConsumers + 1) * kWarpgroup;
inline constexpr int kStages = 2;

template <int kBlocks_>
struct ChunkConfig {
    static constexpr int kBlocks = kBlocks_; ///< of 64 channels
    static constexpr int kDim = 64 * kBlocks;
    static constexpr int kTokens = tile_tokens(kDim);
    static constexpr int kSideBytes = tile_side_bytes(kDim);
    /// Sums of channels that one product has.
    static constexpr int kSpan = kBlocks % 2 == 0 ? 128 : 64;
    static constexpr int kSpans = kDim / kSpan;
};

template <class C>
struct alignas(1024) ChunkShared {
    unsigned char q[2 * kChunkRows * C::kDim]; ///< [channels / 64][rows], as tiles are
    unsigned char keys[kStages][C::kSideBytes];
    unsigned char values[kStages][C::kSideBytes];
    float scale[kChunkRows]; ///< of logits
    int faulty[kChunkRows];
    Barrier keys_full[kStages];
    Barrier values_full[kStages];
    Barrier keys_free[kStages];
    Barrier values_free[kStages];
};

/// A turn of the ring of stages.
struct Turn {
    int stage = 0;
    int parity = 0;
    __device__ void next() {
        if (++stage < kStages) return;
        stage = 0;
        parity ^= 1;
    }
};

/// kChunkRows rows of one KV head, and the tiles they see.
struct ChunkItem {
    int chunk;
    int kv_head;
    int first_row; ///< of the KV head: query tokens times query heads
    int first_tile;
    int last_tile;
    int all_begin; ///< keys that every row sees
    int all_end;
};

/// Two neighbouring elements of an output, which may lie anywhere.
__device__ inline void store_two(void* data, RowType type, std::int64_t at, float first,
                                 float second) {
    if (type == RowType::f32) {
        auto* to = static_cast<float*>(data) + at;
        if (reinterpret_cast<std::uintptr_t>(to) % sizeof(float2) == 0) {
            *reinterpret_cast<float2*>(to) = {first, second};
        } else {
            to[0] = first;
            to[1] = second;
        }
        return;
    }
    auto* to = static_cast<unsigned short*>(data) + at;
    std::uint32_t both = 0;
    if (type == RowType::f16) {
        const __half2 halves = __floats2half2_rn(first, second);
        both = *reinterpret_cast<const std::uint32_t*>(&halves);
    } else {
        const __nv_bfloat162 halves = __floats2bfloat162_rn(first, second);
        both = *reinterpret_cast<const std::uint32_t*>(&halves);
    }
    if (reinterpret_cast<std::uintptr_t>(to) % sizeof both == 0) {
        *reinterpret_cast<std::uint32_t*>(to) = both;
    } else {
        to[0] = static_cast<unsigned short>(both);
        to[1] = static_cast<unsigned short>(both >> 16);
    }
}

struct KeyRange {
    int begin;
    int end;
};

__device__ inline KeyRange keys_of_token(const AttentionParams& params, const Chunk& chunk,
                                         int token) {
    const Visible visible = visible_to(params, params.sequences[chunk.sequence], token, token);
    return {keys_below(chunk, visible.begin), keys_below(chunk, visible.end)};
}

/// The last rows, which see most, come first; blocks that run at the same time share a KV head's tiles.
template <class C>
__device__ ChunkItem chunk_item(const AttentionParams& params, const PrefillPlan& plan, int index) {
    ChunkItem item;
    item.chunk = find_chunk(plan, &Chunk::first_item, index, 0);
    const Chunk& chunk = plan.chunk[item.chunk];
    const Sequence& sequence = params.sequences[chunk.sequence];
    const int row_blocks = innerkv::cuda::row_blocks(params, sequence);
    const int at = index - chunk.first_item;
    item.kv_head = at / row_blocks;
    item.first_row = kChunkRows * (row_blocks - 1 - at % row_blocks);
    const int first_token = item.first_row / params.group;
    const int last_token =
        min((item.first_row + kChunkRows - 1) / params.group, sequence.query_tokens - 1);
    const KeyRange first = keys_of_token(params, chunk, first_token);
    const KeyRange last = keys_of_token(params, chunk, last_token);
    item.first_tile = first.begin / C::kTokens;
    item.last_tile = max(item.first_tile, (last.end + C::kTokens - 1) / C::kTokens);
    item.all_begin = last.begin;
    item.all_end = first.end;
    return item;
}

template <class C>
__device__ void send_tiles(const AttentionParams& params, const PrefillMemory& memory,
                           ChunkShared<C>& shared) {
    Turn turn;
    for (int index = static_cast<int>(blockIdx.x); index < memory.plan->items;
         index += static_cast<int>(gridDim.x)) {
        const ChunkItem item = chunk_item<C>(params, *memory.plan, index);
        const int first = memory.plan->chunk[item.chunk].first_tile;
        for (int tile = item.first_tile; tile < item.last_tile; ++tile) {
            const unsigned char* from =
                memory.tiles +
                (std::int64_t{first + tile} * params.kv_heads + item.kv_head) * 2 * C::kSideBytes;
            shared.keys_free[turn.stage].wait(turn.parity ^ 1);
            shared.keys_full[turn.stage].arrive_and_expect(C::kSideBytes);
            copy_to_shared(shared.keys[turn.stage], from, C::kSideBytes,
                           shared.keys_full[turn.stage]);
            shared.values_free[turn.stage].wait(turn.parity ^ 1);
            shared.values_full[turn.stage].arrive_and_expect(C::kSideBytes);
            copy_to_shared(shared.values[turn.stage], from + C::kSideBytes, C::kSideBytes,
                           shared.values_full[turn.stage]);
            turn.next();
        }
    }
}

/// A warpgroup's 64 rows of an item.
template <class C>
class ChunkRows {
public:
    __device__ ChunkRows(const AttentionParams& params, ChunkShared<C>& shared, int warpgroup)
        : params_(params), shared_(shared), warpgroup_(warpgroup),
          warp_(static_cast<int>(threadIdx.x) % kWarpgroup / kWarpSize),
          lane_(static_cast<int>(threadIdx.x) % kWarpSize),
          row_(64 * warpgroup + 16 * warp_ + lane_ / 4) {}

    __device__ void attend(const Chunk& chunk, const ChunkItem& item) {
        load_queries(chunk, item);
        begin_rows(chunk, item);
        if (item.first_tile < item.last_tile) {
            first_logits(item);
            for (int tile = item.first_tile + 1; tile < item.last_tile; ++tile)
                next_tile(item, tile);
            last_values();
        }
        write(chunk, item);
    }

private:
    static constexpr int kLogits = C::kTokens / 2; ///< of a lane: two rows
    static constexpr int kSums = C::kSpan / 2;

    __device__ int row_index(const ChunkItem& item, int half) const {
        return item.first_row + row_ + 8 * half;
    }

    /// This warp's 16 rows to fp16, in units of their largest.
    __device__ void load_queries(const Chunk& chunk, const ChunkItem& item) {
        meet_warpgroup(1 + warpgroup_); // rows of the item before have been read
        const int query_tokens = params_.sequences[chunk.sequence].query_tokens;
#pragma unroll 4
        for (int r = 0; r < 16; ++r) {
            const int row = 64 * warpgroup_ + 16 * warp_ + r;
            const int token = (item.first_row + row) / params_.group;
            const int head = item.kv_head * params_.group + (item.first_row + row) % params_.group;
            std::uint32_t bits[2 * C::kBlocks];
            load_row(params_.q, params_.q_type,
                     chunk.sequence * params_.q_sequence_stride + token * params_.q_token_stride +
                         head * params_.q_head_stride,
                     token < query_tokens ? params_.head_dim : 0, lane_, bits);
            write_query(bits, row);
        }
        publish_shared();
        meet_warpgroup(1 + warpgroup_);
    }

    __device__ void write_query(const std::uint32_t (&bits)[2 * C::kBlocks], int row) {
        float q[2 * C::kBlocks];
        bool faulty = false;
        float largest = 0.0f;
#pragma unroll
        for (int j = 0; j < 2 * C::kBlocks; ++j) {
            q[j] = float_of(bits[j], params_.q_type) * params_.logit_scale;
            faulty = faulty || !(fabsf(q[j]) <= kLargestQuery);
            largest = fmaxf(largest, fabsf(q[j]));
        }
        faulty = __any_sync(~0u, faulty) != 0;
        largest = largest_in_warp(largest);
        const bool nothing = faulty || !(largest > kSmallestQuery);
        const float inverse = nothing ? 0.0f : __fdividef(1.0f, largest);
#pragma unroll
        for (int j = 0; j < 2 * C::kBlocks; ++j) {
            const int channel = kWarpSize * j + lane_;
            const int piece = channel % 64 / 8 ^ row % 8;
            auto* to = reinterpret_cast<__half*>(shared_.q + channel / 64 * kChunkRows * 128 +
                                                 row * 128 + piece * 16);
            to[channel % 8] = __float2half_rn(nothing ? 0.0f : q[j] * inverse);
        }
        if (lane_ != 0) return;
        shared_.scale[row] = nothing ? 1.0f : largest; // not 0: times minus infinity
        shared_.faulty[row] = faulty ? 1 : 0;
    }

    __device__ void begin_rows(const Chunk& chunk, const ChunkItem& item) {
        const int query_tokens = params_.sequences[chunk.sequence].query_tokens;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int token = row_index(item, half) / params_.group;
            // A row that is none sees all: no tile is masked for it.
            seen_[half] =
                token < query_tokens ? keys_of_token(params_, chunk, token) : KeyRange{0, 1 << 30};
            scale_[half] = shared_.scale[row_ + 8 * half];
            state_[half] = {kNoReference, 0.0f};
        }
#pragma unroll
        for (int span = 0; span < C::kSpans; ++span)
#pragma unroll
            for (int e = 0; e < kSums; ++e) sums_[span][e] = 0.0f;
    }

    __device__ void multiply_keys(int stage) {
        const std::uint64_t q =
            matrix_descriptor(shared_address(shared_.q) + 64 * 128 * warpgroup_, 16);
        const std::uint64_t keys = matrix_descriptor(shared_address(shared_.keys[stage]), 16);
        settle(logits_);
        begin_products();
#pragma unroll
        for (int step = 0; step < C::kDim / 16; ++step)
            multiply_shared(logits_, advance(q, step / 4 * kChunkRows * 128 + step % 4 * 32),
                            advance(keys, step / 4 * C::kTokens * 128 + step % 4 * 32), step > 0);
        end_products();
    }

    __device__ void multiply_values(int stage) {
        const std::uint64_t values =
            matrix_descriptor(shared_address(shared_.values[stage]), C::kTokens * 128);
#pragma unroll
        for (int span = 0; span < C::kSpans; ++span) settle(sums_[span]);
        begin_products();
#pragma unroll
        for (int step = 0; step < C::kTokens / 16; ++step)
#pragma unroll
            for (int span = 0; span < C::kSpans; ++span)
                multiply_registers(
                    sums_[span], &weights_[4 * step],
                    advance(values, span * C::kSpan / 64 * C::kTokens * 128 + step * 16 * 128));
        end_products();
    }

    __device__ void release(Barrier& barrier) {
        __syncwarp();
        if (lane_ == 0) barrier.arrive();
    }

    __device__ void first_logits(const ChunkItem& item) {
        shared_.keys_full[keys_turn_.stage].wait(keys_turn_.parity);
        multiply_keys(keys_turn_.stage);
        wait_for_products<0>();
        settle(logits_);
        release(shared_.keys_free[keys_turn_.stage]);
        keys_turn_.next();
        float factors[2];
        weigh(item, item.first_tile, factors);
        pack_weights();
    }

    /// Logits of a tile, and values of the tile before.
    __device__ void next_tile(const ChunkItem& item, int tile) {
        shared_.keys_full[keys_turn_.stage].wait(keys_turn_.parity);
        multiply_keys(keys_turn_.stage);
        shared_.values_full[values_turn_.stage].wait(values_turn_.parity);
        multiply_values(values_turn_.stage);
        wait_for_products<1>();
        settle(logits_);
        release(shared_.keys_free[keys_turn_.stage]);
        keys_turn_.next();
        float factors[2];
        weigh(item, tile, factors);
        wait_for_products<0>();
#pragma unroll
        for (int span = 0; span < C::kSpans; ++span) settle(sums_[span]);
        release(shared_.values_free[values_turn_.stage]);
        values_turn_.next();
#pragma unroll
        for (int span = 0; span < C::kSpans; ++span)
#pragma unroll
            for (int e = 0; e < kSums; ++e) sums_[span][e] *= factors[e / 2 % 2];
        pack_weights();
    }

    __device__ void last_values() {
        shared_.values_full[values_turn_.stage].wait(values_turn_.parity);
        multiply_values(values_turn_.stage);
        wait_for_products<0>();
#pragma unroll
        for (int span = 0; span < C::kSpans; ++span) settle(sums_[span]);
        release(shared_.values_free[values_turn_.stage]);
        values_turn_.next();
    }

    /// Logits become weights 2^(logit - reference); what sums so far are multiplied by, into factors.
    __device__ void weigh(const ChunkItem& item, int tile, float (&factors)[2]) {
        float scale[2] = {scale_[0], scale_[1]};
        if (params_.soft_cap > 0.0f) cap_logits(scale);
        const int first = tile * C::kTokens;
        if (first < item.all_begin || first + C::kTokens > item.all_end) mask_logits(first);
        float top[2] = {kNoReference, kNoReference};
#pragma unroll
        for (int e = 0; e < kLogits; ++e) top[e / 2 % 2] = fmaxf(top[e / 2 % 2], logits_[e]);
        bool large = false;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            top[half] = fmaxf(top[half], __shfl_xor_sync(~0u, top[half], 1));
            top[half] = fmaxf(top[half], __shfl_xor_sync(~0u, top[half], 2));
            // Of a row that sees nothing here the scale must not make it less than it is.
            top[half] = top[half] == kNoReference ? kNoReference : top[half] * scale[half];
            large = large || (fabsf(top[half]) > kLargeLogit && top[half] != kNoReference);
        }
        if (__any_sync(~0u, large) != 0) scale_logits(scale);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float reference = fmaxf(state_[half].reference, top[half]);
            factors[half] = fast_exp2(state_[half].reference - reference);
            state_[half].reference = reference;
            state_[half].weight *= factors[half];
        }
#pragma unroll
        for (int e = 0; e < kLogits; ++e) {
            const int half = e / 2 % 2;
            logits_[e] = fast_exp2(fmaf(logits_[e], scale[half], -state_[half].reference));
            state_[half].weight += logits_[e];
        }
    }

    /// Beyond, a product rounded once more could exceed the largest by what fp16 does not hold.
    static constexpr float kLargeLogit = 1 << 20;

    __device__ void scale_logits(float (&scale)[2]) {
#pragma unroll
        for (int e = 0; e < kLogits; ++e) logits_[e] *= scale[e / 2 % 2];
        scale[0] = scale[1] = 1.0f;
    }

    __device__ void cap_logits(float (&scale)[2]) {
        scale_logits(scale);
#pragma unroll
        for (int e = 0; e < kLogits; ++e)
            logits_[e] =
                params_.soft_cap * hyperbolic_tangent(__fdividef(logits_[e], params_.soft_cap));
    }

    __device__ void mask_logits(int first) {
#pragma unroll
        for (int e = 0; e < kLogits; ++e) {
            const int key = first + 8 * (e / 4) + 2 * (lane_ % 4) + e % 2;
            const KeyRange& seen = seen_[e / 2 % 2];
            if (key < seen.begin || key >= seen.end) logits_[e] = -__uint_as_float(0x7f800000);
        }
    }

    __device__ void pack_weights() {
#pragma unroll
        for (int e = 0; e < kLogits; e += 2) {
            const __half2 both = __floats2half2_rn(logits_[e], logits_[e + 1]);
            weights_[e / 2] = *reinterpret_cast<const std::uint32_t*>(&both);
        }
    }

    __device__ void write(const Chunk& chunk, const ChunkItem& item) {
        const int query_tokens = params_.sequences[chunk.sequence].query_tokens;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float weight = state_[half].weight;
            weight += __shfl_xor_sync(~0u, weight, 1);
            weight += __shfl_xor_sync(~0u, weight, 2);
            const int row = row_index(item, half);
            const int token = row / params_.group;
            const int head = item.kv_head * params_.group + row % params_.group;
            if (token >= query_tokens) continue;
            if (shared_.faulty[row_ + 8 * half] != 0 && weight > 0.0f)
                weight = __uint_as_float(0x7fffffff);
            const float inverse = weight == 0.0f ? 0.0f : 1.0f / weight;
            write_sums(chunk.sequence * params_.out_sequence_stride +
                           token * params_.out_token_stride + head * params_.out_head_stride,
                       half, inverse);
            if (lane_ % 4 == 0 && params_.log_sum_exp != nullptr)
                write_log_sum_exp(chunk.sequence, token, head, state_[half].reference, weight);
        }
    }

    __device__ void write_sums(std::int64_t at, int half, float inverse) {
#pragma unroll
        for (int span = 0; span < C::kSpans; ++span)
#pragma unroll
            for (int e = 0; e < kSums; e += 4) {
                const int channel = C::kSpan * span + 2 * e + 2 * (lane_ % 4);
                if (channel >= params_.head_dim) continue;
                store_two(params_.out, params_.out_type, at + channel,
                          sums_[span][e + 2 * half] * inverse,
                          sums_[span][e + 2 * half + 1] * inverse);
            }
    }

    __device__ void write_log_sum_exp(int sequence, int token, int head, float reference,
                                      float weight) {
        constexpr float kLn2 = 0.69314718056f;
        const std::int64_t at = std::int64_t{sequence} * params_.max_query_tokens + token;
        params_.log_sum_exp[at * params_.q_heads + head] =
            weight == 0.0f ? -__uint_as_float(0x7f800000) : (reference + log2f(weight)) * kLn2;
    }

    const AttentionParams& params_;
    ChunkShared<C>& shared_;
    int warpgroup_;
    int warp_;
    int lane_;
    int row_; ///< of the lane's first row in the item; the other is 8 on
    Turn keys_turn_;
    Turn values_turn_;
    KeyRange seen_[2];
    float scale_[2];
    RowState state_[2]; ///< weight: of the lane's own columns
    float logits_[kLogits] = {};
    std::uint32_t weights_[kLogits / 2] = {};
    float sums_[C::kSpans][kSums] = {};
};

template <class C>
__global__ void __launch_bounds__(kAttendThreads, 1)
    attend_kernel(const __grid_constant__ AttentionParams params,
                  const __grid_constant__ PrefillMemory memory) {
    extern __shared__ unsigned char dynamic[];
    // The dynamic part need not begin at a multiple of 1024.
    const std::uint32_t rest = shared_address(dynamic) % 1024;
    auto& shared = *reinterpret_cast<ChunkShared<C>*>(dynamic + (rest == 0 ? 0 : 1024 - rest));
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            shared.keys_full[stage].init(1);
            shared.values_full[stage].init(1);
            shared.keys_free[stage].init(kConsumers * kWarpgroup / kWarpSize);
            shared.values_free[stage].init(kConsumers * kWarpgroup / kWarpSize);
        }
        publish_barriers();
    }
    __syncthreads();
    const int warpgroup = static_cast<int>(threadIdx.x) / kWarpgroup;
    if (warpgroup == kConsumers) {
        give_registers<40>();
        if (threadIdx.x == kConsumers * kWarpgroup) send_tiles(params, memory, shared);
    } else {
        take_registers<232>();
        ChunkRows<C> rows(params, shared, warpgroup);
        for (int index = static_cast<int>(blockIdx.x); index < memory.plan->items;
             index += static_cast<int>(gridDim.x)) {
            const ChunkItem item = chunk_item<C>(params, *memory.plan, index);
            rows.attend(memory.plan->chunk[item.chunk], item);
        }
    }
}

} // namespace innerkv::cuda
