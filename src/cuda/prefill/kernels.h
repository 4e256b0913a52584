// SPDX-License-Identifier: Apache-2.0
// Kernels of prefill, compiled for sm_90a alone. Host side.
#pragma once

#include "innerkv/format.h"

namespace innerkv::cuda {

/// Of one AttentionParams and one PrefillMemory.
struct PrefillKernel {
    const void* function = nullptr;
    int threads = 0;      ///< of a block
    int shared_bytes = 0; ///< dynamic
};

/// The third argument is how many tokens a tile has.
PrefillKernel prefill_plan_kernel();
/// Null where the codecs are no preset's.
PrefillKernel expand_kernel_of(const PageFormat& format);
/// `blocks` of 64 channels.
PrefillKernel attend_kernel_of(int blocks);

} // namespace innerkv::cuda
