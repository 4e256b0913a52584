// SPDX-License-Identifier: Apache-2.0
// AArch64 with the dot products of Armv8.2-A (SDOT, UDOT).
#include "cpu/neon/kernel.h"

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

namespace innerkv::cpu::neon {
namespace {

#include "cpu/neon/primitives.h"

#include "cpu/generic/products.h"

#include "cpu/neon/expanded.h"

#include "cpu/generic/dense.h"
#include "cpu/generic/quantized.h"

} // namespace

const Kernel kKernel = {"neon",
                        quantize_query,
                        centre_logits,
                        attend_quantized,
                        attend_dense<HalfElement>,
                        attend_dense<FloatElement>};

} // namespace innerkv::cpu::neon
