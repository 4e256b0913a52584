// SPDX-License-Identifier: Apache-2.0
// The cache on a CUDA device. There without CUDA in the build too: making one then says so.
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "checks.h"
#include "device_cache.h"
#include "innerkv/error.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace innerkv::python {
namespace {

using Released = nb::call_guard<nb::gil_scoped_release>;

cuda::Stream stream_from(std::uintptr_t stream) { return reinterpret_cast<cuda::Stream>(stream); }

template <class Array>
void check_place(const char* name, const Array& array, int device) {
    if (array.device_type() == nb::device::cuda::value && array.device_id() == device) return;
    throw InvalidArgument(
        std::string(name) + " is on " + place_name(array.device_type(), array.device_id()) +
        "; this cache is on cuda:" + std::to_string(device) + ", so move it there");
}

template <class Array>
Tensor tensor_on(const char* name, const Array& array, int device) {
    check_place(name, array, device);
    return convert(name, array);
}

const std::int32_t* counts_from(const std::optional<AnyInput>& counts, int slots, int device) {
    if (!counts) return nullptr;
    check_place("counts", *counts, device);
    if (counts->ndim() != 1 || counts->shape(0) != static_cast<std::size_t>(slots) ||
        counts->dtype() != nb::dtype<std::int32_t>() || (slots > 1 && counts->stride(0) != 1))
        throw InvalidArgument("counts must be a contiguous int32 array of one element a sequence");
    return static_cast<const std::int32_t*>(counts->data());
}

void take(SharedDeviceCache& cache, int layer, int first_slot, int count, std::int64_t tokens,
          std::uintptr_t stream) {
    cache.take(layer, {first_slot, count}, tokens, stream_from(stream));
}

void append(SharedDeviceCache& cache, int layer, int first_slot, const AnyInput& k,
            const AnyInput& v, const std::optional<AnyInput>& q,
            const std::optional<AnyInput>& counts, std::uintptr_t stream) {
    DeviceTokens tokens;
    tokens.k = tensor_on("k", k, cache.device());
    tokens.v = tensor_on("v", v, cache.device());
    const Tensor queries = q ? tensor_on("q", *q, cache.device()) : Tensor{};
    if (q) tokens.q = &queries;
    const SlotRange slots{first_slot, static_cast<int>(tokens.k.sequences())};
    tokens.tokens = counts_from(counts, slots.count, cache.device());
    const nb::gil_scoped_release released;
    cache.append(layer, slots, tokens, stream_from(stream));
}

void attend(SharedDeviceCache& cache, int layer, int first_slot, const AnyInput& q,
            const AnyOutput& out, const std::optional<AnyOutput>& log_sum_exp, float scale,
            float soft_cap, int sliding_window, std::uintptr_t stream) {
    DeviceQuestion question;
    question.q = tensor_on("q", q, cache.device());
    question.out = tensor_on("out", out, cache.device());
    if (log_sum_exp) {
        check_place("log_sum_exp", *log_sum_exp, cache.device());
        question.log_sum_exp =
            log_sum_exp_from(*log_sum_exp, question.q, cache.query_limit(question.q.tokens()));
    }
    question.scale = scale;
    question.soft_cap = soft_cap;
    question.sliding_window = sliding_window;
    const SlotRange slots{first_slot, static_cast<int>(question.q.sequences())};
    const nb::gil_scoped_release released;
    cache.attend(layer, slots, question, stream_from(stream));
}

void step(SharedDeviceCache& cache, int layer, const AnyInput& k, const AnyInput& v,
          const AnyInput& q, const AnyOutput& out, const std::optional<AnyInput>& counts,
          float scale, float soft_cap, int sliding_window, std::uintptr_t stream) {
    DeviceTokens tokens;
    tokens.k = heads_first(tensor_on("k", k, cache.device()));
    tokens.v = heads_first(tensor_on("v", v, cache.device()));
    DeviceQuestion question;
    question.q = heads_first(tensor_on("q", q, cache.device()));
    question.out = tensor_on("out", out, cache.device()); // as models go on with it
    question.scale = scale;
    question.soft_cap = soft_cap;
    question.sliding_window = sliding_window;
    tokens.q = &question.q;
    const SlotRange slots{0, static_cast<int>(tokens.k.sequences())};
    tokens.tokens = counts_from(counts, slots.count, cache.device());
    const nb::gil_scoped_release released;
    cache.step(layer, slots, tokens, question, stream_from(stream));
}

nb::bytes pages(const SharedDeviceCache& cache, int slot, int layer) {
    check_layer(layer, cache.config());
    return without_lock(
        [&] { return quantized_pages(cache.config(), layer, cache.fetch(slot).view(layer)); });
}

} // namespace

void bind_device(nb::module_& module) {
    module.def("cuda_unavailable_reason", cuda::unavailable_reason, Released());
    nb::class_<SharedDeviceCache>(module, "SharedDeviceCache")
        .def(nb::init<const CacheConfig&, int>(), "config"_a, "device"_a, Released())
        .def_static("plan", cuda::DeviceCache::plan, "config"_a)
        .def("create", &SharedDeviceCache::create, Released())
        .def("fork", &SharedDeviceCache::fork, "sequence"_a, Released())
        .def("reorder", &SharedDeviceCache::reorder, "sources"_a, Released())
        .def("remove", &SharedDeviceCache::remove, "sequence"_a, Released())
        .def("truncate", &SharedDeviceCache::truncate, "sequences"_a, "lengths"_a, Released())
        .def("reserve", &SharedDeviceCache::reserve, "sequence"_a, "length"_a, Released())
        .def("length", &SharedDeviceCache::length, "sequence"_a, "layer"_a, Released())
        .def("verify", &SharedDeviceCache::verify, Released())
        .def("bytes", &SharedDeviceCache::bytes, Released())
        .def("query_limit", &SharedDeviceCache::query_limit, "tokens"_a)
        .def("prepare", &SharedDeviceCache::prepare, "q_heads"_a, "scale"_a, "soft_cap"_a,
             "sliding_window"_a, Released())
        .def("usage", [](const SharedDeviceCache& cache) { return usage_dict(cache); })
        .def("pages", pages, "sequence"_a, "layer"_a)
        .def("take", take, "layer"_a, "first_slot"_a, "count"_a, "tokens"_a, "stream"_a, Released())
        .def("append", append, "layer"_a, "first_slot"_a, "k"_a, "v"_a, "q"_a.none(),
             "counts"_a.none(), "stream"_a)
        .def("attend", attend, "layer"_a, "first_slot"_a, "q"_a, "out"_a, "log_sum_exp"_a.none(),
             "scale"_a, "soft_cap"_a, "sliding_window"_a, "stream"_a)
        .def("step", step, "layer"_a, "k"_a, "v"_a, "q"_a, "out"_a, "counts"_a.none(), "scale"_a,
             "soft_cap"_a, "sliding_window"_a, "stream"_a);
}

} // namespace innerkv::python
