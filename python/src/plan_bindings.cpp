// SPDX-License-Identifier: Apache-2.0
// Presets, and bytes of a cache before it exists.
#include <string>

#include <nanobind/stl/string.h>

#include "bindings.h"
#include "innerkv/plan.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace innerkv::python {
namespace {

std::string norm_name(KeyNormPolicy policy) {
    switch (policy) {
    case KeyNormPolicy::none:
        return "none";
    case KeyNormPolicy::prefill:
        return "prefill";
    case KeyNormPolicy::balanced:
        return "balanced";
    case KeyNormPolicy::calibrated:
        return "static";
    }
    return {};
}

nb::dict describe(const Preset& preset) {
    nb::dict result;
    result["name"] = std::string(preset.name);
    result["k_codec"] = std::string(kind_name(preset.k.kind));
    result["k_bits"] = preset.k.bits;
    result["v_codec"] = std::string(kind_name(preset.v.kind));
    result["v_bits"] = preset.v.bits;
    result["bits_per_value"] = preset.format(128).bits_per_value();
    result["sink_tokens"] = preset.sink_tokens;
    result["recent_tokens"] = preset.recent_tokens;
    result["key_norm"] = norm_name(preset.key_norm);
    result["rotate"] = preset.rotate;
    result["summary"] = std::string(preset.summary);
    return result;
}

nb::list describe_presets() {
    nb::list result;
    for (const Preset& preset : presets()) result.append(describe(preset));
    return result;
}

std::size_t bytes_of_sequence(const CacheConfig& config, std::int64_t length) {
    return sequence_bytes(config, length);
}

std::size_t f16_bytes_of_sequence(const CacheConfig& config, std::int64_t length) {
    return f16_sequence_bytes(config, length);
}

} // namespace

CacheConfig config_from(const std::string& preset, bool paper, int layers, int kv_heads,
                        int head_dim) {
    const Preset& found = find_preset(preset);
    return CacheConfig::from_preset(paper ? paper_preset(found) : found, layers, kv_heads,
                                    head_dim);
}

void bind_plan(nb::module_& module) {
    module.def("presets", describe_presets);
    module.def("sequence_bytes", bytes_of_sequence, "config"_a, "length"_a);
    module.def("f16_sequence_bytes", f16_bytes_of_sequence, "config"_a, "length"_a);
}

} // namespace innerkv::python
