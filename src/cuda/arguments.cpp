// SPDX-License-Identifier: Apache-2.0
#include "cuda/arguments.h"

#include <string>
#include <vector>

#include "attention/arguments.h"
#include "cuda/device.h"

namespace innerkv::cuda {
namespace {

constexpr std::int64_t kLargestPosition = std::int64_t{1} << 30;

void check_rotation(std::span<const SequenceQueries> sequences) {
    for (const SequenceQueries& asked : sequences)
        for (const KeyTransform& transform : asked.sequence->transforms)
            if (transform.rotate != asked.sequence->transforms[0].rotate)
                throw InvalidArgument(
                    "cuda: some KV heads of a sequence are rotated and others not; "
                    "rotate all or none");
}

} // namespace

void check_sequences(const AttentionShape& shape, std::span<const SequenceQueries> sequences) {
    // As the CPU's: what it asks of queries and outputs is made up.
    float nothing = 0.0f;
    std::vector<QueryBlock> blocks;
    for (std::size_t i = 0; i < sequences.size(); ++i) {
        const SequenceQueries& asked = sequences[i];
        QueryBlock block;
        block.sequence = asked.sequence;
        block.q = block.out = &nothing;
        block.q_head_stride = block.out_head_stride = shape.format.head_dim;
        block.q_token_stride = block.out_token_stride = shape.format.head_dim;
        block.first_position = asked.first_position;
        block.tokens = asked.query_tokens;
        blocks.push_back(block);
    }
    check_attention_arguments(shape, blocks);
    for (const SequenceQueries& asked : sequences)
        if (asked.sequence->length > kLargestPosition || asked.first_position > kLargestPosition)
            throw InvalidArgument(
                "cuda: a sequence of length " + std::to_string(asked.sequence->length) +
                ", queries from position " + std::to_string(asked.first_position) +
                " on; supported are up to 2^30");
    check_rotation(sequences);
}

void CallArguments::check_pointer(const void* pointer, const std::string& name,
                                  std::size_t alignment) const {
    if (reinterpret_cast<std::uintptr_t>(pointer) % alignment != 0)
        throw InvalidArgument(std::string(subject_) + ": " + name +
                              " does not begin at a multiple of the " + std::to_string(alignment) +
                              " bytes of its elements");
    cudaPointerAttributes attributes{};
    check(cudaPointerGetAttributes(&attributes, pointer), "looking at " + name);
    if (attributes.type == cudaMemoryTypeManaged) return;
    if (attributes.type != cudaMemoryTypeDevice)
        throw InvalidArgument(std::string(subject_) + ": " + name +
                              " is not device memory; copy it to device " +
                              std::to_string(device_));
    if (attributes.device != device_)
        throw InvalidArgument(std::string(subject_) + ": " + name + " is memory of device " +
                              std::to_string(attributes.device) +
                              ", the object was made for device " + std::to_string(device_));
}

void CallArguments::check_type(RowType type, const std::string& name) const {
    if (type == RowType::f32 || type == RowType::f16 || type == RowType::bf16) return;
    throw InvalidArgument(std::string(subject_) + ": " + name + " is RowType " +
                          std::to_string(static_cast<int>(type)) +
                          "; supported are f32, f16 and bf16");
}

void CallArguments::check_stride(std::ptrdiff_t stride, int count, int head_dim,
                                 const std::string& name) const {
    constexpr std::ptrdiff_t kFar = std::ptrdiff_t{1} << 48;
    if (count < 2 || (stride >= head_dim && stride <= kFar)) return;
    throw InvalidArgument(std::string(subject_) + ": " + name + " is " + std::to_string(stride) +
                          " elements; supported are the head dimension, " +
                          std::to_string(head_dim) + ", to 2^48");
}

void CallArguments::check_stream(Stream stream) const {
#if CUDART_VERSION >= 12080
    const bool capturing = is_capturing(stream);
    // While a graph is captured its stream must not be asked; a launch from elsewhere is refused by the runtime.
    if (stream == nullptr || capturing) return;
    int of_stream = 0;
    check(cudaStreamGetDevice(stream, &of_stream), "asking for a stream's device");
    if (of_stream != device_)
        throw InvalidArgument(std::string(subject_) + ": the stream is one of device " +
                              std::to_string(of_stream) + ", the object was made for device " +
                              std::to_string(device_));
#else
    static_cast<void>(stream);
#endif
}

} // namespace innerkv::cuda
