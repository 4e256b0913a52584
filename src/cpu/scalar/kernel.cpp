// SPDX-License-Identifier: Apache-2.0
// Plain C++ for any processor.
#include "cpu/scalar/kernel.h"

#include <cstddef>
#include <cstdint>

#include "innerkv/codec.h"

namespace innerkv::cpu::scalar {
namespace {

#include "cpu/scalar/primitives.h"

#include "cpu/generic/mixed_signs.h"

#include "cpu/generic/kernel.h"

} // namespace

const Kernel kKernel = {"scalar",
                        quantize_query,
                        centre_logits,
                        attend_quantized,
                        attend_dense<HalfElement>,
                        attend_dense<FloatElement>};

} // namespace innerkv::cpu::scalar
