// SPDX-License-Identifier: Apache-2.0
// AVX2 with FMA and F16C.
#include "cpu/avx2/kernel.h"

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace innerkv::cpu::avx2 {
namespace {

#include "cpu/avx2/primitives.h"

#include "cpu/avx2/dot.h"

#include "cpu/generic/kernel.h"

} // namespace

const Kernel kKernel = {"avx2",
                        quantize_query,
                        centre_logits,
                        attend_quantized,
                        attend_dense<HalfElement>,
                        attend_dense<FloatElement>};

} // namespace innerkv::cpu::avx2
