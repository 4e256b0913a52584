// SPDX-License-Identifier: Apache-2.0
// AVX-512 F, BW, VL, DQ and VNNI.
#include "cpu/avx512/kernel.h"

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace innerkv::cpu::avx512 {
namespace {

#include "cpu/avx512/primitives.h"

#include "cpu/generic/mixed_signs.h"

#include "cpu/generic/kernel.h"

} // namespace

const Kernel kKernel = {"avx512",
                        quantize_query,
                        centre_logits,
                        attend_quantized,
                        attend_dense<HalfElement>,
                        attend_dense<FloatElement>};

} // namespace innerkv::cpu::avx512
