// SPDX-License-Identifier: Apache-2.0
#include "batches.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace innerkv::test {
namespace {

PageFormat format_of(std::string_view preset) { return find_preset(preset).format(64); }

} // namespace

Batch group_of_71(const PageFormat& format) {
    Batch batch(shape_of(format, 71, 1));
    batch.add(spec_for(format, 32), 2);
    return batch;
}

Batch chunk_of(const PageFormat& format, int tokens) {
    Batch batch(shape_of(format, 3, 1));
    SequenceSpec spec = spec_for(format, 64);
    spec.recent = std::max(tokens / 2, spec.recent - 96);
    batch.add(spec, tokens);
    return batch;
}

Batch queries_at(const PageFormat& format, int position) {
    Batch batch(shape_of(format, 2, 1));
    batch.add(spec_for(format, 64), 10);
    batch.blocks[0].first_position = position;
    return batch;
}

Batch runs_that_end_inside_a_page(const PageFormat& format, int tokens) {
    Batch batch(shape_of(format, 2, 1));
    SequenceSpec spec = spec_for(format, 64 + tokens);
    spec.sink = tokens;
    spec.recent = format.quantized() ? tokens : 64 + tokens;
    batch.add(spec, 1);
    batch.add(spec, tokens);
    return batch;
}

Batch under_sliding_window(const PageFormat& format, int window) {
    Batch batch(shape_of(format, 2, 1));
    batch.shape.sliding_window = window;
    SequenceSpec spec = spec_for(format, 96);
    batch.add(spec, 1);
    batch.add(spec, 20);
    spec.dropped = 320;
    batch.add(spec, 3);
    return batch;
}

Batch under_soft_cap(const PageFormat& format, float cap) {
    Batch batch(shape_of(format, 4, 2));
    batch.shape.soft_cap = cap;
    batch.shape.scale = 0.5f;
    batch.add(spec_for(format, 128), 3);
    return batch;
}

Batch transformed(const PageFormat& format, int bits) {
    Batch batch(shape_of(format, 4, 2));
    SequenceSpec spec;
    spec.quantized = 128;
    spec.transform = {(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0};
    batch.add(spec, 3);
    return batch;
}

Batch with_epochs(const EpochCase& epochs, int head_dim) {
    Batch batch(shape_of(find_preset("base").format(head_dim), 4, 2));
    SequenceSpec spec;
    spec.quantized = epochs.quantized;
    spec.epoch_pages = epochs.epoch_pages;
    spec.first_page = epochs.first_page;
    spec.transform = {true, true, true, true};
    batch.add(spec, 3);
    return batch;
}

Batch window_over_dropped_tokens() {
    Batch batch(shape_of(format_of("base"), 4, 2));
    batch.shape.sliding_window = 8;
    SequenceSpec spec;
    spec.quantized = 64;
    spec.dropped = 64;
    batch.add(spec, 2);
    batch.blocks[0].first_position = 60;
    return batch;
}

Batch rows_that_see_nothing_beside_rows_that_do() {
    Batch batch(shape_of(format_of("base"), 2, 1));
    SequenceSpec spec;
    spec.sink = 0;
    spec.dropped = 64; // the sequence begins at token 64
    spec.quantized = 64;
    batch.add(spec, 8);
    batch.blocks[0].first_position = 60;
    return batch;
}

Batch one_token_dominates(int token) {
    Batch batch(shape_of(format_of("base"), 2, 1));
    SequenceSpec spec;
    spec.quantized = 256;
    spec.k = [token, count = 0](std::mt19937& random, std::vector<float>& row) mutable {
        gaussian(random, row);
        if (count++ == token) std::fill(row.begin(), row.end(), 5.0f);
    };
    batch.add(spec, 1, constant(1.0f));
    return batch;
}

Batch equal_keys() {
    Batch batch(shape_of(format_of("base"), 2, 1));
    SequenceSpec spec;
    spec.quantized = 1024;
    spec.k = constant(0.7f);
    batch.add(spec);
    return batch;
}

Batch tiny_logits(float size) {
    Batch batch(shape_of(format_of("base"), 2, 1));
    SequenceSpec spec;
    spec.quantized = 256;
    spec.k = scaled(1e-3f);
    batch.add(spec, 1, scaled(size));
    return batch;
}

Batch logits_of_ten_thousand() {
    Batch batch(shape_of(format_of("k8v8"), 2, 1));
    SequenceSpec spec;
    spec.quantized = 256;
    spec.k = [count = 0](std::mt19937&, std::vector<float>& row) mutable {
        std::fill(row.begin(), row.end(), count++ % 7 == 3 ? 35.0f : -35.0f);
    };
    batch.add(spec, 1, constant(35.0f));
    return batch;
}

Batch one_logit_a_tenth_larger(float largest) {
    const float dominant = largest > 0.0f ? 1000.0f : 900.0f;
    Batch batch(shape_of(format_of("k8v8"), 2, 1));
    SequenceSpec spec;
    spec.sink = spec.recent = 0;
    spec.quantized = 128;
    spec.k = [dominant, count = 0](std::mt19937&, std::vector<float>& row) mutable {
        std::fill(row.begin(), row.end(), count++ == 70 ? dominant : 1900.0f - dominant);
    };
    batch.add(spec, 1, constant(largest / (8.0f * dominant)));
    return batch;
}

Batch random_logits_of_ten_thousand() {
    Batch batch(shape_of(format_of("base"), 4, 2));
    SequenceSpec spec;
    spec.quantized = 512;
    batch.add(spec, 1, scaled(3000.0f));
    return batch;
}

Batch largest_values_of_f16() {
    Batch batch(shape_of(format_of("k8v8"), 2, 1));
    SequenceSpec spec;
    spec.quantized = 128;
    spec.v = [](std::mt19937& random, std::vector<float>& row) {
        for (float& value : row) value = random() % 2 == 0 ? 65504.0f : 60000.0f;
    };
    batch.add(spec);
    return batch;
}

Batch three_tokens_of_two_heads(int parts) {
    Batch batch(shape_of(format_of("hybrid"), 2, 1));
    SequenceSpec spec;
    spec.quantized = parts == 1 ? 0 : parts == 2 ? 576 : 40;
    spec.sink = spec.recent = parts == 2 ? 0 : 32;
    spec.transform = {true, true, true, true};
    batch.add(spec, 3);
    return batch;
}

float& element_of_row_3(Batch& batch) {
    const QueryBlock& block = batch.blocks[0];
    return batch
        .memory[0][static_cast<std::size_t>(block.q_token_stride + block.q_head_stride + 40)];
}

void expect_fault_in_row_3(const Result& result, const Result& without_fault) {
    for (std::size_t row = 0; row < 6; ++row) {
        if (row == 3) {
            expect_nan(result, row);
        } else {
            EXPECT_EQ(result.out[row], without_fault.out[row]);
            EXPECT_EQ(result.log_sum_exp[row], without_fault.log_sum_exp[row]);
        }
    }
}

} // namespace innerkv::test
