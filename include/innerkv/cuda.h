// SPDX-License-Identifier: Apache-2.0
// Attention on CUDA devices, on the very pages that attention.h reads on the CPU. Without CUDA in the build
// everything here is still there: devices() is empty and what needs a device throws Unavailable.
//
// Nothing in a step depends on the host: Attention::run allocates nothing, waits for nothing and launches the
// same grid whatever the lengths, which lie in device memory. So a step can be captured in a CUDA graph once
// and replayed while the sequences grow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "innerkv/attention.h"
#include "innerkv/cache.h"
#include "innerkv/error.h"
#include "innerkv/view.h"

struct CUstream_st;

namespace innerkv::cuda {

/// A cudaStream_t; null: the default stream.
using Stream = ::CUstream_st*;

/// There is no device for what was asked: no CUDA in this build, no driver, none so new.
class Unavailable : public Error {
public:
    using Error::Error;
};

/// The device refused a call: out of memory, an error of an earlier launch.
class DeviceError : public Error {
public:
    using Error::Error;
};

struct DeviceInfo {
    int index = 0;
    std::string name;
    int major = 0; ///< compute capability; kernels need 8.0
    int minor = 0;
    int multiprocessors = 0;
    std::size_t memory_bytes = 0;
    std::size_t l2_bytes = 0;
};

/// A device has too little free memory.
class OutOfMemory : public DeviceError {
public:
    using DeviceError::DeviceError;
};

/// Whether work on a stream is recorded into a graph, instead of done: then nothing may be allocated or waited for.
/// False where there is no driver or device.
bool is_capturing(Stream stream);

/// Devices that the kernels run on; empty where there is none.
std::vector<DeviceInfo> devices();
/// Why devices() is empty, in a sentence; empty where it is not.
std::string unavailable_reason();

/// PageRun (view.h) with its table of pages and the pages themselves in device memory.
struct Run {
    const std::byte* const* pages = nullptr;
    std::uint64_t head_stride = 0;
    std::int64_t first_token = 0;
    std::int64_t tokens = 0;
};

/// SequenceView with the queries that ask: one element of an array in device memory, all pointers to device
/// memory. Positions are below 2^30.
struct Sequence {
    Run sink;
    Run quantized;
    Run recent;
    std::int64_t length = 0;
    std::int64_t first_position = 0; ///< of its first query token
    /// Up to AttentionLimits::max_query_tokens; 0: nothing is written. More, or fewer than 0: outputs and log_sum_exp
    /// of the first max_query_tokens are NaN where they see a token, and nothing is written behind them.
    std::int32_t query_tokens = 0;
    std::int32_t rotate = 0;             ///< 1: keys and values of the quantized run are rotated
    const float* norm = nullptr;         ///< [kv_heads, head_dim] or null
    const float* centre = nullptr;       ///< likewise; null where there are epochs
    const float* value_centre = nullptr; ///< likewise
    const std::byte* const* epochs = nullptr; ///< CentreRun; null: none
    std::int32_t epoch_pages = 0;
    std::int32_t first_page = 0;
};

/// What a copy is made of: a view and who asks.
struct SequenceQueries {
    const SequenceView* sequence = nullptr;
    std::int64_t first_position = 0;
    int query_tokens = 1;
};

/// A copy of sequences in device memory: pages, transforms, centres and the array of Sequence that names
/// them. Pages are byte for byte those of the views.
class DeviceSequences {
public:
    /// Throws InvalidArgument as Attention (attention.h) does, DeviceError where memory is short.
    DeviceSequences(const AttentionShape& shape, std::span<const SequenceQueries> sequences,
                    int device = 0);
    ~DeviceSequences();
    DeviceSequences(DeviceSequences&&) noexcept;
    DeviceSequences& operator=(DeviceSequences&&) noexcept;

    const Sequence* data() const; ///< in device memory
    int size() const;
    std::size_t bytes() const;

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

struct AttentionLimits {
    int device = 0;
    int max_sequences = 1;    ///< of one call; up to kMaxSequences
    int max_query_tokens = 1; ///< of one sequence; up to kMaxQueryTokens
    /// Blocks of threads of a launch; 0: as many as the device holds at once. Fewer leave multiprocessors to
    /// others.
    int max_blocks = 0;
    /// Memory for chunks: sequences with 160 query rows a KV head and more have what they see written out as fp16
    /// rows, once a call, and multiplied on those. Tokens that all of them together see, 4 * kv_heads * padded_dim
    /// bytes each; a sequence that finds no room is read page by page for every few queries, many times slower.
    /// 0: all are, and on other devices than those of compute capability 9.0 (DeviceInfo::major, minor).
    std::int64_t max_history_tokens = 0;
};

inline constexpr int kMaxSequences = 256;
inline constexpr int kMaxQueryTokens = 1 << 16;
inline constexpr std::int64_t kMaxHistoryTokens = std::int64_t{1} << 30;

/// Queries and outputs in device memory, [sequence, token, q_head, head_dim], last dimension contiguous;
/// strides in elements, of tokens where max_query_tokens is above 1.
struct AttentionCall {
    /// [count], in device memory: of the very heads, head dimension and format that Attention was made for, which device
    /// memory does not tell; those of DeviceCache::sequences() that come from another shape are read wrongly.
    const Sequence* sequences = nullptr;
    int count = 0;
    const void* q = nullptr;
    RowType q_type = RowType::f32;
    std::ptrdiff_t q_sequence_stride = 0;
    std::ptrdiff_t q_token_stride = 0;
    std::ptrdiff_t q_head_stride = 0;
    void* out = nullptr;
    RowType out_type = RowType::f32;
    std::ptrdiff_t out_sequence_stride = 0;
    std::ptrdiff_t out_token_stride = 0;
    std::ptrdiff_t out_head_stride = 0;
    float* log_sum_exp = nullptr; ///< [count, max_query_tokens, q_heads], natural log; optional
    Stream stream = nullptr;
};

/// Attention of one layer for up to max_sequences sequences, with memory of its own for partial results:
/// calls of one object must follow each other on the device. Results are those of attention.h with
/// Arithmetic::integer within the same bounds; fp16 windows, and all that chunks see, are multiplied in fp16 with
/// fp32 sums. They do not depend on the order in which blocks run, but on the device's number of multiprocessors.
class Attention {
public:
    /// Allocates. Throws InvalidArgument where shape or limits are not supported, Unavailable, DeviceError.
    Attention(const AttentionShape& shape, const AttentionLimits& limits);
    ~Attention();
    Attention(Attention&&) noexcept;
    Attention& operator=(Attention&&) noexcept;

    /// Enqueues one launch, four where there is memory for chunks. Throws InvalidArgument, and nothing has run, for a
    /// pointer or stream of another device, a pointer that is not a multiple of its elements' size, a count above
    /// max_sequences and, of what there is more than one of, strides below the head dimension. Throws DeviceError
    /// where a launch is refused: others may have run, and outputs hold nothing.
    void run(const AttentionCall& call);

    std::size_t bytes() const; ///< of device memory held

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

} // namespace innerkv::cuda
