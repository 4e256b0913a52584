// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include "cpu/arm/features.h"
#include "cpu/dispatch.h"
#include "cpu/neon/kernel.h"
#include "cpu/scalar/kernel.h"

namespace innerkv::cpu {

std::span<const Kernel* const> available_kernels() {
    static const std::vector<const Kernel*> kernels = [] {
        std::vector<const Kernel*> found;
        if (arm::has_dot_product()) found.push_back(&neon::kKernel);
        found.push_back(&scalar::kKernel);
        return found;
    }();
    return kernels;
}

} // namespace innerkv::cpu
