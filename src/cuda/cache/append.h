// SPDX-License-Identifier: Apache-2.0
// Launches of an append. Host side.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/cache/state.h"

namespace innerkv::cuda {

/// `slots`: of the cache; `calibration_tokens`: of the policy.
cudaError_t launch_append(const AppendParams& params, int slots, int calibration_tokens,
                          Stream stream);

} // namespace innerkv::cuda
