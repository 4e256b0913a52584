// SPDX-License-Identifier: Apache-2.0
#include "attention_case.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "innerkv/codec.h"

namespace innerkv::bench {
namespace {

/// splitmix64 (Steele, Lea, Flood): good enough, and any token can be made without those before it.
class Random {
public:
    explicit Random(std::uint64_t seed) : state_(seed) {}

    std::uint64_t next() {
        std::uint64_t mixed = state_ += 0x9e3779b97f4a7c15u;
        mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9u;
        mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebu;
        return mixed ^ (mixed >> 31);
    }

    /// The sum of four uniform numbers: bell-shaped, variance 1, within +-3.5.
    float bell() {
        const std::uint64_t bits = next();
        const std::uint64_t sum =
            (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
        constexpr float kScale = 1.7320508f / 65536.0f;
        const float value = (static_cast<float>(sum) - 2.0f * 65535.0f) * kScale;
        return float_from_f16(f16_from_float(value));
    }

private:
    std::uint64_t state_;
};

/// A generator for one token; position -1 is the query.
Random random_of(const AttentionCase& attention, int sequence, std::int64_t position) {
    Random seeds(attention.seed + (static_cast<std::uint64_t>(sequence) << 40) +
                 static_cast<std::uint64_t>(position + 1));
    return Random(seeds.next());
}

/// Softmax-weighted sum of values seen so far; `top` is the largest logit, whose weight is 1.
struct HeadState {
    double top = -std::numeric_limits<double>::infinity();
    double weight = 0;
    std::vector<double> out;

    void add(double logit, const float* value) {
        const double rescale = logit > top ? std::exp(top - logit) : 1.0;
        top = std::max(top, logit);
        const double probability = std::exp(logit - top);
        weight = weight * rescale + probability;
        for (std::size_t channel = 0; channel < out.size(); ++channel)
            out[channel] =
                out[channel] * rescale + probability * static_cast<double>(value[channel]);
    }
};

double dot(const float* left, const float* right, std::size_t count) {
    double sum = 0;
    for (std::size_t i = 0; i < count; ++i)
        sum += static_cast<double>(left[i]) * static_cast<double>(right[i]);
    return sum;
}

/// The judged ones of a sequence's tokens, each [q_heads, head_dim].
std::vector<float> pick_judged(const AttentionCase& attention, const float* tokens) {
    const std::size_t size = attention.token_elements();
    std::vector<float> picked;
    for (const int token : judged_tokens(attention)) {
        const float* at = tokens + static_cast<std::size_t>(token) * size;
        picked.insert(picked.end(), at, at + size);
    }
    return picked;
}

} // namespace

void make_rows(const AttentionCase& attention, int sequence, std::int64_t first,
               std::int64_t tokens, float* k, float* v) {
    const std::size_t elements = attention.row_elements();
    for (std::int64_t token = 0; token < tokens; ++token) {
        const bool forked = attention.shared && first + token < attention.context - 1;
        Random random = random_of(attention, forked ? 0 : sequence, first + token);
        const std::size_t start = static_cast<std::size_t>(token) * elements;
        for (std::size_t i = 0; i < elements; ++i) k[start + i] = random.bell();
        for (std::size_t i = 0; i < elements; ++i) v[start + i] = random.bell();
    }
}

std::vector<float> make_queries(const AttentionCase& attention, int sequence) {
    std::vector<float> queries(attention.query_elements());
    Random random = random_of(attention, sequence, -1);
    for (float& query : queries) query = random.bell();
    return queries;
}

std::vector<int> judged_tokens(const AttentionCase& attention) {
    if (attention.tokens == 1) return {0};
    return {0, attention.tokens - 1};
}

std::vector<float> exact_attention(const AttentionCase& attention, int sequence) {
    const auto dim = static_cast<std::size_t>(attention.head_dim);
    const auto heads = static_cast<std::size_t>(attention.q_heads);
    const std::size_t group = heads / static_cast<std::size_t>(attention.kv_heads);
    const double scale = 1.0 / std::sqrt(static_cast<double>(attention.head_dim));
    const std::vector<float> all = make_queries(attention, sequence);
    const std::vector<float> queries = pick_judged(attention, all.data());
    const std::vector<int> judged = judged_tokens(attention);
    std::vector<HeadState> states(heads * judged.size());
    for (HeadState& state : states) state.out.assign(dim, 0.0);
    std::vector<float> k(attention.row_elements());
    std::vector<float> v(attention.row_elements());
    for (std::int64_t token = 0; token < attention.context_of(sequence); ++token) {
        make_rows(attention, sequence, token, 1, k.data(), v.data());
        for (std::size_t i = 0; i < states.size(); ++i) {
            if (token > attention.first_position(sequence) + judged[i / heads]) continue;
            const std::size_t row = i % heads / group * dim;
            states[i].add(scale * dot(&queries[i * dim], &k[row], dim), &v[row]);
        }
    }
    std::vector<float> out;
    out.reserve(queries.size());
    for (const HeadState& state : states)
        for (const double sum : state.out) out.push_back(static_cast<float>(sum / state.weight));
    return out;
}

std::vector<ExactOutput> exact_outputs(const AttentionCase& attention) {
    std::vector<ExactOutput> outputs{{0, exact_attention(attention, 0)}};
    const int last = attention.batch - 1;
    if (last > 0) outputs.push_back({last, exact_attention(attention, last)});
    return outputs;
}

std::vector<float> judged_output(const AttentionCase& attention, std::span<const float> output,
                                 int sequence) {
    const std::size_t size = attention.query_elements();
    return pick_judged(attention,
                       output.subspan(static_cast<std::size_t>(sequence) * size, size).data());
}

double relative_error(std::span<const float> value, std::span<const float> expected) {
    double error = 0;
    double norm = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        const double difference = static_cast<double>(value[i]) - static_cast<double>(expected[i]);
        error += difference * difference;
        norm += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
    }
    return std::sqrt(error / norm);
}

double cosine(std::span<const float> value, std::span<const float> expected) {
    const std::size_t count = expected.size();
    const double product = dot(value.data(), expected.data(), count);
    return product / std::sqrt(dot(value.data(), value.data(), count) *
                               dot(expected.data(), expected.data(), count));
}

} // namespace innerkv::bench
