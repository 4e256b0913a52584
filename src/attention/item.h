// SPDX-License-Identifier: Apache-2.0
// One item's way through the kernels: rows and transforms in, a softmax state out.
#pragma once

#include "attention/merge.h"
#include "attention/partition.h"
#include "cpu/kernel.h"
#include "innerkv/attention.h"

namespace innerkv {

/// Rows of one KV head of one query block.
struct ItemRows {
    const AttentionShape& shape;
    const QueryBlock& block;
    int kv_head;
    int first_row;
    int rows;

    int group() const { return shape.q_heads / shape.kv_heads; }
    int token(int row) const { return (first_row + row) / group(); }
    int q_head(int row) const { return kv_head * group() + (first_row + row) % group(); }
    const float* q(int row) const {
        return block.q + token(row) * block.q_token_stride + q_head(row) * block.q_head_stride;
    }
};

/// Attends to the pages and adds to `state`, which no pages have been added to.
void attend_pages(const cpu::Kernel& kernel, Arithmetic arithmetic, const ItemRows& rows,
                  const PageShare& pages, const SoftmaxState& state);

/// Normalizes and writes the rows' outputs and log-sum-exps.
void write_rows(const ItemRows& rows, const SoftmaxState& state);

} // namespace innerkv
