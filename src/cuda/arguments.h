// SPDX-License-Identifier: Apache-2.0
// What every call on a device checks: whose memory, whose stream. Host side.
#pragma once

#include "innerkv/cuda.h"

namespace innerkv::cuda {

constexpr std::size_t element_bytes(RowType type) { return type == RowType::f32 ? 4 : 2; }

class CallArguments {
public:
    /// `subject` begins messages: what was made for `device`.
    CallArguments(const char* subject, int device) : subject_(subject), device_(device) {}

    /// Throw InvalidArgument.
    void check_pointer(const void* pointer, const std::string& name, std::size_t alignment) const;
    void check_stream(Stream stream) const;
    void check_type(RowType type, const std::string& name) const;
    /// `stride` in elements, which counts where there is more than one of what it is between: rows do not overlap.
    void check_stride(std::ptrdiff_t stride, int count, int head_dim,
                      const std::string& name) const;

private:
    const char* subject_;
    int device_;
};

/// What kernels of this shape read: as check_attention_arguments, and with positions and transforms that they take.
/// Throws InvalidArgument.
void check_sequences(const AttentionShape& shape, std::span<const SequenceQueries> sequences);

} // namespace innerkv::cuda
