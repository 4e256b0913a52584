// SPDX-License-Identifier: Apache-2.0
// An append to one layer of all slots: first what settling needs, norms and centres; then pages are quantized and new
// rows stored, and the last block of a slot makes it all visible. Nothing that attention reads changes before. In two
// launches, whose blocks of threads have each a share of one KV head; or, for up to a page of tokens, in one, where a
// block does a KV head's work from first to last: a decode step seldom has more to do than to store a row.
#include "cuda/cache/append.h"

#include "cuda/cache/calibrate.cuh"
#include "cuda/cache/show.h"
#include "cuda/ptx.cuh"

namespace innerkv::cuda {
namespace {

using paging::LayerExtent;
using paging::LayerRule;
using paging::SettlePlan;

/// An append to one slot.
struct Step {
    SettlePlan settle;
    int tokens;  ///< 0: nothing happens
    int brought; ///< by a slot that takes tokens; out of range: refused

    __device__ Step(const AppendParams& params, const SlotState& slot, int index)
        : tokens(0), brought(0) {
        // One round trip to memory, not one after the other.
        const FaultKind fault = params.layer.faults[index].kind;
        const int asked = params.tokens == nullptr ? params.max_tokens : params.tokens[index];
        if (slot.in_use == 0 || fault != FaultKind::none) return;
        brought = asked;
        if (asked < 0 || asked > params.max_tokens) return;
        tokens = asked;
        if (tokens > 0) settle = plan_settle(params.layer.rule, slot.extent, slot.calibrated != 0);
    }
};

__device__ ChannelSample sample_of(const LayerParams& layer, const SlotState& slot,
                                   std::int64_t grid_page, int tokens, int head) {
    return {slot.recent.from(grid_page), layer.f16_stride * head, layer.format.head_dim, tokens,
            static_cast<int>(threadIdx.x)};
}

/// Norm, value centre and new epochs' centres of one KV head. All threads call it.
__device__ void prepare_head(CalibrationShared& shared, const LayerParams& layer,
                             const SlotState& slot, const Step& step, int head) {
    const LayerRule& rule = layer.rule;
    const std::int64_t recent_first = rule.grid_page(slot.extent.recent_first);
    if (step.settle.calibrate)
        calibrate_head(shared, layer, slot,
                       sample_of(layer, slot, recent_first, rule.calibration_tokens, head), head);
    for (std::int64_t epoch = step.settle.new_epochs.first; epoch < step.settle.new_epochs.last;
         ++epoch) {
        // Its first page is leaving the recent window: with the pages behind it, it is still there.
        const ChannelSample sample = sample_of(layer, slot, epoch * rule.epoch_pages,
                                               rule.recent_tokens + kPageTokens, head);
        if (sample.channel >= sample.head_dim) continue;
        auto* centres = reinterpret_cast<std::uint16_t*>(slot.epochs[epoch]);
        centres[head * sample.head_dim + sample.channel] = f16_from_float(sample.mean(true));
    }
}

/// Pages are there for what an append brings and settles.
__device__ bool fits(const LayerRule& rule, const SlotState& slot, const Step& step) {
    const LayerExtent after = settled(rule, slot.extent, step.settle);
    // Until it is visible, what is quantized keeps its fp16 pages.
    const std::int64_t first = rule.grid_page(slot.extent.recent_first);
    const std::int64_t end = rule.grid_pages(slot.extent.length + step.tokens);
    const bool quantized_fit =
        step.settle.quantize == 0 || rule.grid_page(after.recent_first) <= slot.quantized_capacity;
    return quantized_fit && end <= slot.recent_capacity && end - first <= slot.recent.pages;
}

__global__ void __launch_bounds__(kPageThreads)
    settle_kernel(const __grid_constant__ AppendParams params) {
    __shared__ CalibrationShared shared;
    const SlotState slot = params.layer.slots[blockIdx.y];
    const Step step(params, slot, static_cast<int>(blockIdx.y));
    // What has no pages has no epochs either; the next launch tells.
    if (step.tokens > 0 && fits(params.layer.rule, slot, step))
        prepare_head(shared, params.layer, slot, step, static_cast<int>(blockIdx.x));
}

/// The first fault of a slot stays.
__device__ void report(const LayerParams& layer, int index, const Fault& fault) {
    Fault& place = layer.faults[index];
    auto* kind = reinterpret_cast<int*>(&place.kind);
    constexpr int kWriting = -1;
    if (atomicCAS(kind, static_cast<int>(FaultKind::none), kWriting) !=
        static_cast<int>(FaultKind::none))
        return;
    place.layer = fault.layer;
    place.position = fault.position;
    place.rows = fault.rows;
    place.head = fault.head;
    place.channel = fault.channel;
    place.value = fault.value;
    __threadfence();
    atomicExch(kind, static_cast<int>(fault.kind));
}

/// Pages first, first + step, ... of those that settling quantizes: one side of each.
__device__ void quantize_pages(const LayerParams& layer, const SlotState& slot,
                               const SettlePlan& settle, PageShared& shared, int head, int first,
                               int step, bool keys) {
    const LayerRule& rule = layer.rule;
    const PageFormat& format = layer.format;
    const int offset = head * format.head_dim;
    RowTransform transform{nullptr, nullptr, nullptr, layer.rotate != 0};
    if (keys && slot.norm != nullptr) transform.norm = slot.norm + offset;
    if (keys && slot.centre != nullptr) transform.centre = slot.centre + offset;
    if (!keys && slot.value_centre != nullptr) transform.centre = slot.value_centre + offset;
    for (std::int64_t i = first; i < settle.quantize; i += step) {
        const std::int64_t page = rule.grid_page(slot.extent.recent_first) + settle.drop_recent + i;
        const auto* rows = reinterpret_cast<const std::uint16_t*>(*slot.recent.from(page) +
                                                                  layer.f16_stride * head);
        if (keys && rule.epoch_pages > 0)
            transform.f16_centre =
                reinterpret_cast<const std::uint16_t*>(slot.epochs[page / rule.epoch_pages]) +
                offset;
        std::byte* to = slot.quantized[page] + head * format.page_bytes();
        quantize_side(shared, format, keys, keys ? rows : rows + kPageTokens * format.head_dim,
                      transform, keys ? to : to + format.v_offset());
    }
}

__device__ float element(const DeviceRows& rows, std::int64_t at) {
    if (rows.type == RowType::f32) return static_cast<const float*>(rows.data)[at];
    const std::uint16_t bits = static_cast<const std::uint16_t*>(rows.data)[at];
    return rows.type == RowType::f16 ? float_from_f16(bits)
                                     : __uint_as_float(std::uint32_t{bits} << 16);
}

/// Where a token's fp16 row of K of a KV head goes; V's is 32 rows behind.
__device__ std::uint16_t* row_place(const LayerParams& layer, const SlotState& slot,
                                    std::int64_t position, int head) {
    const bool in_sink = position < layer.rule.sink_tokens;
    const std::int64_t behind = position - layer.rule.sink_tokens;
    std::byte* page =
        in_sink ? slot.sink[position / kPageTokens] : *slot.recent.from(behind / kPageTokens);
    const auto row = static_cast<int>((in_sink ? position : behind) % kPageTokens);
    return reinterpret_cast<std::uint16_t*>(page + layer.f16_stride * head) +
           row * layer.format.head_dim;
}

/// Rows of 32 tokens of one KV head as fp16.
__device__ void store_rows(const AppendParams& params, const SlotState& slot, int index, int tokens,
                           int head, int first_token) {
    const LayerParams& layer = params.layer;
    const int head_dim = layer.format.head_dim;
    const int count = min(kPageTokens, tokens - first_token);
    const auto read = [&](const DeviceRows& rows, int token, int channel) {
        return element(rows, index * rows.slot_stride + token * rows.token_stride +
                                 head * rows.head_stride + channel);
    };
    for (int at = static_cast<int>(threadIdx.x); at < count * head_dim; at += kPageThreads) {
        const int token = first_token + at / head_dim;
        const int channel = at % head_dim;
        const float values[] = {read(params.k, token, channel), read(params.v, token, channel)};
        const std::int64_t position = slot.extent.length + token;
        std::uint16_t* place = row_place(layer, slot, position, head) + channel;
#pragma unroll
        for (int side = 0; side < 2; ++side, place += kPageTokens * head_dim) {
            const std::uint16_t bits = f16_from_float(values[side]);
            *place = bits;
            if ((bits & 0x7c00) == 0x7c00)
                report(
                    layer, index,
                    {FaultKind::value, layer.layer, position, side, head, channel, values[side]});
        }
    }
}

__device__ float* query_power(const SlotState& slot, int buffer) {
    return buffer == 0 ? slot.query_power[0] : slot.query_power[1];
}

/// Adds the squares of the calibration tokens' queries, a channel a thread, token by token.
__device__ void add_queries(const AppendParams& params, const SlotState& slot, int index,
                            int tokens, int head) {
    const LayerParams& layer = params.layer;
    const int channel = static_cast<int>(threadIdx.x);
    const int head_dim = layer.format.head_dim;
    if (channel >= head_dim) return;
    const std::int64_t first = max(std::int64_t{layer.rule.sink_tokens}, slot.extent.length);
    const std::int64_t last =
        min(std::int64_t{layer.rule.sink_tokens} + layer.rule.calibration_tokens,
            slot.extent.length + tokens);
    const int group = params.q_heads / layer.kv_heads;
    float sum = slot.has_queries != 0
                    ? query_power(slot, slot.query_buffer)[head * head_dim + channel]
                    : 0.0f;
    for (std::int64_t position = first; position < last; ++position)
        for (int q_head = head * group; q_head < (head + 1) * group; ++q_head) {
            const float value =
                element(params.q, index * params.q.slot_stride +
                                      (position - slot.extent.length) * params.q.token_stride +
                                      q_head * params.q.head_stride + channel);
            if (!(fabsf(value) <= kLargestF16)) {
                report(layer, index,
                       {FaultKind::value, layer.layer, position, 2, q_head, channel, value});
                return;
            }
            sum += value * value;
        }
    query_power(slot, 1 - slot.query_buffer)[head * head_dim + channel] = sum;
}

/// Queries of this append count.
__device__ bool takes_queries(const AppendParams& params, const SlotState& slot, int tokens) {
    const LayerRule& rule = params.layer.rule;
    return params.query_blocks > 0 && rule.balances && slot.calibrated == 0 &&
           slot.extent.length < rule.sink_tokens + rule.calibration_tokens &&
           slot.extent.length + tokens > rule.sink_tokens;
}

__device__ paging::LayerExtent extent_after(const LayerRule& rule, const SlotState& slot,
                                            const Step& step) {
    LayerExtent extent = settled(rule, slot.extent, step.settle);
    extent.length += step.tokens;
    return extent;
}

/// What the last block of a slot does. One thread calls it.
__device__ void commit(const AppendParams& params, SlotState slot, int index, const Step& step) {
    SlotState& kept = params.layer.slots[index];
    Sequence& sequence = params.layer.sequences[index];
    const bool refused =
        *reinterpret_cast<volatile const std::int32_t*>(&params.layer.faults[index].kind) != 0;
    if (step.tokens == 0 || refused) {
        sequence.query_tokens = 0;
        return;
    }
    const bool queries = takes_queries(params, slot, step.tokens);
    if (queries) {
        kept.had_queries = slot.has_queries;
        kept.queries_from = slot.extent.length;
        kept.query_buffer = 1 - slot.query_buffer;
        kept.has_queries = 1;
    }
    slot.extent = kept.extent = extent_after(params.layer.rule, slot, step);
    if (step.settle.calibrate) slot.calibrated = kept.calibrated = 1;
    sequence = shown(params.layer, slot, step.tokens);
}

/// That an append has no room, and of what kind.
__device__ void report_room(const AppendParams& params, const SlotState& slot, int index,
                            const Step& step, int head) {
    const LayerRule& rule = params.layer.rule;
    const std::int64_t first = rule.grid_page(slot.extent.recent_first);
    const std::int64_t end = rule.grid_pages(slot.extent.length + step.tokens);
    // Of a ring: its capacity knows no end. Elsewhere pages are reserved.
    const bool full = end <= slot.recent_capacity && end - first > slot.recent.pages;
    const FaultKind kind = full ? FaultKind::window : FaultKind::pages;
    if (threadIdx.x == 0)
        report(params.layer, index,
               {kind, params.layer.layer, slot.extent.length, step.tokens, head, 0, 0.0f});
}

/// Of a slot that brings a number of tokens that is out of range.
__device__ void report_tokens(const AppendParams& params, const SlotState& slot, int index,
                              const Step& step) {
    if (threadIdx.x == 0 && step.tokens != step.brought)
        report(params.layer, index,
               {FaultKind::tokens, params.layer.layer, slot.extent.length, step.brought, 0, 0,
                static_cast<float>(params.max_tokens)});
}

/// A block is through. All threads call it.
__device__ void arrive(const AppendParams& params, const SlotState& slot, int index,
                       const Step& step) {
    __syncthreads();
    if (threadIdx.x != 0) return;
    const int blocks = static_cast<int>(gridDim.x * gridDim.y);
    if (add_acquire_release(params.layer.arrivals + index, 1) != blocks - 1) return;
    params.layer.arrivals[index] = 0;
    commit(params, slot, index, step);
}

__global__ void __launch_bounds__(kPageThreads)
    append_kernel(const __grid_constant__ AppendParams params) {
    __shared__ PageShared shared;
    const LayerParams& layer = params.layer;
    const int head = static_cast<int>(blockIdx.y);
    const int index = static_cast<int>(blockIdx.z);
    const SlotState slot = layer.slots[index]; // as it stays until the last block commits
    const Step step(params, slot, index);
    int block = static_cast<int>(blockIdx.x);
    if (step.tokens > 0 && !fits(layer.rule, slot, step)) {
        report_room(params, slot, index, step, head);
    } else if (step.tokens > 0 && block < 2 * params.page_blocks) {
        quantize_pages(layer, slot, step.settle, shared, head, block / 2, params.page_blocks,
                       block % 2 == 0);
    } else if (step.tokens > 0 && (block -= 2 * params.page_blocks) < params.row_blocks) {
        if (kPageTokens * block < step.tokens)
            store_rows(params, slot, index, step.tokens, head, kPageTokens * block);
    } else if (step.tokens > 0 && takes_queries(params, slot, step.tokens)) {
        add_queries(params, slot, index, step.tokens, head);
    }
    report_tokens(params, slot, index, step);
    arrive(params, slot, index, step);
}

__global__ void __launch_bounds__(kPageThreads)
    step_kernel(const __grid_constant__ AppendParams params) {
    __shared__ CalibrationShared calibration;
    __shared__ PageShared shared;
    const LayerParams& layer = params.layer;
    const int head = static_cast<int>(blockIdx.y);
    const int index = static_cast<int>(blockIdx.z);
    const SlotState slot = layer.slots[index]; // as it stays until the last block commits
    const Step step(params, slot, index);
    if (step.tokens > 0 && !fits(layer.rule, slot, step)) {
        report_room(params, slot, index, step, head);
    } else if (step.tokens > 0) {
        if (layer.rule.quantizes) {
            prepare_head(calibration, layer, slot, step, head);
            __syncthreads();
            quantize_pages(layer, slot, step.settle, shared, head, 0, 1, true);
            quantize_pages(layer, slot, step.settle, shared, head, 0, 1, false);
        }
        store_rows(params, slot, index, step.tokens, head, 0);
        if (takes_queries(params, slot, step.tokens))
            add_queries(params, slot, index, step.tokens, head);
    }
    report_tokens(params, slot, index, step);
    arrive(params, slot, index, step);
}

} // namespace

AppendKernels append_kernels() {
    return {reinterpret_cast<const void*>(&settle_kernel),
            reinterpret_cast<const void*>(&append_kernel),
            reinterpret_cast<const void*>(&step_kernel), kPageThreads};
}

} // namespace innerkv::cuda
