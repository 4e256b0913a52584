// SPDX-License-Identifier: Apache-2.0
// A warpgroup's 64 query rows: logits, weights and sums over the tiles of an item.
#pragma once

#include "cuda/prefill/items.cuh"
#include "cuda/query.cuh"
#include "cuda/softmax.cuh"

namespace innerkv::cuda {

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

/// A warpgroup's 64 rows of an item.
template <class C>
class ChunkRows {
public:
    __device__ ChunkRows(const AttentionParams& params, const PrefillMemory& memory,
                         ChunkShared<C>& shared, int warpgroup)
        : params_(params), memory_(memory), shared_(shared), warpgroup_(warpgroup),
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
        if (item.parts > 1 && !merge_parts(item)) return;
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
        const int query_tokens = query_tokens_of(params_, params_.sequences[chunk.sequence]);
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
            write_query(bits, row, asks_too_much(params_, params_.sequences[chunk.sequence]));
        }
        publish_shared();
        meet_warpgroup(1 + warpgroup_);
    }

    __device__ void write_query(const std::uint32_t (&bits)[2 * C::kBlocks], int row, bool faulty) {
        float q[2 * C::kBlocks];
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
        const int query_tokens = query_tokens_of(params_, params_.sequences[chunk.sequence]);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int token = row_index(item, half) / params_.group;
            // A row that is none sees all: no tile is masked for it.
            seen_[half] =
                token < query_tokens ? keys_of_token(params_, chunk, token) : KeyRange{0, 1 << 30};
            scale_[half] = shared_.scale[row_ + 8 * half];
            state_[half] = {kNoReference, 0.0f};
        }
        clear_sums();
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
        settle(logits_); // exponentials belong in front of the wait
        wait_for_products<0>();
#pragma unroll
        for (int span = 0; span < C::kSpans; ++span) settle(sums_[span]);
        release(shared_.values_free[values_turn_.stage]);
        values_turn_.next();
        if (__any_sync(~0u, factors[0] != 1.0f || factors[1] != 1.0f) != 0) scale_sums(factors);
        pack_weights();
    }

    __device__ void scale_sums(const float (&factors)[2]) {
#pragma unroll
        for (int span = 0; span < C::kSpans; ++span)
#pragma unroll
            for (int e = 0; e < kSums; ++e) sums_[span][e] *= factors[e / 2 % 2];
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

    /// What this thread left of a part, numbers kWarpgroup floats apart.
    __device__ float* part_memory(int part) const {
        return memory_.parts +
               (std::int64_t{part} * kConsumers + warpgroup_) * part_floats(C::kDim) +
               kWarpSize * warp_ + lane_;
    }
    __device__ static constexpr int state_place(int half) {
        return kWarpgroup * (C::kDim / 2 + 2 * half);
    }
    __device__ RowState state_of_part(int part, int half) const {
        const float* at = part_memory(part) + state_place(half);
        return {__ldcg(at), __ldcg(at + kWarpgroup)};
    }

    /// Leaves this part. True in the warpgroup that is the last of the item's parts to come: then sums and states are
    /// those of all parts, in their order.
    __device__ bool merge_parts(const ChunkItem& item) {
        float* own = part_memory(item.first_part + item.part);
#pragma unroll
        for (int span = 0; span < C::kSpans; ++span)
#pragma unroll
            for (int e = 0; e < kSums; ++e) own[kWarpgroup * (kSums * span + e)] = sums_[span][e];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            own[state_place(half)] = state_[half].reference;
            own[state_place(half) + kWarpgroup] = state_[half].weight;
        }
        if (!arrive(item)) return false;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            state_[half] = {kNoReference, 0.0f};
            for (int part = 0; part < item.parts; ++part)
                state_[half].reference = fmaxf(
                    state_[half].reference, state_of_part(item.first_part + part, half).reference);
        }
        clear_sums();
        for (int part = item.first_part; part < item.first_part + item.parts; ++part) {
            float factors[2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const RowState state = state_of_part(part, half);
                factors[half] = fast_exp2(state.reference - state_[half].reference);
                state_[half].weight = fmaf(factors[half], state.weight, state_[half].weight);
            }
            const float* from = part_memory(part);
#pragma unroll
            for (int span = 0; span < C::kSpans; ++span)
#pragma unroll
                for (int e = 0; e < kSums; ++e)
                    sums_[span][e] =
                        fmaf(factors[e / 2 % 2], __ldcg(from + kWarpgroup * (kSums * span + e)),
                             sums_[span][e]);
        }
        return true;
    }

    /// True in the last of the item's parts.
    __device__ bool arrive(const ChunkItem& item) {
        meet_warpgroup(1 + warpgroup_);
        if (warp_ == 0 && lane_ == 0) {
            int* arrivals = memory_.arrivals + item.first_part * kConsumers + warpgroup_;
            const bool last = add_acquire_release(arrivals, 1) == item.parts - 1;
            if (last) *arrivals = 0; // for the next launch
            shared_.last_arrival[warpgroup_] = last ? 1 : 0;
        }
        meet_warpgroup(1 + warpgroup_);
        return uniform(shared_.last_arrival[warpgroup_]) != 0;
    }

    __device__ void clear_sums() {
#pragma unroll
        for (int span = 0; span < C::kSpans; ++span)
#pragma unroll
            for (int e = 0; e < kSums; ++e) sums_[span][e] = 0.0f;
    }

    __device__ void write(const Chunk& chunk, const ChunkItem& item) {
        const int query_tokens = query_tokens_of(params_, params_.sequences[chunk.sequence]);
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
                write_log_sum_exp(params_, chunk.sequence, token, head, state_[half].reference,
                                  weight);
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

    const AttentionParams& params_;
    const PrefillMemory& memory_;
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

} // namespace innerkv::cuda
