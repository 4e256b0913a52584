// SPDX-License-Identifier: Apache-2.0
#include "calibration_report.h"

#include <algorithm>
#include <cmath>
#include <span>

#include <fmt/format.h>

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
    const Summary summary = summarize(calibration);
    return {{"type", "calibration"},
            {"model", calibration.model},
            {"architecture", calibration.architecture},
            {"model_hash", calibration.model_hash},
            {"text_hash", calibration.text_hash},
            {"tokens", calibration.tokens},
            {"layers", calibration.layers},
            {"kv_heads", calibration.kv_heads},
            {"head_dim", calibration.head_dim},
            {"norm_min", summary.least_norm},
            {"norm_max", summary.largest_norm},
            {"norm_ratio_max", summary.largest_ratio},
            {"centre_max", summary.largest_centre}};
}

std::string to_text(const runner::Calibration& calibration) {
    const Summary summary = summarize(calibration);
    const NamedLine lines[] = {
        {"holds", "a calibration: norm and centre of keys"},
        {"model", fmt::format("{}, {}", calibration.model, calibration.architecture)},
        {"model hash", calibration.model_hash},
        {"text", fmt::format("{} tokens, hash {}", calibration.tokens, calibration.text_hash)},
        {"heads", fmt::format("{} layers of {} key-value, dimension {}", calibration.layers,
                              calibration.kv_heads, calibration.head_dim)},
        {"norms", fmt::format("{:.4g} to {:.4g}, in one head {:.4g} times at most",
                              summary.least_norm, summary.largest_norm, summary.largest_ratio)},
        {"centres", fmt::format("up to {:.4g}", summary.largest_centre)},
    };
    return named_lines(lines);
}

} // namespace innerkv::cli
