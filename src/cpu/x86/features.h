// SPDX-License-Identifier: Apache-2.0
// What CPUID reports and the operating system saves (XGETBV).
#pragma once

namespace innerkv::cpu::x86 {

bool has_avx2();    ///< AVX2, FMA and F16C
bool has_avxvnni(); ///< AVX-VNNI, beside has_avx2
bool has_avx512();  ///< AVX-512 F, BW, VL, DQ and VNNI, beside has_avx2

/// AMX-TILE and AMX-INT8, beside has_avx512. Asks the system for this process's permission to use tiles, which
/// Linux gives unless a thread has a signal stack too small for their state.
bool has_amx();

} // namespace innerkv::cpu::x86
