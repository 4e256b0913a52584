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

/// What a row is made of, on its way.
template <class C>
struct RowLoads {
    RowPlace place;
    std::uint32_t q[2 * C::kBlocks];
    float norm[2 * C::kBlocks];
    float centre[2 * C::kBlocks]; ///< of all keys, where there are no epochs

    __device__ RowLoads(const AttentionParams& params, const Item& item, int row, int lane)
        : place(place_of<C>(params, item, row)) {
        const Sequence& sequence = params.sequences[item.sequence];
        const int head = item.kv_head * params.head_dim;
        load_row(params.q, params.q_type,
                 item.sequence * params.q_sequence_stride + place.token * params.q_token_stride +
                     place.q_head * params.q_head_stride,
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
    for (int j = 0; j < kElements; ++j) {
        const float relative = q[j] * inverse;
        const __half half = __float2half_rn(relative);
        shared.q_half[row][kWarpSize * j + lane] = __half_as_ushort(half);
        shared.q_rest[row][kWarpSize * j + lane] =
            __half_as_ushort(__float2half_rn(relative - __half2float(half)));
    }
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

/// What the centres of epochs first .. first + count - 1 add to the logits, into shared.offsets: 16 epochs a warp at a
/// time. Pointers of the first ones are on their way when this is made.
template <class C>
class Offsets {
public:
    __device__ Offsets(const AttentionParams& params, const Item& item, const Thread& thread,
                       int first, int count)
        : params_(&params), epochs_(params.sequences[item.sequence].epochs + first),
          thread_(&thread), head_bytes_(2u * static_cast<unsigned>(item.kv_head * params.head_dim)),
          count_(count),
          // Rows of queries are prepared by the first warps: the last ones begin here.
          at_(kAtOnce * (thread.warps - 1 - thread.warp)) {
        load_pointers();
    }

    /// The warp's first centres into the second-level cache. A lane a line of both halves' epochs.
    __device__ void prefetch() const {
        const unsigned line = 128u * static_cast<unsigned>(thread_->i);
        if (line >= 2u * static_cast<unsigned>(params_->head_dim)) return;
#pragma unroll
        for (int half = 0; half < 2; ++half)
            if (centres_[half] != nullptr) prefetch_line(centres_[half] + head_bytes_ + line);
    }

    /// All threads call it; queries have been prepared.
    __device__ void write_all(BlockShared<C>& shared) {
        while (at_ < count_) {
            float sums[4] = {};
#pragma unroll
            for (int span = 0; span < kSpans; ++span) {
                const uint4 first = load(centres_[0], span);
                const uint4 second = load(centres_[1], span);
                multiply_span<C>(sums, shared.q_half, first, second, span, *thread_);
                multiply_span<C>(sums, shared.q_rest, first, second, span, *thread_);
            }
            const int row = 2 * thread_->i;
            if (row < C::kRows) {
                const float scales[2] = {shared.dense_scale[row], shared.dense_scale[row + 1]};
                float* to = &shared.offsets[at_ + thread_->g][row];
                to[0] = sums[0] * scales[0];
                to[1] = sums[1] * scales[1];
                to[8 * C::kRows] = sums[2] * scales[0];
                to[8 * C::kRows + 1] = sums[3] * scales[1];
            }
            at_ += kAtOnce * thread_->warps;
            load_pointers();
        }
    }

private:
    static constexpr int kAtOnce = 16;
    static constexpr int kSpans = 2 * C::kBlocks;
    static_assert(kMaxEpochs % kAtOnce == 0);

    __device__ void load_pointers() {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int epoch = at_ + thread_->g + 8 * half;
            centres_[half] = epoch < count_ ? epochs_[epoch] : nullptr;
        }
    }

    __device__ uint4 load(const std::byte* centre, int span) const {
        const int channel = 32 * span + 8 * thread_->i;
        if (centre == nullptr || channel >= params_->head_dim) return {0, 0, 0, 0};
        return __ldg(reinterpret_cast<const uint4*>(centre + head_bytes_ + 2 * channel));
    }

    const AttentionParams* params_;
    const std::byte* const* epochs_;
    const Thread* thread_;
    unsigned head_bytes_;
    int count_;
    int at_;
    const std::byte* centres_[2];
};

} // namespace innerkv::cuda
