// SPDX-License-Identifier: Apache-2.0
// One step of one layer: the data every contender gets, and the right answer.
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
    /// Query tokens of each sequence, the last ones of its context: 1 in decoding, more in a prompt's chunk.
    int tokens = 1;
    /// Sequence i has (i + 1) / batch of the context.
    bool ragged = false;
    /// Sequences are forks: all have the first one's tokens but for the last token.
    bool shared = false;
    std::uint64_t seed = 1;

    std::int64_t context_of(int sequence) const {
        return ragged ? (context * (sequence + 1) + batch - 1) / batch : context;
    }
    std::int64_t first_position(int sequence) const { return context_of(sequence) - tokens; }
    std::int64_t total_context() const {
        std::int64_t total = 0;
        for (int sequence = 0; sequence < batch; ++sequence) total += context_of(sequence);
        return total;
    }
    /// Elements of one token's queries or outputs, [q_heads, head_dim].
    std::size_t token_elements() const {
        return static_cast<std::size_t>(q_heads) * static_cast<std::size_t>(head_dim);
    }
    /// Of all tokens of a sequence, [tokens, q_heads, head_dim].
    std::size_t query_elements() const {
        return token_elements() * static_cast<std::size_t>(tokens);
    }
    /// Bytes of the whole batch's queries and outputs, fp32.
    std::size_t query_bytes() const {
        return 2 * query_elements() * static_cast<std::size_t>(batch) * sizeof(float);
    }
    /// Query rows that a KV head's pages serve at once in one sequence.
    int rows() const { return tokens * (q_heads / kv_heads); }
    /// Elements of one token's keys or values, [kv_heads, head_dim].
    std::size_t row_elements() const {
        return static_cast<std::size_t>(kv_heads) * static_cast<std::size_t>(head_dim);
    }
    /// int8 multiply-accumulates of the whole batch: q . K and p . V.
    double multiply_accumulates() const {
        const double seen = static_cast<double>(total_context()) - 0.5 * (tokens - 1) * batch;
        return 2.0 * static_cast<double>(query_elements()) * seen;
    }
};

/// Random keys and values of mean 0 and variance 1, rounded to fp16 so that f16 caches hold exactly
/// them. Writes tokens first .. first + tokens - 1 of a sequence, [tokens, kv_heads, head_dim]; the same
/// token is the same however it is cut.
void make_rows(const AttentionCase& attention, int sequence, std::int64_t first,
               std::int64_t tokens, float* k, float* v);

/// Queries of one sequence, [tokens, q_heads, head_dim].
std::vector<float> make_queries(const AttentionCase& attention, int sequence);

/// The query tokens by which a sequence's output is judged: the first and the last.
std::vector<int> judged_tokens(const AttentionCase& attention);

/// What a sequence's output is judged by: attention of its judged tokens in double precision.
struct ExactOutput {
    int sequence = 0;
    std::vector<float> rows; ///< as exact_attention has them
};
/// Of the first sequence and the last, the longest of a ragged batch.
std::vector<ExactOutput> exact_outputs(const AttentionCase& attention);

/// Attention of the judged tokens of one sequence in double precision, [judged, q_heads, head_dim], logits
/// scaled by 1 / sqrt(head_dim).
std::vector<float> exact_attention(const AttentionCase& attention, int sequence);

/// The judged tokens of a sequence's output, of the batch's [batch, tokens, q_heads, head_dim].
std::vector<float> judged_output(const AttentionCase& attention, std::span<const float> output,
                                 int sequence);

/// |value - expected| / |expected|, Euclidean norms.
double relative_error(std::span<const float> value, std::span<const float> expected);
double cosine(std::span<const float> value, std::span<const float> expected);

} // namespace innerkv::bench
