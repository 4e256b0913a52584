// SPDX-License-Identifier: Apache-2.0
// The host's side of a launch: checks, the shape of the grid, memory for partial results.
#include <algorithm>
#include <numbers>
#include <string>

#include "attention/arguments.h"
#include "cuda/arguments.h"
#include "cuda/device.h"
#include "cuda/kernels/table.h"
#include "cuda/params.h"
#include "cuda/prefill/prefill.h"

namespace innerkv::cuda {
namespace {

void check_limits(const AttentionLimits& limits) {
    if (limits.max_sequences < 1 || limits.max_sequences > kMaxSequences)
        throw InvalidArgument("cuda attention: up to " + std::to_string(limits.max_sequences) +
                              " sequences a call; supported are 1 to " +
                              std::to_string(kMaxSequences));
    if (limits.max_query_tokens < 1 || limits.max_query_tokens > kMaxQueryTokens)
        throw InvalidArgument("cuda attention: up to " + std::to_string(limits.max_query_tokens) +
                              " query tokens a sequence; supported are 1 to " +
                              std::to_string(kMaxQueryTokens));
    if (limits.max_blocks < 0)
        throw InvalidArgument("cuda attention: up to " + std::to_string(limits.max_blocks) +
                              " blocks; it must be positive, or 0 for as many as fit");
    if (limits.max_history_tokens < 0 || limits.max_history_tokens > kMaxHistoryTokens)
        throw InvalidArgument("cuda attention: memory for histories of " +
                              std::to_string(limits.max_history_tokens) +
                              " tokens; supported are up to 2^30, and 0 for none");
}

constexpr std::int64_t kMostRows = 1 << 20;   ///< of a sequence's KV head
constexpr std::int64_t kMostStrips = 1 << 22; ///< of all KV heads: work.cuh divides them

/// Threads of a launch, the same for all lengths.
struct Grid {
    int warps = 0; ///< of a block
    int blocks = 0;
    int shared_bytes = 0;
};

/// As many warps as a multiprocessor takes, in blocks of up to `most_warps` each.
Grid make_grid(const KernelEntry& kernel, int padded_dim, int device, int most_warps) {
    const int most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    const int multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
    Grid best;
    int resident_warps = 0;
    for (int warps = most_warps; warps >= kLeastWarps; warps /= 2) {
        const int bytes = kernel.block_bytes + warps * kernel.warp_bytes;
        if (bytes > most) continue;
        check(cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   most),
              "asking for shared memory");
        int blocks = 0;
        check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
                  &blocks, kernel.function, warps * kWarpSize, static_cast<std::size_t>(bytes)),
              "asking how many blocks fit");
        if (blocks * warps <= resident_warps) continue;
        if (merge_bytes(kernel.rows, padded_dim, warps * kWarpSize) > warps * kernel.warp_bytes)
            continue;
        resident_warps = blocks * warps;
        best = {warps, blocks * multiprocessors, bytes};
    }
    if (resident_warps == 0)
        throw Unavailable("cuda attention: a block for this format needs " +
                          std::to_string(kernel.block_bytes + kLeastWarps * kernel.warp_bytes) +
                          " bytes of shared memory, device " + std::to_string(device) + " has " +
                          std::to_string(most) + " for a block");
    return best;
}

} // namespace

struct Attention::Impl {
    AttentionShape shape;
    AttentionLimits limits;
    KernelEntry kernel;
    Grid wide;   ///< few blocks of many warps: fewer parts to merge
    Grid narrow; ///< more blocks, for more items than there are wide ones
    int max_strips = 0;
    DeviceMemory partials;
    DeviceMemory counters; ///< the next segment, then arrivals of parts
    Prefill prefill;

    Impl(const AttentionShape& attention_shape, const AttentionLimits& attention_limits)
        : shape(attention_shape), limits(attention_limits) {
        check_attention_arguments(shape, {});
        check_limits(limits);
        const std::int64_t all_rows = std::int64_t{limits.max_query_tokens} * group();
        if (all_rows > kMostRows)
            throw InvalidArgument("cuda attention: " + std::to_string(limits.max_query_tokens) +
                                  " query tokens of " + std::to_string(group()) +
                                  " query heads a KV head; supported are 2^20 rows");
        const int rows = static_cast<int>(all_rows);
        const bool packed = rows <= kFewRows;
        kernel = find_kernel(shape.format, packed);
        max_strips = (rows + kernel.rows - 1) / kernel.rows;
        if (std::int64_t{shape.kv_heads} * max_strips >= kMostStrips)
            throw InvalidArgument("cuda attention: " + std::to_string(limits.max_query_tokens) +
                                  " query tokens of " + std::to_string(shape.q_heads) +
                                  " query heads; supported are fewer than 2^22 times " +
                                  std::to_string(kernel.rows) +
                                  " rows of a sequence: ask for fewer tokens at a time");
        require_device(limits.device);
        const DeviceScope scope(limits.device);
        const int padded_dim = shape.format.padded_dim();
        wide = make_grid(kernel, padded_dim, limits.device, kMaxWarps);
        narrow = make_grid(kernel, padded_dim, limits.device, kMaxWarps / 2);
        for (Grid* grid : {&wide, &narrow})
            if (limits.max_blocks > 0) grid->blocks = std::min(grid->blocks, limits.max_blocks);
        const auto floats =
            static_cast<std::size_t>(partial_floats(kernel.rows, shape.format.padded_dim()));
        const auto slots =
            static_cast<std::size_t>(most_slots(std::max(wide.blocks, narrow.blocks)));
        partials = DeviceMemory(limits.device, slots * floats * sizeof(float), "partial results");
        counters = DeviceMemory(limits.device, (slots + 1) * sizeof(int), "counters");
        check(cudaMemset(counters.data(), 0, counters.bytes()), "clearing counters");
        if (rows >= kLeastChunkRows)
            prefill =
                Prefill(shape, limits.device, limits.max_sequences, limits.max_history_tokens);
        finish_writes();
    }

    int group() const { return shape.q_heads / shape.kv_heads; }

    void check_call(const AttentionCall& call) const {
        if (call.count < 0 || call.count > limits.max_sequences)
            throw InvalidArgument("cuda attention: " + std::to_string(call.count) +
                                  " sequences; this object was made for up to " +
                                  std::to_string(limits.max_sequences));
        const CallArguments arguments("cuda attention", limits.device);
        arguments.check_pointer(call.sequences, "the array of sequences", alignof(Sequence));
        arguments.check_type(call.q_type, "q_type");
        arguments.check_type(call.out_type, "out_type");
        arguments.check_pointer(call.q, "q", element_bytes(call.q_type));
        arguments.check_pointer(call.out, "out", element_bytes(call.out_type));
        if (call.log_sum_exp != nullptr)
            arguments.check_pointer(call.log_sum_exp, "log_sum_exp", sizeof(float));
        const auto check = [&](std::ptrdiff_t stride, int count, const char* name) {
            arguments.check_stride(stride, count, shape.format.head_dim, name);
        };
        check(call.q_sequence_stride, call.count, "q_sequence_stride");
        check(call.q_token_stride, limits.max_query_tokens, "q_token_stride");
        check(call.q_head_stride, shape.q_heads, "q_head_stride");
        check(call.out_sequence_stride, call.count, "out_sequence_stride");
        check(call.out_token_stride, limits.max_query_tokens, "out_token_stride");
        check(call.out_head_stride, shape.q_heads, "out_head_stride");
        arguments.check_stream(call.stream);
    }

    /// Items that a call may have.
    std::int64_t items(const AttentionCall& call) const {
        return std::int64_t{call.count} * shape.kv_heads * max_strips;
    }
    const Grid& grid_of(const AttentionCall& call) const {
        return items(call) <= wide.blocks ? wide : narrow;
    }

    AttentionParams params_of(const AttentionCall& call) const {
        constexpr float kLog2E = std::numbers::log2e_v<float>;
        AttentionParams params{};
        params.sequences = call.sequences;
        params.q = call.q;
        params.out = call.out;
        params.log_sum_exp = call.log_sum_exp;
        params.partials = reinterpret_cast<float*>(partials.data());
        params.next_segment = reinterpret_cast<int*>(counters.data());
        params.arrivals = params.next_segment + 1;
        params.q_sequence_stride = call.q_sequence_stride;
        params.q_token_stride = call.q_token_stride;
        params.q_head_stride = call.q_head_stride;
        params.out_sequence_stride = call.out_sequence_stride;
        params.out_token_stride = call.out_token_stride;
        params.out_head_stride = call.out_head_stride;
        params.q_type = call.q_type;
        params.out_type = call.out_type;
        params.count = call.count;
        params.max_query_tokens = limits.max_query_tokens;
        params.max_strips = max_strips;
        params.parts = static_cast<int>(grid_of(call).blocks / items(call));
        params.q_heads = shape.q_heads;
        params.kv_heads = shape.kv_heads;
        params.group = group();
        params.head_dim = shape.format.head_dim;
        params.sliding_window = shape.sliding_window;
        params.logit_scale = logit_scale(shape) * kLog2E;
        params.soft_cap = shape.soft_cap * kLog2E;
        return params;
    }

    void run(const AttentionCall& call) const {
        if (call.count == 0) return;
        check_call(call);
        const DeviceScope scope(limits.device);
        const Grid& grid = grid_of(call);
        AttentionParams params = params_of(call);
        if (prefill.ready()) {
            prefill.run(params, call.stream);
            params.sequences = prefill.others();
        }
        void* arguments[] = {&params};
        check(cudaLaunchKernel(kernel.function, dim3(static_cast<unsigned>(grid.blocks)),
                               dim3(static_cast<unsigned>(grid.warps * kWarpSize)), arguments,
                               static_cast<std::size_t>(grid.shared_bytes), call.stream),
              "launching attention");
    }
};

Attention::Attention(const AttentionShape& shape, const AttentionLimits& limits)
    : impl_(std::make_unique<Impl>(shape, limits)) {}
Attention::~Attention() = default;
Attention::Attention(Attention&&) noexcept = default;
Attention& Attention::operator=(Attention&&) noexcept = default;

void Attention::run(const AttentionCall& call) { impl_->run(call); }
std::size_t Attention::bytes() const {
    return impl_->partials.bytes() + impl_->counters.bytes() + impl_->prefill.bytes();
}

} // namespace innerkv::cuda
