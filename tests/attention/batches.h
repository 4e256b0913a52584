// SPDX-License-Identifier: Apache-2.0
// Batches that every implementation of attention is tested with: masks, transforms, distributions made to break
// things.
#pragma once

#include "fixture.h"

namespace innerkv::test {

// Shapes and masks, in any format.

/// 71 query heads of one KV head.
Batch group_of_71(const PageFormat& format);
/// The first ones of `tokens` query tokens see a part of a page.
Batch chunk_of(const PageFormat& format, int tokens);
/// Ten queries from `position` on, in the middle of the sequence: later tokens, quantized ones too, are out of
/// their sight.
Batch queries_at(const PageFormat& format, int position);
/// All three runs end with so many tokens of a page.
Batch runs_that_end_inside_a_page(const PageFormat& format, int tokens);
Batch under_sliding_window(const PageFormat& format, int window);
Batch under_soft_cap(const PageFormat& format, float cap);

/// Bits 0 to 3: norm, centre, rotation, value centre.
Batch transformed(const PageFormat& format, int bits);

/// Runs that begin and end inside an epoch, of one page and of many epochs.
struct EpochCase {
    int epoch_pages, first_page, quantized;
};
inline constexpr EpochCase kEpochCases[] = {{1, 0, 96},  {2, 1, 224},      {8, 3, 64},
                                            {8, 7, 600}, {1, 0, 32 * 131}, {4, 2, 32 * 300}};
Batch with_epochs(const EpochCase& epochs, int head_dim);

// Edges.

/// The tokens that the window reaches have been dropped.
Batch window_over_dropped_tokens();
/// Eight query tokens, of which the first four see nothing.
Batch rows_that_see_nothing_beside_rows_that_do();

Batch one_token_dominates(int token);
Batch equal_keys();
Batch tiny_logits(float size);
/// Logits of +-1e4, whose differences underflow any exponential: the largest wins.
Batch logits_of_ten_thousand();
/// One key whose logit exceeds the others' by a tenth. In units of log2 neighbouring fp32 numbers lie 1/64
/// and more apart here: a probability must not come out above the largest.
Batch one_logit_a_tenth_larger(float largest);
/// Random logits of the same size: int8 queries may pick another of the largest, so the output is not close
/// to the reference; but it is a weighted mean of values.
Batch random_logits_of_ten_thousand();
Batch largest_values_of_f16();

/// Three query tokens of two heads; parts 1: windows, 2: quantized pages, in two items, 3: both.
Batch three_tokens_of_two_heads(int parts);
/// An element of the second of its tokens, second of its heads: row 3.
float& element_of_row_3(Batch& batch);
/// Row 3 is NaN; its neighbours have the bits they have without the fault.
void expect_fault_in_row_3(const Result& result, const Result& without_fault);

} // namespace innerkv::test
