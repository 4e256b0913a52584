// SPDX-License-Identifier: Apache-2.0
// Launches of attention of long chunks, and their memory. Host side.
#pragma once

#include "cuda/device.h"
#include "cuda/prefill/kernels.h"
#include "cuda/prefill/params.h"

namespace innerkv::cuda {

class Prefill {
public:
    Prefill() = default;
    /// Memory for histories of `tokens` tokens of up to `sequences` sequences, where the device runs the kernels;
    /// otherwise none. Throws DeviceError where memory is short.
    Prefill(const AttentionShape& shape, int device, int sequences, std::int64_t tokens);

    bool ready() const { return memory_.max_tiles > 0; }
    /// Enqueues attention of those sequences of the call that are chunks. The others are left in others().
    void run(AttentionParams params, Stream stream) const;
    const Sequence* others() const { return memory_.others; }

    std::size_t bytes() const {
        return plan_.bytes() + others_.bytes() + tiles_.bytes() + parts_.bytes() +
               arrivals_.bytes();
    }

private:
    PrefillKernel expand_;
    PrefillKernel attend_;
    int tile_tokens_ = 0;
    int expand_blocks_ = 0;
    DeviceMemory plan_;
    DeviceMemory others_;
    DeviceMemory tiles_;
    DeviceMemory parts_;
    DeviceMemory arrivals_;
    PrefillMemory memory_{};
};

} // namespace innerkv::cuda
