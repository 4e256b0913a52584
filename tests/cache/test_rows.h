// SPDX-License-Identifier: Apache-2.0
// Rows of K and V for tests: made from a seed, held as a caller might hold them, with the fp16 bits that
// the cache must store.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "innerkv/cache.h"

namespace innerkv::test {

/// xorshift64*: small, fast, the same everywhere.
class Random {
public:
    explicit Random(std::uint64_t seed) : state_(seed * 2654435769u + 88172645463325252u) {}

    std::uint64_t next();
    /// In [low, high].
    int between(int low, int high);
    bool one_in(int n) { return between(1, n) == 1; }
    /// In [-1, 1).
    float unit();

private:
    std::uint64_t state_;
};

/// What the values of a channel lie around.
struct Channel {
    float offset;
    float scale;
};

/// [tokens, heads, head_dim] of one side, K, V or queries; head_dim to 256, heads to 8.
class TestRows {
public:
    enum class Order : std::uint8_t { token_major, head_major };

    /// Channels have offsets and scales of their own, the same for every call with the same `side`.
    TestRows(Random& random, int tokens, int heads, int head_dim, int side,
             RowType type = RowType::f32, Order order = Order::token_major);

    Rows rows() const;
    int tokens() const { return tokens_; }
    int heads() const { return heads_; }
    /// As the caller holds it.
    float value(int token, int head, int channel) const;
    /// fp16 bits of one row, [head_dim].
    const std::uint16_t* expected(int token, int head) const {
        return expected_.data() + static_cast<std::ptrdiff_t>(token * heads_ + head) * head_dim_;
    }
    /// Replaces one value; f32 rows only.
    void poke(int token, int head, int channel, float value);
    /// Rows first .. first + tokens - 1 as rows of their own.
    Rows slice(int first) const;

private:
    std::size_t place(int token, int head) const;
    std::uint16_t* expected_row(int token, int head);
    void fill_row(Random& random, int token, int head, const Channel* channels);

    int tokens_;
    int heads_;
    int head_dim_;
    RowType type_;
    std::ptrdiff_t token_stride_;
    std::ptrdiff_t head_stride_;
    std::vector<float> f32_;
    std::vector<std::uint16_t> half_;
    std::vector<std::uint16_t> expected_;
};

/// One row of K or V of an fp16 page.
inline const std::uint16_t* f16_row(const std::byte* page, bool key, std::int64_t row,
                                    int head_dim) {
    const std::int64_t index = key ? row : kPageTokens + row;
    return reinterpret_cast<const std::uint16_t*>(page) + index * head_dim;
}

} // namespace innerkv::test
