// SPDX-License-Identifier: Apache-2.0
// Processors without kernels of their own.
#include "cpu/dispatch.h"
#include "cpu/scalar/kernel.h"

namespace innerkv::cpu {

std::span<const Kernel* const> available_kernels() {
    static const Kernel* const kernels[] = {&scalar::kKernel};
    return kernels;
}

} // namespace innerkv::cpu
