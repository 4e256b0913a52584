// SPDX-License-Identifier: Apache-2.0
// The algorithm, in order. An instruction set's kernel.cpp includes its primitives and then this file
// inside its own unnamed namespace: nothing compiled with its flags may be visible to the linker but
// the table, or code meant for one processor could run on all.
// No include guards, and no includes but these: see there.
#include "cpu/generic/products.h"

#include "cpu/generic/expanded.h"

#include "cpu/generic/dense.h"
#include "cpu/generic/quantized.h"
