// SPDX-License-Identifier: Apache-2.0
// AVX2 with the dot product of AVX-VNNI.
#include "cpu/avxvnni/kernel.h"

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace innerkv::cpu::avxvnni {
namespace {

#include "cpu/avx2/primitives.h"

#include "cpu/avxvnni/dot.h"

#include "cpu/generic/kernel.h"

} // namespace

const Kernel kKernel = {"avxvnni",
                        quantize_query,
                        centre_logits,
                        attend_quantized,
                        attend_dense<HalfElement>,
                        attend_dense<FloatElement>};

} // namespace innerkv::cpu::avxvnni
