// SPDX-License-Identifier: Apache-2.0
// Helpers for tests that look at one rule.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "innerkv/cache.h"
#include "test_rows.h"

namespace innerkv::test {

/// One layer, two KV heads, room for 4 sequences and 2000 tokens; no transform.
CacheConfig small_config(std::string_view preset = "base", int head_dim = 64);

/// K, V and queries (of twice as many heads) of one sequence from which any tokens can be appended.
struct TestSequence {
    TestSequence(const CacheConfig& config, int count, std::uint64_t seed = 1);

    /// Appends tokens first .. first + count - 1 to every layer, or to one.
    void append(Cache& cache, SequenceId id, int first, int count) const;
    AppendRows rows(SequenceId id, int first, int count) const;
    /// In steps of `step` tokens.
    void append_all(Cache& cache, SequenceId id, int step) const;

    TestRows k;
    TestRows v;
    TestRows q;
    int tokens;
};

/// Everything that a view shows, copied: bytes of quantized pages, fp16 rows, transforms.
struct Contents {
    std::int64_t length = 0;
    std::int64_t first_token[3] = {0, 0, 0}; ///< sink, quantized, recent; 0 for an empty run
    std::vector<std::byte> quantized;
    std::vector<std::uint16_t> f16_rows;
    std::vector<float> transforms;

    friend bool operator==(const Contents&, const Contents&) = default;
};
Contents contents(const CacheConfig& config, const SequenceView& view);
Contents contents(const Cache& cache, SequenceId id, int layer = 0);

/// Pages of one entry of a run, a KV head's behind the other's.
std::vector<std::byte> heads_of(const PageRun& run, std::size_t page, int kv_heads,
                                std::size_t page_bytes);

/// One fp16 row of a view's sink or recent run.
const std::uint16_t* f16_row(const CacheConfig& config, const PageRun& run, bool key, int head,
                             std::int64_t token);

} // namespace innerkv::test
