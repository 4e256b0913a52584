// SPDX-License-Identifier: Apache-2.0
// Queries of an item as the products take them: q' = H(q * norm) in int8 per 32 channels for quantized keys, q in
// fp16 for fp16 keys, q . centre for the epochs of quantized keys.
#pragma once

#include "cuda/rows.cuh"
#include "cuda/scales.cuh"
#include "cuda/work.cuh"

namespace innerkv::cuda {

/// Rows with an element beyond are computed as zeros, and their result is NaN.
inline constexpr float kLargestQuery = 1e30f;
/// Below, 127 / largest is no number to multiply with.
inline constexpr float kSmallestQuery = 1e-30f;

/// Affine scales are 2^112 too small as they are read, so queries' are made larger, by what floats hold: sums
/// with them are below 2^19. The rest comes with the row's scale.
template <class S>
constexpr float key_unit() {
    return has_small_scales(S::kind) ? 0x1p100f : 1.0f;
}
template <class S>
constexpr float key_rest() {
    return has_small_scales(S::kind) ? 0x1p12f : 1.0f;
}

/// One group of 32 channels of a row: codes, and the column that its sums are scaled by; `relative`: its scale over
/// the row's.
template <class C>
__device__ void write_group(BlockShared<C>& shared, int row, int group, int lane, int code,
                            float relative) {
    using Key = typename C::Key;
    shared.q_codes[row][32 * group + lane] = static_cast<signed char>(code);
    const int sum = __reduce_add_sync(~0u, code);
    if (lane != 0) return;
    const int high = group % 2;
    constexpr float kLow = 1 << position_low(Key::bits);
    const float factor = high != 0 ? static_cast<float>(1 << position_high(Key::bits)) : 1.0f;
    const float scale = exact_with_magic(relative * key_unit<Key>()) / factor;
    const auto first = column_scale<Key>(static_cast<float>(sum), scale, factor);
    const auto second = column_scale<Key>(static_cast<float>(sum), scale, factor * kLow);
    shared.key_columns[group / 2][high][row] = {scale, first.weight, first.add, second.add};
}

/// q' of a row to int8.
template <class C>
__device__ void quantize_row(const AttentionParams& params, BlockShared<C>& shared, int row,
                             int lane, const float (&q)[2 * C::kBlocks]) {
    float largest[2 * C::kBlocks];
    float largest_of_row = 0.0f;
#pragma unroll
    for (int j = 0; j < 2 * C::kBlocks; ++j) {
        largest[j] = largest_in_warp(fabsf(q[j]));
        largest_of_row = fmaxf(largest_of_row, largest[j]);
    }
    const bool tiny_row = !(largest_of_row > kSmallestQuery);
#pragma unroll
    for (int j = 0; j < 2 * C::kBlocks; ++j) {
        const bool tiny = !(largest[j] > kSmallestQuery);
        const float inverse = tiny ? 0.0f : __fdividef(127.0f, largest[j]);
        write_group(shared, row, j, lane, __float2int_rn(q[j] * inverse),
                    tiny || tiny_row ? 0.0f : __fdividef(largest[j], largest_of_row));
    }
    if (lane == 0)
        shared.key_scale[row] =
            tiny_row ? 0.0f
                     : largest_of_row / 127.0f * params.logit_scale * key_rest<typename C::Key>();
}

/// The first element of a row of queries.
__device__ inline std::int64_t query_place(const AttentionParams& params, const Item& item,
                                           const RowPlace& place) {
    return item.sequence * params.q_sequence_stride + place.token * params.q_token_stride +
           place.q_head * params.q_head_stride;
}

/// What a row is made of, on its way.
template <class C>
struct RowLoads {
    RowPlace place{};
    std::uint32_t q[2 * C::kBlocks];
    float norm[2 * C::kBlocks];
    float centre[2 * C::kBlocks]; ///< of all keys, where there are no epochs

    /// Nothing where there is no such row.
    __device__ RowLoads(const AttentionParams& params, const Item& item, int row, int lane) {
        if (row >= C::kRows) return;
        place = place_of<C>(params, item, row);
        const Sequence& sequence = params.sequences[item.sequence];
        const int head = item.kv_head * params.head_dim;
        load_row(params.q, params.q_type, query_place(params, item, place),
                 place.present ? params.head_dim : 0, lane, q);
#pragma unroll
        for (int j = 0; j < 2 * C::kBlocks; ++j) {
            norm[j] = 1.0f;
            centre[j] = 0.0f;
        }
        if (sequence.norm != nullptr)
            load_channels(sequence.norm + head, params.head_dim, lane, norm);
        if (sequence.centre != nullptr)
            load_channels(sequence.centre + head, params.head_dim, lane, centre);
    }
};

template <class C>
__device__ void prepare_row(const AttentionParams& params, BlockShared<C>& shared, const Item& item,
                            const RowLoads<C>& loads, int row, int lane) {
    const Sequence& sequence = params.sequences[item.sequence];
    const RowPlace& place = loads.place;
    constexpr int kElements = 2 * C::kBlocks;
    float q[kElements];
    float transformed[kElements];
    bool faulty = asks_too_much(params, sequence);
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
        q[j] = float_of(loads.q[j], params.q_type);
        transformed[j] = q[j] * loads.norm[j];
        faulty = faulty || !(fabsf(q[j] * params.logit_scale) <= kLargestQuery);
    }
    if (sequence.rotate != 0) hadamard(transformed, lane);
    float largest = 0.0f;
#pragma unroll
    for (int j = 0; j < kElements; ++j)
        faulty = faulty || !(fabsf(transformed[j] * params.logit_scale) <= kLargestQuery);
    faulty = __any_sync(~0u, faulty) != 0;
    float offset = 0.0f;
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
        if (faulty) q[j] = transformed[j] = 0.0f;
        q[j] *= params.logit_scale;
        largest = fmaxf(largest, fabsf(q[j]));
        offset = fmaf(loads.centre[j], q[j], offset);
    }
    quantize_row(params, shared, row, lane, transformed);
    if (sequence.epochs == nullptr) offset = sum_in_warp(offset);
    largest = largest_in_warp(largest);
    const float inverse = largest > kSmallestQuery ? __fdividef(1.0f, largest) : 0.0f;
#pragma unroll
    for (int j = 0; j < kElements; ++j)
        shared.q_half[row][kWarpSize * j + lane] =
            __half_as_ushort(__float2half_rn(q[j] * inverse));
    if (lane != 0) return;
    const Visible visible = visible_to(params, sequence, place.token, place.token);
    shared.faulty[row] = faulty ? 1 : 0;
    if (sequence.epochs == nullptr) shared.offsets[0][row] = offset;
    shared.dense_scale[row] = largest > kSmallestQuery ? largest : 0.0f;
    // A column without a row sees all: no page is masked for it.
    shared.visible_begin[row] = place.present ? visible.begin : 0;
    shared.visible_end[row] = place.present ? visible.end : 1 << 30;
}

/// All threads call it; they must meet before they read what it wrote. `loads`: of the warp's first row.
template <class C>
__device__ void prepare_queries(const AttentionParams& params, BlockShared<C>& shared,
                                const Item& item, RowLoads<C> loads, const Thread& thread) {
    for (int row = thread.warp; row < C::kRows;) {
        prepare_row(params, shared, item, loads, row, thread.lane);
        row += thread.warps;
        if (row < C::kRows) loads = RowLoads<C>(params, item, row, thread.lane);
    }
}

/// Products of 16 rows in fp16 with the queries `q`: lane 4g + i gets those of rows g and g + 8 with columns 2i and
/// 2i + 1 onto sums[row][column]. It brings 8 channels of either row a span: 32 span + 8 i and those behind.
template <class C>
__device__ inline void multiply_span(float (&sums)[4], const std::uint16_t (*q)[C::kDim],
                                     const uint4& first, const uint4& second, int span,
                                     const Thread& thread) {
    uint4 query{};
    if (thread.g < C::kRows)
        query = *reinterpret_cast<const uint4*>(&q[thread.g][32 * span + 8 * thread.i]);
    multiply_f16(sums, first.x, second.x, first.y, second.y, query.x, query.y);
    multiply_f16(sums, first.z, second.z, first.w, second.w, query.z, query.w);
}

/// Sums over the lanes of one number for each row: on return, lane l has the sum of row l / (32 / rows).
template <int kRows>
__device__ float sum_rows(float (&rows)[kRows], int lane) {
    int step = kWarpSize / 2;
#pragma unroll
    for (int half = kRows / 2; half > 0; half /= 2, step /= 2) {
        const bool upper = (lane & step) != 0;
#pragma unroll
        for (int r = 0; r < half; ++r) {
            const float sent = upper ? rows[r] : rows[r + half];
            rows[r] = (upper ? rows[r + half] : rows[r]) + __shfl_xor_sync(~0u, sent, step);
        }
    }
#pragma unroll
    for (int rest = kWarpSize / kRows / 2; rest > 0; rest /= 2)
        rows[0] += __shfl_xor_sync(~0u, rows[0], rest);
    return rows[0];
}

/// What the centres of epochs first .. end - 1 add to the logits, into shared.offsets, from queries as the caller has
/// them: nothing here waits for prepare_queries. Epochs go to the warps from the last one on, since the first ones
/// prepare rows. Pointers are on their way when this is made.
template <class C>
class Offsets {
public:
    __device__ Offsets(const AttentionParams& params, const Item& item, const Thread& thread,
                       int first, int end)
        : params_(&params), item_(&item), thread_(&thread), count_(end - first),
          at_(thread.warps - 1 - thread.warp) {
        // A pointer a lane: of the epochs that are this warp's.
        const int mine = at_ + thread.lane * thread.warps;
        if (mine < count_)
            pointer_ = reinterpret_cast<unsigned long long>(
                params.sequences[item.sequence].epochs[first + mine]);
    }

    /// The warp's centres into the second-level cache: one a lane.
    __device__ void prefetch() const {
        if (pointer_ == 0) return;
        const auto* centre = reinterpret_cast<const unsigned char*>(pointer_) +
                             2 * item_->kv_head * params_->head_dim;
        for (int at = 0; at < 2 * params_->head_dim; at += 128) prefetch_line(centre + at);
    }

    /// All threads call it.
    __device__ void write_all(BlockShared<C>& shared) {
        if (at_ >= count_) return;
        float q[C::kRows][kElements];
        load_queries(q);
#pragma unroll 1
        for (int index = 0; at_ < count_; index += kAtOnce) {
            std::uint32_t centres[kAtOnce][kElements];
            load_centres(index, centres);
#pragma unroll
            for (int ahead = 0; ahead < kAtOnce; ++ahead, at_ += thread_->warps)
                if (at_ < count_) write(shared, q, centres[ahead]);
        }
    }

private:
    static constexpr int kElements = 2 * C::kBlocks;
    static constexpr int kAtOnce = 2; ///< loads of centres on their way
    static_assert(kMaxEpochs <= kWarpSize * kLeastWarps);

    /// Those that prepare rows have brought them to the first-level cache.
    __device__ void load_queries(float (&q)[C::kRows][kElements]) const {
        RowPlace place = place_of<C>(*params_, *item_, 0);
        const int end_head = (item_->kv_head + 1) * params_->group;
#pragma unroll
        for (int row = 0; row < C::kRows; ++row) {
            std::uint32_t bits[kElements];
            load_row(params_->q, params_->q_type, query_place(*params_, *item_, place),
                     place.present ? params_->head_dim : 0, thread_->lane, bits);
#pragma unroll
            for (int j = 0; j < kElements; ++j) q[row][j] = float_of(bits[j], params_->q_type);
            if (++place.q_head == end_head) {
                place.q_head -= params_->group;
                ++place.token;
                place.present =
                    place.token < query_tokens_of(*params_, params_->sequences[item_->sequence]);
            }
        }
    }

    /// The warp's centres from its `first` on.
    __device__ void load_centres(int first, std::uint32_t (&centres)[kAtOnce][kElements]) const {
#pragma unroll
        for (int ahead = 0; ahead < kAtOnce; ++ahead) {
            const unsigned long long pointer =
                __shfl_sync(~0u, pointer_, (first + ahead) % kWarpSize);
            load_row(reinterpret_cast<const void*>(pointer), RowType::f16,
                     item_->kv_head * params_->head_dim,
                     at_ + ahead * thread_->warps < count_ ? params_->head_dim : 0, thread_->lane,
                     centres[ahead]);
        }
    }

    __device__ void write(BlockShared<C>& shared, const float (&q)[C::kRows][kElements],
                          const std::uint32_t (&bits)[kElements]) const {
        float sums[C::kRows] = {};
#pragma unroll
        for (int j = 0; j < kElements; ++j) {
            const float centre = float_of(bits[j], RowType::f16);
#pragma unroll
            for (int row = 0; row < C::kRows; ++row) sums[row] = fmaf(centre, q[row][j], sums[row]);
        }
        const float sum = sum_rows(sums, thread_->lane) * params_->logit_scale;
        constexpr int kLanes = kWarpSize / C::kRows;
        // Queries that are no numbers have faulty rows, whose logits must not be infinite.
        if (thread_->lane % kLanes == 0)
            shared.offsets[at_][thread_->lane / kLanes] = fabsf(sum) <= kLargestQuery ? sum : 0.0f;
    }

    const AttentionParams* params_;
    const Item* item_;
    const Thread* thread_;
    int count_;
    int at_;
    unsigned long long pointer_ = 0;
};

} // namespace innerkv::cuda
