// SPDX-License-Identifier: Apache-2.0
// AVX-512 with VNNI, and AMX-INT8 where nine rows or more share a page.
#include "cpu/amx/kernel.h"

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace innerkv::cpu::amx {
namespace {

#include "cpu/avx512/primitives.h"

#include "cpu/generic/mixed_signs.h"

#include "cpu/generic/products.h"

#include "cpu/amx/expanded.h"

#include "cpu/generic/dense.h"
#include "cpu/generic/quantized.h"

} // namespace

const Kernel kKernel = {"amx",
                        quantize_query,
                        centre_logits,
                        attend_quantized,
                        attend_dense<HalfElement>,
                        attend_dense<FloatElement>};

} // namespace innerkv::cpu::amx
