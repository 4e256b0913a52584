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

Batch batch_from(Sequences sequences, const Spans& spans) {
    Batch batch{std::move(sequences), {}};
    if (spans) {
        batch.spans.emplace();
        for (const auto& [first, last] : *spans) batch.spans->push_back({first, last});
    }
    return batch;
}

void append(SharedCache& cache, int layer, Sequences sequences, const AnyInput& k,
            const AnyInput& v, const std::optional<AnyInput>& q, const Spans& spans) {
    const Batch batch = batch_from(std::move(sequences), spans);
    const Tensor keys = tensor_from("k", k);
    const Tensor values = tensor_from("v", v);
    const Tensor queries = q ? tensor_from("q", *q) : Tensor{};
    const nb::gil_scoped_release released;
    cache.append(layer, batch, keys, values, q ? &queries : nullptr);
}

void attend(const SharedCache& cache, int layer, Sequences sequences, const AnyInput& q,
            const AnyOutput& out, const std::optional<AnyOutput>& log_sum_exp, const Spans& spans,
            const Positions& first_positions, float scale, float soft_cap,
            std::optional<int> sliding_window, bool exact, const std::string& isa) {
    const Batch batch = batch_from(std::move(sequences), spans);
    Question question;
    question.q = tensor_from("q", q);
    question.out = tensor_from("out", out);
    if (log_sum_exp) {
        check_main_memory("log_sum_exp", *log_sum_exp);
        question.log_sum_exp = log_sum_exp_from(*log_sum_exp, question.q, question.q.tokens());
    }
    question.first_positions = first_positions;
    question.scale = scale;
    question.soft_cap = soft_cap;
    question.sliding_window = sliding_window;
    question.exact = exact;
    question.isa = isa;
    const nb::gil_scoped_release released;
    cache.attend(layer, batch, question);
}

void step(SharedCache& cache, int layer, Sequences sequences, const AnyInput& k, const AnyInput& v,
          const AnyInput& q, const AnyOutput& out, const Spans& spans, float scale, float soft_cap,
          int sliding_window) {
    const Batch batch = batch_from(std::move(sequences), spans);
    const Tensor keys = heads_first(tensor_from("k", k));
    const Tensor values = heads_first(tensor_from("v", v));
    Question question;
    question.q = heads_first(tensor_from("q", q));
    question.out = tensor_from("out", out); // as models go on with it
    question.scale = scale;
    question.soft_cap = soft_cap;
    question.sliding_window = sliding_window;
    const nb::gil_scoped_release released;
    cache.step(layer, batch, keys, values, question);
}

nb::bytes pages(const SharedCache& cache, std::int32_t sequence, int layer) {
    return without_lock([&] {
        return cache.with_view(layer, sequence, [&](const SequenceView& view) {
            return quantized_pages(cache.config(), layer, view);
        });
    });
}

CacheConfig config_with(const std::string& preset, bool paper, int layers, int kv_heads,
                        int head_dim, std::int64_t max_tokens, int max_sequences, int max_append,
                        std::vector<int> sliding_window, bool exact_prefill,
                        const std::vector<std::pair<int, int>>& layer_bits) {
    CacheConfig config = config_from(preset, paper, layers, kv_heads, head_dim);
    config.max_tokens = max_tokens;
    config.max_sequences = max_sequences;
    config.max_append = max_append;
    config.sliding_window = std::move(sliding_window);
    config.exact_prefill = exact_prefill;
    for (const auto& [k, v] : layer_bits) config.layer_codecs.push_back(codecs_of_bits(k, v));
    return config;
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

void bind_cache(nb::module_& module) {
    nb::class_<CacheConfig>(module, "CacheConfig")
        .def_static("from_preset", config_with, "preset"_a, "paper"_a, "layers"_a, "kv_heads"_a,
                    "head_dim"_a, "max_tokens"_a, "max_sequences"_a, "max_append"_a,
                    "sliding_window"_a, "exact_prefill"_a, "layer_bits"_a)
        .def(
            "page_bytes",
            [](const CacheConfig& config, int layer) {
                return config.layer_format(layer).page_bytes();
            },
            "layer"_a)
        .def("plan", plan_of);
    nb::class_<SharedCache>(module, "SharedCache")
        .def(nb::init<CacheConfig>(), "config"_a, Released())
        .def("create", &SharedCache::create, Released())
        .def("fork", &SharedCache::fork, "sequence"_a, Released())
        .def("remove", &SharedCache::remove, "sequence"_a, Released())
        .def("truncate", &SharedCache::truncate, "sequences"_a, "lengths"_a, Released())
        .def("settle", &SharedCache::settle, "sequence"_a, Released())
        .def("reserve", &SharedCache::reserve, "sequence"_a, "tokens"_a, Released())
        .def("length", &SharedCache::length, "sequence"_a, "layer"_a, Released())
        .def("usage", [](const SharedCache& cache) { return usage_dict(cache); })
        .def("pages", pages, "sequence"_a, "layer"_a)
        .def("append", append, "layer"_a, "sequences"_a, "k"_a, "v"_a, "q"_a.none(),
             "spans"_a.none())
        .def("attend", attend, "layer"_a, "sequences"_a, "q"_a, "out"_a, "log_sum_exp"_a.none(),
             "spans"_a.none(), "first_positions"_a.none(), "scale"_a, "soft_cap"_a,
             "sliding_window"_a.none(), "exact"_a, "isa"_a)
        .def("step", step, "layer"_a, "sequences"_a, "k"_a, "v"_a, "q"_a, "out"_a, "spans"_a.none(),
             "scale"_a, "soft_cap"_a, "sliding_window"_a);
}

} // namespace innerkv::python
