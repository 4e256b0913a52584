// SPDX-License-Identifier: Apache-2.0
// One decode step of one layer: the data every contender gets, and the right answer.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace innerkv::bench {

struct AttentionCase {
    int head_dim = 128;
    int q_heads = 32;
    int kv_heads = 8; ///< divides q_heads
    std::int64_t context = 32768;
    int batch = 1;
    /// Sequences are forks: all have the first one's tokens but for the last token.
    bool shared = false;
    std::uint64_t seed = 1;

    /// Elements of one sequence's queries or outputs, [q_heads, head_dim].
    std::size_t query_elements() const {
        return static_cast<std::size_t>(q_heads) * static_cast<std::size_t>(head_dim);
    }
    /// Elements of one token's keys or values, [kv_heads, head_dim].
    std::size_t row_elements() const {
        return static_cast<std::size_t>(kv_heads) * static_cast<std::size_t>(head_dim);
    }
    /// int8 multiply-accumulates of the whole batch: q . K and p . V.
    double multiply_accumulates() const {
        return 2.0 * static_cast<double>(query_elements()) * static_cast<double>(context) * batch;
    }
};

/// Random keys and values of mean 0 and variance 1, rounded to fp16 so that f16 caches hold exactly
/// them. Writes tokens first .. first + tokens - 1 of a sequence, [tokens, kv_heads, head_dim]; the same
/// token is the same however it is cut.
void make_rows(const AttentionCase& attention, int sequence, std::int64_t first,
               std::int64_t tokens, float* k, float* v);

/// Queries of one sequence, [q_heads, head_dim].
std::vector<float> make_queries(const AttentionCase& attention, int sequence);

/// Attention of one sequence in double precision, [q_heads, head_dim], logits scaled by
/// 1 / sqrt(head_dim).
std::vector<float> exact_attention(const AttentionCase& attention, int sequence);

/// |value - expected| / |expected|, Euclidean norms.
double relative_error(std::span<const float> value, std::span<const float> expected);
double cosine(std::span<const float> value, std::span<const float> expected);

} // namespace innerkv::bench
