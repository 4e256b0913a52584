// SPDX-License-Identifier: Apache-2.0
#include "cpu/arm/features.h"

#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace innerkv::cpu::arm {

bool has_dot_product() {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
    return true; // since the first of Apple's 64-bit Macs
#else
    return false;
#endif
}

} // namespace innerkv::cpu::arm
