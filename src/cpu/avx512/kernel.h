// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/kernel.h"

namespace innerkv::cpu::avx512 {
extern const Kernel kKernel;
}
