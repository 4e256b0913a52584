// SPDX-License-Identifier: Apache-2.0
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "innerkv/error.h"
#include "shared_cache.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace innerkv::python {
namespace {

using Released = nb::call_guard<nb::gil_scoped_release>;
using Sequences = std::vector<std::int32_t>;
using Spans = std::optional<std::vector<std::pair<std::int64_t, std::int64_t>>>;
using Positions = std::optional<std::vector<std::int64_t>>;

RowType type_of(const char* name, nb::dlpack::dtype type) {
    using Code = nb::dlpack::dtype_code;
    const auto code = static_cast<Code>(type.code);
    if (type.lanes == 1) {
        if (code == Code::Float && type.bits == 32) return RowType::f32;
        if (code == Code::Float && type.bits == 16) return RowType::f16;
        if (code == Code::Bfloat && type.bits == 16) return RowType::bf16;
    }
    throw InvalidArgument(std::string(name) + " has elements of another type (" +
                          std::to_string(type.bits) +
                          " bits); supported are float32, float16 and bfloat16");
}

template <class Array>
Tensor convert(const char* name, const Array& array) {
    if (array.ndim() != 4)
        throw InvalidArgument(std::string(name) + " has " + std::to_string(array.ndim()) +
                              " dimensions; it must have four: [sequences, tokens, heads, "
                              "head_dim]");
    Tensor tensor;
    // Inputs are only read: Tensor serves both directions.
    tensor.data =
        static_cast<std::byte*>(const_cast<void*>(static_cast<const void*>(array.data())));
    tensor.type = type_of(name, array.dtype());
    for (std::size_t i = 0; i < 4; ++i) {
        tensor.shape[i] = static_cast<std::int64_t>(array.shape(i));
        tensor.strides[i] = static_cast<std::ptrdiff_t>(array.stride(i));
        if (tensor.strides[i] < 0)
            throw InvalidArgument(std::string(name) + " runs backwards; make it contiguous");
    }
    if (tensor.strides[3] != 1 && tensor.shape[3] > 1)
        throw InvalidArgument(std::string(name) +
                              ": channels of a head do not lie side by side (the last dimension's "
                              "stride is " +
                              std::to_string(tensor.strides[3]) + "); make it contiguous");
    return tensor;
}

/// [sequences, heads, tokens, head_dim], as transformers has it, with its middle dimensions exchanged.
Tensor heads_first(const char* name, const Input& array) {
    Tensor tensor = tensor_from(name, array);
    std::swap(tensor.shape[1], tensor.shape[2]);
    std::swap(tensor.strides[1], tensor.strides[2]);
    return tensor;
}

Batch batch_from(Sequences sequences, const Spans& spans) {
    Batch batch{std::move(sequences), {}};
    if (spans) {
        batch.spans.emplace();
        for (const auto& [first, last] : *spans) batch.spans->push_back({first, last});
    }
    return batch;
}

float* log_sum_exp_from(const std::optional<Output>& array, const Tensor& q) {
    if (!array) return nullptr;
    const bool fits = array->ndim() == 3 && array->dtype() == nb::dtype<float>() &&
                      array->shape(0) == static_cast<std::size_t>(q.sequences()) &&
                      array->shape(1) == static_cast<std::size_t>(q.tokens()) &&
                      array->shape(2) == static_cast<std::size_t>(q.heads()) &&
                      array->stride(2) == 1 && array->stride(1) == q.heads();
    if (!fits)
        throw InvalidArgument(
            "log_sum_exp must be a contiguous float32 array of [sequences, tokens, q_heads]");
    return static_cast<float*>(array->data());
}

void append(SharedCache& cache, int layer, Sequences sequences, const Input& k, const Input& v,
            const std::optional<Input>& q, const Spans& spans) {
    const Batch batch = batch_from(std::move(sequences), spans);
    const Tensor keys = tensor_from("k", k);
    const Tensor values = tensor_from("v", v);
    const Tensor queries = q ? tensor_from("q", *q) : Tensor{};
    const nb::gil_scoped_release released;
    cache.append(layer, batch, keys, values, q ? &queries : nullptr);
}

void attend(const SharedCache& cache, int layer, Sequences sequences, const Input& q,
            const Output& out, const std::optional<Output>& log_sum_exp, const Spans& spans,
            const Positions& first_positions, float scale, float soft_cap,
            std::optional<int> sliding_window, bool exact, const std::string& isa) {
    const Batch batch = batch_from(std::move(sequences), spans);
    Question question;
    question.q = tensor_from("q", q);
    question.out = tensor_from("out", out);
    question.log_sum_exp = log_sum_exp_from(log_sum_exp, question.q);
    question.first_positions = first_positions;
    question.scale = scale;
    question.soft_cap = soft_cap;
    question.sliding_window = sliding_window;
    question.exact = exact;
    question.isa = isa;
    const nb::gil_scoped_release released;
    cache.attend(layer, batch, question);
}

void step(SharedCache& cache, int layer, Sequences sequences, const Input& k, const Input& v,
          const Input& q, const Output& out, const Spans& spans, float scale, float soft_cap,
          int sliding_window) {
    const Batch batch = batch_from(std::move(sequences), spans);
    const Tensor keys = heads_first("k", k);
    const Tensor values = heads_first("v", v);
    Question question;
    question.q = heads_first("q", q);
    question.out = tensor_from("out", out); // as models go on with it
    question.scale = scale;
    question.soft_cap = soft_cap;
    question.sliding_window = sliding_window;
    const nb::gil_scoped_release released;
    cache.step(layer, batch, keys, values, question);
}

CacheConfig config_with(const std::string& preset, bool paper, int layers, int kv_heads,
                        int head_dim, std::int64_t max_tokens, int max_sequences, int max_append,
                        std::vector<int> sliding_window, bool exact_prefill) {
    CacheConfig config = config_from(preset, paper, layers, kv_heads, head_dim);
    config.max_tokens = max_tokens;
    config.max_sequences = max_sequences;
    config.max_append = max_append;
    config.sliding_window = std::move(sliding_window);
    config.exact_prefill = exact_prefill;
    return config;
}

nb::dict usage(const SharedCache& cache) {
    CacheUsage used;
    {
        const nb::gil_scoped_release released;
        used = cache.usage();
    }
    nb::dict result;
    result["quantized_pages"] = used.quantized_pages;
    result["f16_pages"] = used.f16_pages;
    result["bytes_in_use"] = used.bytes_in_use;
    result["bytes_reserved"] = used.bytes_reserved;
    return result;
}

nb::dict plan_of(const CacheConfig& config) {
    const CachePlan plan = plan_cache(config);
    nb::dict result;
    result["quantized_bytes"] = plan.quantized_bytes;
    result["f16_bytes"] = plan.f16_bytes;
    result["centre_bytes"] = plan.centre_bytes;
    result["other_bytes"] = plan.other_bytes;
    return result;
}

} // namespace

Tensor tensor_from(const char* name, const Input& array) { return convert(name, array); }
Tensor tensor_from(const char* name, const Output& array) { return convert(name, array); }

void bind_cache(nb::module_& module) {
    nb::class_<CacheConfig>(module, "CacheConfig")
        .def_static("from_preset", config_with, "preset"_a, "paper"_a, "layers"_a, "kv_heads"_a,
                    "head_dim"_a, "max_tokens"_a, "max_sequences"_a, "max_append"_a,
                    "sliding_window"_a, "exact_prefill"_a)
        .def("plan", plan_of);
    nb::class_<SharedCache>(module, "SharedCache")
        .def(nb::init<CacheConfig>(), "config"_a, Released())
        .def("create", &SharedCache::create, Released())
        .def("fork", &SharedCache::fork, "sequence"_a, Released())
        .def("remove", &SharedCache::remove, "sequence"_a, Released())
        .def("truncate", &SharedCache::truncate, "sequence"_a, "length"_a, Released())
        .def("settle", &SharedCache::settle, "sequence"_a, Released())
        .def("reserve", &SharedCache::reserve, "sequence"_a, "tokens"_a, Released())
        .def("length", &SharedCache::length, "sequence"_a, "layer"_a, Released())
        .def("usage", usage)
        .def("append", append, "layer"_a, "sequences"_a, "k"_a, "v"_a, "q"_a.none(),
             "spans"_a.none())
        .def("attend", attend, "layer"_a, "sequences"_a, "q"_a, "out"_a, "log_sum_exp"_a.none(),
             "spans"_a.none(), "first_positions"_a.none(), "scale"_a, "soft_cap"_a,
             "sliding_window"_a.none(), "exact"_a, "isa"_a)
        .def("step", step, "layer"_a, "sequences"_a, "k"_a, "v"_a, "q"_a, "out"_a, "spans"_a.none(),
             "scale"_a, "soft_cap"_a, "sliding_window"_a);
}

} // namespace innerkv::python
