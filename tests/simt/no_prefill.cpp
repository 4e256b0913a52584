// SPDX-License-Identifier: Apache-2.0
// Kernels of prefill are sm_90a's own instructions. The devices here are older ones, whose chunks are taken by the
// kernels of decoding.
#include "cuda/prefill/kernels.h"

namespace innerkv::cuda {

PrefillKernel prefill_plan_kernel() { return {}; }
PrefillKernel expand_kernel_of(const PageFormat& /*format*/) { return {}; }
PrefillKernel attend_kernel_of(int /*blocks*/) { return {}; }

} // namespace innerkv::cuda
