// SPDX-License-Identifier: Apache-2.0
// The algorithm, in order. An instruction set's kernel.cpp includes its primitives and then this file
// inside its own unnamed namespace: nothing compiled with its flags may be visible to the linker but
// the table, or code meant for one processor could run on all.
// No include guard, and no includes but these: see there.
#include "cpu/generic/expand.h"

#include "cpu/generic/scales.h"

#include "cpu/generic/softmax.h"

#include "cpu/generic/probabilities.h"

#include "cpu/generic/blocks.h"

#include "cpu/generic/dense.h"
#include "cpu/generic/quantized.h"
