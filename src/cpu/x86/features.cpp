// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/features.h"

#include <cpuid.h>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace innerkv::cpu::x86 {
namespace {

struct Registers {
    unsigned a = 0;
    unsigned b = 0;
    unsigned c = 0;
    unsigned d = 0;
};

/// All zero where the processor does not have the leaf.
Registers cpuid(unsigned leaf, unsigned subleaf = 0) {
    Registers r;
    if (__get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d) == 0) return {};
    return r;
}

constexpr bool bit(unsigned value, int index) { return (value >> index & 1) != 0; }

/// Register states that the operating system saves: XCR0.
unsigned saved_states() {
    if (!bit(cpuid(1).c, 27)) return 0; // OSXSAVE
    unsigned low = 0;
    unsigned high = 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

constexpr unsigned kAvxStates = 0x06;    // SSE, AVX
constexpr unsigned kAvx512States = 0xe6; // and opmask, upper halves, upper registers

constexpr unsigned kTileStates = 0x60000; // configuration, data

bool saves(unsigned states) { return (saved_states() & states) == states; }

bool tiles_permitted() {
#if defined(__linux__)
    constexpr long kRequestPermission = 0x1023; // ARCH_REQ_XCOMP_PERM of <asm/prctl.h>
    constexpr long kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

} // namespace

bool has_avx2() {
    const unsigned basic = cpuid(1).c;
    return saves(kAvxStates) && bit(basic, 12) /* FMA */ && bit(basic, 28) /* AVX */ &&
           bit(basic, 29) /* F16C */ && bit(cpuid(7).b, 5) /* AVX2 */;
}

bool has_avxvnni() { return has_avx2() && bit(cpuid(7, 1).a, 4); }

bool has_avx512() {
    const Registers r = cpuid(7);
    return has_avx2() && saves(kAvx512States) && bit(r.b, 16) /* F */ && bit(r.b, 17) /* DQ */ &&
           bit(r.b, 30) /* BW */ && bit(r.b, 31) /* VL */ && bit(r.c, 11) /* VNNI */;
}

bool has_amx() {
    const unsigned extended = cpuid(7).d;
    return has_avx512() && saves(kTileStates) && bit(extended, 24) /* AMX-TILE */ &&
           bit(extended, 25) /* AMX-INT8 */ && tiles_permitted();
}

} // namespace innerkv::cpu::x86
