// SPDX-License-Identifier: Apache-2.0
// Precision by layer: what few bits cost each layer's keys and values on a text, and the bits that lose least
// within a budget.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "innerkv/format.h"
#include "runner/calibration.h"
#include "runner/runner.h"

namespace innerkv::cli {

/// Keys or values of one layer.
struct Sides {
    double k = 0;
    double v = 0;
};

/// Mean KLD against f16, every token attending as in decoding, on the default preset.
struct Sensitivity {
    double finest = 0;        ///< all layers at 4 bits
    std::vector<Sides> above; ///< [layers], what that side alone at 2 bits adds
};

struct SensitivityOptions {
    int window = 0; ///< tokens of a window, of which the second half is scored
    int threads = 0;
    std::shared_ptr<const runner::Calibration> transforms; ///< null: sequences take their own
};

/// Runs all layers' keys and values in turn over whole windows of `tokens`; draws a progress bar. Nothing:
/// interrupted.
std::optional<Sensitivity> measure_sensitivity(const std::shared_ptr<runner::Model>& model,
                                               std::span<const runner::Token> tokens,
                                               const SensitivityOptions& options);

/// Throws UsageError unless `bits` a value can be had with 2 to 4 bits in heads of so many channels.
void check_bits(int head_dim, double bits);

/// 2, 3 or 4 bits for each layer's keys and values: PageFormat::bits_per_value is `bits` at most in the mean over
/// layers, and the sum of losses the least. A side's loss at 2 bits is what was measured; at 3 and 4 it is that times
/// the square of their step's ratio. Throws as check_bits.
std::vector<LayerCodecs> choose_codecs(const Sensitivity& sensitivity, int head_dim, double bits);

/// As base+layers= takes it: two digits a layer.
std::string layer_digits(std::span<const LayerCodecs> layers);

} // namespace innerkv::cli
