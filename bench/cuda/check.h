// SPDX-License-Identifier: Apache-2.0
// The CUDA runtime's errors as exceptions.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "innerkv/cuda.h"

namespace innerkv::bench {

/// Throws cuda::DeviceError; clears the runtime's last error.
inline void check(cudaError_t status, const char* what = "timing on a device") {
    if (status == cudaSuccess) return;
    static_cast<void>(cudaGetLastError());
    throw cuda::DeviceError(std::string("cuda: ") + what +
                            " failed: " + cudaGetErrorString(status));
}

} // namespace innerkv::bench
