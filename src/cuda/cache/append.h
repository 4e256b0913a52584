// SPDX-License-Identifier: Apache-2.0
// The kernels of an append: two, or one for up to a page of tokens. Host side.
#pragma once

namespace innerkv::cuda {

/// Functions of one AppendParams (state.h).
struct AppendKernels {
    const void* settle; ///< grid [kv_heads, slots]
    const void* append; ///< grid [all blocks of a KV head, kv_heads, slots]; follows settle
    const void* step;   ///< instead of both: grid [1, kv_heads, slots]
    int threads;        ///< of a block
};

AppendKernels append_kernels();

} // namespace innerkv::cuda
