// SPDX-License-Identifier: Apache-2.0
// Arrays of a caller as the library takes them: rows of [sequences, tokens, heads, head_dim]. Knows nothing
// of Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "innerkv/cache.h"

namespace innerkv::python {

/// [sequences, tokens, heads, head_dim], last dimension contiguous; strides in elements, not negative.
struct Tensor {
    std::byte* data = nullptr;
    RowType type = RowType::f32;
    std::int64_t shape[4] = {};
    std::ptrdiff_t strides[4] = {};

    std::int64_t sequences() const { return shape[0]; }
    std::int64_t tokens() const { return shape[1]; }
    int heads() const { return static_cast<int>(shape[2]); }
    int head_dim() const { return static_cast<int>(shape[3]); }
    std::byte* row(std::int64_t sequence, std::int64_t token) const;
    /// Rows of one sequence from `first_token` on.
    Rows rows(std::int64_t sequence, std::int64_t first_token) const;
};

/// "[1, 2, 3, 4]", for messages.
std::string shape_of(const Tensor& tensor);

/// Throws InvalidArgument unless `tensor` is what `name` has to be: this many sequences and this head
/// dimension, 1 to 2^24 tokens and heads at most.
void check_tensor(const char* name, const Tensor& tensor, std::size_t sequences, int head_dim);

/// Rows of tokens first .. first + tokens - 1 of a sequence as fp32 [tokens, heads, head_dim].
void widen(const Tensor& from, std::int64_t sequence, std::int64_t first, std::int64_t tokens,
           float* to);
/// The way back, rounded to nearest even.
void narrow(const float* from, const Tensor& to, std::int64_t sequence, std::int64_t first,
            std::int64_t tokens);
void fill_zeros(const Tensor& to, std::int64_t sequence, std::int64_t first, std::int64_t tokens);

} // namespace innerkv::python
