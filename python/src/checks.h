// SPDX-License-Identifier: Apache-2.0
// What appends to a cache and attention on it ask of their arrays, wherever the cache is. All throw InvalidArgument.
#pragma once

#include <cstddef>

#include "innerkv/cache.h"
#include "tensor.h"

namespace innerkv::python {

void check_layer(int layer, const CacheConfig& config);

/// Rows of `sequences` sequences with the same tokens; `q` may be null.
void check_rows(const Tensor& k, const Tensor& v, const Tensor* q, std::size_t sequences,
                const CacheConfig& config);

/// Of truncate().
void check_lengths(std::size_t sequences, std::size_t lengths);

/// Queries, and a place for outputs of the same shape.
void check_queries(const Tensor& q, const Tensor& out, std::size_t sequences,
                   const CacheConfig& config);

} // namespace innerkv::python
