// SPDX-License-Identifier: Apache-2.0
// What the benchmark's tests compute.
#pragma once

#include "attention_case.h"

namespace innerkv::bench {

inline AttentionCase small_case(std::int64_t context) {
    AttentionCase attention;
    attention.head_dim = 64;
    attention.q_heads = 6;
    attention.kv_heads = 2;
    attention.context = context;
    attention.batch = 2;
    return attention;
}

} // namespace innerkv::bench
