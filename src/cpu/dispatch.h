// SPDX-License-Identifier: Apache-2.0
// Which instruction sets there are, and which one runs.
#pragma once

#include <span>
#include <string_view>

#include "cpu/kernel.h"

namespace innerkv::cpu {

/// Kernels of this build that this processor and operating system run, best first; scalar is last.
/// One function per processor family: x86/, arm/ or portable/, whichever CMake picks.
std::span<const Kernel* const> available_kernels();

/// By name; empty: the environment variable INNERKV_ISA (read once), then the best. Throws InvalidArgument naming
/// those there are.
const Kernel& select_kernel(std::string_view name);

} // namespace innerkv::cpu
