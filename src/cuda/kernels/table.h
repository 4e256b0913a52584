// SPDX-License-Identifier: Apache-2.0
// Which kernels there are: one file here a pair of codecs, compiled for all head dimensions. Host side.
#pragma once

#include "innerkv/format.h"

namespace innerkv::cuda {

struct KernelEntry {
    const void* function = nullptr; ///< of one AttentionParams; null: there is none
    int block_bytes = 0;            ///< shared memory of a block
    int warp_bytes = 0;             ///< and of each of its warps
    int rows = 0;                   ///< of queries that it takes at a time
    Codec k;                        ///< of the pages that it reads
    Codec v;
};

/// `blocks` of 64 channels; packed: for up to kFewRows rows.
KernelEntry base_kernel(int blocks, bool packed);
KernelEntry small_kernel(int blocks, bool packed);
KernelEntry hybrid_kernel(int blocks, bool packed);
KernelEntry k4v4_kernel(int blocks, bool packed);
KernelEntry k4v3_kernel(int blocks, bool packed);
KernelEntry k4v2_kernel(int blocks, bool packed);
KernelEntry k8v8_kernel(int blocks, bool packed);

/// Throws InvalidArgument where no kernel reads such pages.
KernelEntry find_kernel(const PageFormat& format, bool packed);
/// That, with what is supported.
[[noreturn]] void throw_no_kernel(const PageFormat& format);

} // namespace innerkv::cuda
