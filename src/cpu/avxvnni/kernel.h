// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/kernel.h"

namespace innerkv::cpu::avxvnni {
extern const Kernel kKernel;
}
