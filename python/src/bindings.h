// SPDX-License-Identifier: Apache-2.0
// The module innerkv._core, one function a file of bindings. Arguments are converted here and nothing else
// is done: checks are the library's and shared_cache's, defaults and documentation innerkv/*.py's.
#pragma once

#include <string>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "innerkv/cache.h"
#include "innerkv/view.h"
#include "tensor.h"

namespace innerkv::python {

/// Wherever they are.
using AnyInput = nanobind::ndarray<nanobind::ro>;
using AnyOutput = nanobind::ndarray<>;

/// Throw InvalidArgument where `array` is not four-dimensional, of another type than fp32, fp16 or bf16, or
/// its last dimension is not contiguous.
Tensor convert(const char* name, const AnyInput& array);
Tensor convert(const char* name, const AnyOutput& array);
/// And where it is not in main memory.
Tensor tensor_from(const char* name, const AnyInput& array);
Tensor tensor_from(const char* name, const AnyOutput& array);

/// Of DLPack's device type and number, for messages.
std::string place_name(int type, int id);

/// Throws InvalidArgument.
void check_main_memory(const char* name, const AnyOutput& array);

/// [sequences, heads, tokens, head_dim], as transformers has it, as [sequences, tokens, heads, head_dim].
Tensor heads_first(Tensor tensor);

/// Where log-sum-exps of `q` go, of `tokens` tokens a sequence. InvalidArgument unless `array` is contiguous fp32,
/// [sequences, tokens, q_heads].
float* log_sum_exp_from(const AnyOutput& array, const Tensor& q, std::int64_t tokens);

/// [pages, kv_heads, page bytes]
std::string quantized_pages(const CacheConfig& config, int layer, const SequenceView& view);

/// The bytes that work() makes, which waits for others and runs without the interpreter's lock.
template <class Work>
nanobind::bytes without_lock(Work work) {
    std::string bytes;
    {
        const nanobind::gil_scoped_release released;
        bytes = work();
    }
    return nanobind::bytes(bytes.data(), bytes.size());
}

template <class AnyCache>
nanobind::dict usage_dict(const AnyCache& cache) {
    CacheUsage used;
    {
        const nanobind::gil_scoped_release released;
        used = cache.usage();
    }
    nanobind::dict result;
    result["quantized_pages"] = used.quantized_pages;
    result["f16_pages"] = used.f16_pages;
    result["bytes_in_use"] = used.bytes_in_use;
    result["bytes_reserved"] = used.bytes_reserved;
    return result;
}

void bind_cache(nanobind::module_& module);
void bind_device(nanobind::module_& module);
void bind_codecs(nanobind::module_& module);
void bind_plan(nanobind::module_& module);

/// By preset, with the InnerQ paper's codecs and transform where `paper` says so.
CacheConfig config_from(const std::string& preset, bool paper, int layers, int kv_heads,
                        int head_dim);

} // namespace innerkv::python
