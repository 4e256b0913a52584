// SPDX-License-Identifier: Apache-2.0
// The two kernels of an append. Host side.
#pragma once

namespace innerkv::cuda {

/// Functions of one AppendParams (state.h).
struct AppendKernels {
    const void* settle; ///< grid [kv_heads, slots]
    const void* append; ///< grid [all blocks of a KV head, kv_heads, slots]; follows settle
    int threads;        ///< of a block
};

AppendKernels append_kernels();

} // namespace innerkv::cuda
