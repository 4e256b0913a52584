// SPDX-License-Identifier: Apache-2.0
// Queries of an item as the products take them: q' = H(q * norm) in int8 per 32 channels for quantized keys, q in
// fp16 for fp16 keys, q . centre for the epochs of quantized keys. A warp a row.
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

/// What a row is made of, on its way.
template <class C>
struct RowLoads {
    RowPlace place;
    std::uint32_t q[2 * C::kBlocks];
    float norm[2 * C::kBlocks];

    __device__ RowLoads(const AttentionParams& params, const Item& item, int row, int lane)
        : place(place_of<C>(params, item, row)) {
        const float* norms = params.sequences[item.sequence].norm;
        const std::int64_t at = item.sequence * params.q_sequence_stride +
                                place.token * params.q_token_stride +
                                place.q_head * params.q_head_stride;
#pragma unroll
        for (int j = 0; j < 2 * C::kBlocks; ++j) {
            const int channel = kWarpSize * j + lane;
            const bool there = place.present && channel < params.head_dim;
            q[j] = there ? load_bits(params.q, params.q_type, at + channel) : 0;
            norm[j] =
                there && norms != nullptr ? norms[item.kv_head * params.head_dim + channel] : 1.0f;
        }
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
    bool faulty = false;
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
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
        if (faulty) q[j] = transformed[j] = 0.0f;
        q[j] *= params.logit_scale;
        largest = fmaxf(largest, fabsf(q[j]));
        shared.q_scaled[row][kWarpSize * j + lane] = q[j];
    }
    quantize_row(params, shared, row, lane, transformed);
    largest = largest_in_warp(largest);
    const float inverse = largest > kSmallestQuery ? __fdividef(1.0f, largest) : 0.0f;
#pragma unroll
    for (int j = 0; j < kElements; ++j)
        shared.q_half[row][kWarpSize * j + lane] =
            __half_as_ushort(__float2half_rn(q[j] * inverse));
    if (lane != 0) return;
    const Visible visible = visible_to(params, sequence, place.token, place.token);
    shared.faulty[row] = faulty ? 1 : 0;
    shared.dense_scale[row] = largest > kSmallestQuery ? largest : 0.0f;
    // A column without a row sees all: no page is masked for it.
    shared.visible_begin[row] = place.present ? visible.begin : 0;
    shared.visible_end[row] = place.present ? visible.end : 1 << 30;
}

/// All threads call it; they must meet before they read what it wrote. `first`: of the warp's first row.
template <class C>
__device__ void prepare_queries(const AttentionParams& params, BlockShared<C>& shared,
                                const Item& item, const RowLoads<C>& first, const Thread& thread) {
    if (thread.warp < C::kRows) prepare_row(params, shared, item, first, thread.warp, thread.lane);
    for (int row = thread.warp + thread.warps; row < C::kRows; row += thread.warps)
        prepare_row(params, shared, item, RowLoads<C>(params, item, row, thread.lane), row,
                    thread.lane);
    for (int row = C::kRows + thread.warp; row < kManyRows; row += thread.warps)
        for (int channel = thread.lane; channel < C::kDim; channel += kWarpSize)
            shared.q_half[row][channel] = 0;
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

/// A centre of a KV head, an element a lane and 32 channels, on its way.
template <class C>
struct Centre {
    std::uint32_t bits[2 * C::kBlocks];
    RowType type;

    /// `data`: [kv_heads, head_dim]; null: zeros.
    __device__ Centre(const AttentionParams& params, const Item& item, const void* data,
                      RowType data_type, int lane)
        : type(data_type) {
#pragma unroll
        for (int j = 0; j < 2 * C::kBlocks; ++j) {
            const int channel = kWarpSize * j + lane;
            const bool there = data != nullptr && channel < params.head_dim;
            bits[j] = there ? load_bits(data, type, item.kv_head * params.head_dim + channel) : 0;
        }
    }

    /// Products of all rows with it.
    __device__ void write_products(const BlockShared<C>& shared, int lane, float* offsets) const {
        float channels[2 * C::kBlocks];
#pragma unroll
        for (int j = 0; j < 2 * C::kBlocks; ++j) channels[j] = float_of(bits[j], type);
        float sums[C::kRows];
#pragma unroll
        for (int row = 0; row < C::kRows; ++row) {
            sums[row] = 0.0f;
#pragma unroll
            for (int j = 0; j < 2 * C::kBlocks; ++j)
                sums[row] =
                    fmaf(channels[j], shared.q_scaled[row][kWarpSize * j + lane], sums[row]);
        }
        const float sum = sum_rows(sums, lane);
        constexpr int kLanes = kWarpSize / C::kRows;
        if (lane % kLanes == 0) offsets[lane / kLanes] = sum;
    }
};

/// What the centres of epochs first .. first + count - 1 add to the logits, into shared.offsets. Loads of pointers begin
/// when this is made; write_all() follows prepare_queries.
template <class C>
class Offsets {
public:
    __device__ Offsets(const AttentionParams& params, const Item& item, const Thread& thread,
                       int first, int count)
        : params_(params), item_(item), sequence_(params.sequences[item.sequence]), thread_(thread),
          count_(count) {
        const int epoch = thread.warp + thread.lane * thread.warps; // of this warp, one a lane
        if (sequence_.epochs != nullptr && epoch < count)
            pointer_ = reinterpret_cast<unsigned long long>(sequence_.epochs[first + epoch]);
    }

    /// The warp's centre `index`, on its way.
    __device__ Centre<C> load(int index) const {
        const auto* f16 =
            reinterpret_cast<const void*>(__shfl_sync(~0u, pointer_, index % kWarpSize));
        const bool there = thread_.warp + index * thread_.warps < count_;
        const bool epochs = sequence_.epochs != nullptr;
        return Centre<C>(params_, item_, there ? epochs ? f16 : sequence_.centre : nullptr,
                         epochs ? RowType::f16 : RowType::f32, thread_.lane);
    }

    /// All threads call it. `next`: what load(0) returned.
    __device__ void write_all(BlockShared<C>& shared, Centre<C> next) const {
        for (int index = 0; thread_.warp + index * thread_.warps < count_; ++index) {
            const Centre<C> centre = next;
            next = load(index + 1);
            centre.write_products(shared, thread_.lane,
                                  shared.offsets[thread_.warp + index * thread_.warps]);
        }
    }

private:
    static_assert(kMaxEpochs <= kWarpSize * kLeastWarps);

    const AttentionParams& params_;
    const Item& item_;
    const Sequence& sequence_;
    const Thread& thread_;
    int count_;
    unsigned long long pointer_ = 0;
};

} // namespace innerkv::cuda
