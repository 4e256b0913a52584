// SPDX-License-Identifier: Apache-2.0
// What comes before products of expanded blocks, in order (kernel.h).
#include "cpu/generic/expand.h"

#include "cpu/generic/scales.h"

#include "cpu/generic/softmax.h"

#include "cpu/generic/probabilities.h"

#include "cpu/generic/blocks.h"
