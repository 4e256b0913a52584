// SPDX-License-Identifier: Apache-2.0
// One item's way through the kernels: rows and transforms in, a softmax state out.
#pragma once

#include "attention/merge.h"
#include "attention/strip.h"
#include "cpu/kernel.h"
#include "innerkv/attention.h"

namespace innerkv {

/// A query token and head.
struct Row {
    const QueryBlock* block;
    int token;
    int q_head;

    const float* q() const {
        return block->q + token * block->q_token_stride + q_head * block->q_head_stride;
    }
    std::int64_t position() const { return block->first_position + token; }
};

/// Rows of one KV head, of one block or of several whose sequences have the same pages.
struct ItemRows {
    const AttentionShape& shape;
    int kv_head;
    int rows = 0;
    Row row[cpu::kMaxRows] = {};

    ItemRows(const AttentionShape& attention_shape, int head)
        : shape(attention_shape), kv_head(head) {}
    void add(const QueryBlock& block, const Strip& strip);
    /// Whose pages are read.
    const SequenceView& sequence() const { return *row[0].block->sequence; }
};

/// Attends to the pages and adds to `state`, which no pages have been added to.
void attend_pages(const cpu::Kernel& kernel, Arithmetic arithmetic, const ItemRows& rows,
                  const PageShare& pages, const SoftmaxState& state);

/// Normalizes and writes the rows' outputs and log-sum-exps.
void write_rows(const ItemRows& rows, const SoftmaxState& state);

} // namespace innerkv
