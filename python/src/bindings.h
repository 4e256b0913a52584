// SPDX-License-Identifier: Apache-2.0
// The module innerkv._core, one function a file of bindings. Arguments are converted here and nothing else
// is done: checks are the library's and shared_cache's, defaults and documentation innerkv/*.py's.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "tensor.h"

namespace innerkv::python {

using Input = nanobind::ndarray<nanobind::ro, nanobind::device::cpu>;
using Output = nanobind::ndarray<nanobind::device::cpu>;

/// Throws InvalidArgument where `array` is not four-dimensional, of another type than fp32, fp16 or bf16, or
/// its last dimension is not contiguous.
Tensor tensor_from(const char* name, const Input& array);
Tensor tensor_from(const char* name, const Output& array);

void bind_cache(nanobind::module_& module);
void bind_codecs(nanobind::module_& module);
void bind_plan(nanobind::module_& module);

/// By preset, with the InnerQ paper's codecs and transform where `paper` says so.
CacheConfig config_from(const std::string& preset, bool paper, int layers, int kv_heads,
                        int head_dim);

} // namespace innerkv::python
