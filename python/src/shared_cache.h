// SPDX-License-Identifier: Apache-2.0
// A cache and attention on it behind one lock, on the pool's threads: what Python's Cache calls, without the
// interpreter's lock. Knows nothing of Python.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "innerkv/attention.h"
#include "innerkv/cache.h"
#include "tensor.h"

namespace innerkv::python {

/// Tokens first .. last - 1 of a sequence's rows count; the others are padding.
struct Span {
    std::int64_t first = 0;
    std::int64_t last = 0;
};

/// Sequences of a call, row i of each tensor being sequences[i].
struct Batch {
    std::vector<std::int32_t> sequences;
    std::optional<std::vector<Span>> spans; ///< one a sequence; none: all tokens count
};

struct Question {
    Tensor q;
    Tensor out;                   ///< the shape of q
    float* log_sum_exp = nullptr; ///< [sequences, tokens, q_heads], contiguous; optional
    /// Of each sequence's first query that counts; empty: the queries are the newest tokens.
    std::optional<std::vector<std::int64_t>> first_positions;
    float scale = 0.0f;
    float soft_cap = 0.0f;
    std::optional<int> sliding_window; ///< none: the layer's
    bool exact = false;
    std::string isa;
};

class SharedCache {
public:
    explicit SharedCache(CacheConfig config) : cache_(std::move(config)) {}

    const CacheConfig& config() const { return cache_.config(); }

    std::int32_t create();
    std::int32_t fork(std::int32_t sequence);
    void remove(std::int32_t sequence);
    /// All or none; each sequence once.
    void truncate(const std::vector<std::int32_t>& sequences,
                  const std::vector<std::int64_t>& lengths);
    void settle(std::int32_t sequence);
    void reserve(std::int32_t sequence, int tokens);
    std::int64_t length(std::int32_t sequence, int layer) const;
    CacheUsage usage() const;
    /// work(view of a sequence), with the cache as it is meanwhile.
    template <class Work>
    auto with_view(int layer, std::int32_t sequence, Work work) const {
        const std::lock_guard lock(mutex_);
        return work(cache_.view(layer, SequenceId{sequence}));
    }

    /// `q` may be null.
    void append(int layer, const Batch& batch, const Tensor& k, const Tensor& v, const Tensor* q);
    void attend(int layer, const Batch& batch, const Question& question) const;
    /// Both, with the question's queries for the key norm. Where attention refuses, the append stands.
    void step(int layer, const Batch& batch, const Tensor& k, const Tensor& v,
              const Question& question);

private:
    void append_locked(int layer, const Batch& batch, const Tensor& k, const Tensor& v,
                       const Tensor* q);
    void attend_locked(int layer, const Batch& batch, const Question& question) const;
    std::int64_t first_position(int layer, const Batch& batch, const Question& question,
                                std::size_t i, std::int64_t tokens) const;

    mutable std::mutex mutex_; ///< Cache's calls must not overlap
    Cache cache_;
};

} // namespace innerkv::python
