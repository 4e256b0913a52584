// SPDX-License-Identifier: Apache-2.0
// What every call on a device checks: whose memory, whose stream. Host side.
#pragma once

#include "innerkv/cuda.h"

namespace innerkv::cuda {

class CallArguments {
public:
    /// `subject` begins messages: what was made for `device`.
    CallArguments(const char* subject, int device) : subject_(subject), device_(device) {}

    /// Throw InvalidArgument.
    void check_pointer(const void* pointer, const char* name) const;
    void check_stream(Stream stream) const;

private:
    const char* subject_;
    int device_;
};

/// What kernels of this shape read: as check_attention_arguments, and with positions and transforms that they take.
/// Throws InvalidArgument.
void check_sequences(const AttentionShape& shape, std::span<const SequenceQueries> sequences);

} // namespace innerkv::cuda
