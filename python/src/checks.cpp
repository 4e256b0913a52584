// SPDX-License-Identifier: Apache-2.0
#include "checks.h"

#include <algorithm>
#include <string>

#include "innerkv/error.h"

namespace innerkv::python {
namespace {

void check_heads(const char* name, const Tensor& tensor, const CacheConfig& config) {
    if (tensor.heads() == config.kv_heads) return;
    throw InvalidArgument(std::string(name) + " has " + std::to_string(tensor.heads()) +
                          " heads (shape " + shape_of(tensor) + "); this cache has " +
                          std::to_string(config.kv_heads) + " KV heads");
}

} // namespace

void check_layer(int layer, const CacheConfig& config) {
    if (layer >= 0 && layer < config.layers) return;
    throw InvalidArgument("layer " + std::to_string(layer) + "; this cache has layers 0 to " +
                          std::to_string(config.layers - 1));
}

void check_lengths(std::size_t sequences, std::size_t lengths) {
    if (lengths == sequences) return;
    throw InvalidArgument("truncate: " + std::to_string(lengths) + " lengths for " +
                          std::to_string(sequences) + " sequences; give one a sequence");
}

void check_rows(const Tensor& k, const Tensor& v, const Tensor* q, std::size_t sequences,
                const CacheConfig& config) {
    check_tensor("k", k, sequences, config.format.head_dim);
    check_tensor("v", v, sequences, config.format.head_dim);
    check_heads("k", k, config);
    check_heads("v", v, config);
    if (q) check_tensor("q", *q, sequences, config.format.head_dim);
    if (v.tokens() != k.tokens() || (q && q->tokens() != k.tokens()))
        throw InvalidArgument("k, v and q differ in tokens: " + shape_of(k) + ", " + shape_of(v) +
                              (q ? ", " + shape_of(*q) : ""));
}

void check_queries(const Tensor& q, const Tensor& out, std::size_t sequences,
                   const CacheConfig& config) {
    check_tensor("q", q, sequences, config.format.head_dim);
    if (!std::equal(q.shape, q.shape + 4, out.shape))
        throw InvalidArgument("out has the shape " + shape_of(out) + "; q has " + shape_of(q) +
                              ", and out must have the same");
}

} // namespace innerkv::python
