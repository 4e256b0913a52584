// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include "cpu/amx/kernel.h"
#include "cpu/avx2/kernel.h"
#include "cpu/avx512/kernel.h"
#include "cpu/avxvnni/kernel.h"
#include "cpu/dispatch.h"
#include "cpu/scalar/kernel.h"
#include "cpu/x86/features.h"

namespace innerkv::cpu {

std::span<const Kernel* const> available_kernels() {
    static const std::vector<const Kernel*> kernels = [] {
        std::vector<const Kernel*> found;
        if (x86::has_amx()) found.push_back(&amx::kKernel);
        if (x86::has_avx512()) found.push_back(&avx512::kKernel);
        if (x86::has_avxvnni()) found.push_back(&avxvnni::kKernel);
        if (x86::has_avx2()) found.push_back(&avx2::kKernel);
        found.push_back(&scalar::kKernel);
        return found;
    }();
    return kernels;
}

} // namespace innerkv::cpu
