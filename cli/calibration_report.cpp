// SPDX-License-Identifier: Apache-2.0
#include "calibration_report.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include <fmt/format.h>

#include "precision.h"

namespace innerkv::cli {
namespace {

struct Summary {
    float least_norm = 0;
    float largest_norm = 0;
    float largest_ratio = 0; ///< of two norms of one head
    float largest_centre = 0;
};

Summary summarize(const runner::Calibration& calibration) {
    Summary summary;
    const auto dim = static_cast<std::size_t>(calibration.head_dim);
    const std::span<const float> norms = calibration.norm;
    const auto [least, largest] = std::ranges::minmax(norms);
    summary.least_norm = least;
    summary.largest_norm = largest;
    for (std::size_t first = 0; first < norms.size(); first += dim) {
        const auto [low, high] = std::ranges::minmax(norms.subspan(first, dim));
        summary.largest_ratio = std::max(summary.largest_ratio, high / low);
    }
    for (const float centre : calibration.centre)
        summary.largest_centre = std::max(summary.largest_centre, std::abs(centre));
    return summary;
}

} // namespace

Json to_json(const runner::Calibration& calibration) {
    Json json = {{"type", "calibration"},
                 {"model", calibration.model},
                 {"architecture", calibration.architecture},
                 {"model_hash", calibration.model_hash},
                 {"text_hash", calibration.text_hash},
                 {"tokens", calibration.tokens},
                 {"layers", calibration.layers},
                 {"kv_heads", calibration.kv_heads},
                 {"head_dim", calibration.head_dim}};
    if (calibration.has_transforms()) {
        const Summary summary = summarize(calibration);
        json.update({{"norm_min", summary.least_norm},
                     {"norm_max", summary.largest_norm},
                     {"norm_ratio_max", summary.largest_ratio},
                     {"centre_max", summary.largest_centre}});
    }
    if (!calibration.layer_codecs.empty()) {
        Json layers = Json::array();
        for (const LayerCodecs& layer : calibration.layer_codecs)
            layers.push_back({layer.k.bits, layer.v.bits});
        json.update({{"bits_per_value", calibration.bits_per_value()}, {"layer_bits", layers}});
    }
    return json;
}

std::string to_text(const runner::Calibration& calibration) {
    const bool by_layer = !calibration.layer_codecs.empty();
    std::vector<NamedLine> lines = {
        {"holds", fmt::format("a calibration: {}{}{}",
                              calibration.has_transforms() ? "norm and centre of keys" : "",
                              calibration.has_transforms() && by_layer ? ", " : "",
                              by_layer ? "bits of each layer" : "")},
        {"model", fmt::format("{}, {}", calibration.model, calibration.architecture)},
        {"model hash", calibration.model_hash},
        {"text", fmt::format("{} tokens, hash {}", calibration.tokens, calibration.text_hash)},
        {"heads", fmt::format("{} layers of {} key-value, dimension {}", calibration.layers,
                              calibration.kv_heads, calibration.head_dim)},
    };
    if (calibration.has_transforms()) {
        const Summary summary = summarize(calibration);
        lines.emplace_back(
            "norms", fmt::format("{:.4g} to {:.4g}, in one head {:.4g} times at most",
                                 summary.least_norm, summary.largest_norm, summary.largest_ratio));
        lines.emplace_back("centres", fmt::format("up to {:.4g}", summary.largest_centre));
    }
    if (by_layer) {
        lines.emplace_back("bits", fmt::format("{:.2f} a value", calibration.bits_per_value()));
        lines.emplace_back("keys, values",
                           layer_digits(calibration.layer_codecs) + ", two digits a layer");
    }
    return named_lines(lines);
}

} // namespace innerkv::cli
