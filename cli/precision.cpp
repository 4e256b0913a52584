// SPDX-License-Identifier: Apache-2.0
#include "precision.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "contest.h"
#include "errors.h"
#include "interrupt.h"
#include "knapsack.h"
#include "progress.h"
#include "reading.h"
#include "score.h"

namespace innerkv::cli {
namespace {

constexpr int kFewestBits = 2;
constexpr int kMostBits = 4;
/// Caches that read a window side by side; the reference reads it once for all of them.
constexpr std::size_t kAtOnce = 4;
/// Below what can be measured; so that bits that are left go somewhere.
constexpr double kLeastLoss = 1e-9;
/// Page sides are multiples of it, and budgets are counted in it.
constexpr std::size_t kCostUnit = kPageAlignment;

/// Steps between levels go with 1 / (2^bits - 1), and a divergence with the square of a small error.
double relative_loss(int bits) {
    const double step = 1.0 / ((1 << bits) - 1);
    return step * step;
}

std::vector<LayerCodecs> uniform(int layers) {
    return std::vector<LayerCodecs>(static_cast<std::size_t>(layers),
                                    codecs_of_bits(kMostBits, kMostBits));
}

std::string contender(std::span<const LayerCodecs> layers) {
    return fmt::format("{}+layers={}", presets().front().name, layer_digits(layers));
}

/// All at most bits; then, layer by layer, keys at fewest, values at fewest.
std::vector<std::string> contenders(int layers) {
    std::vector<LayerCodecs> codecs = uniform(layers);
    std::vector<std::string> names{contender(codecs)};
    for (LayerCodecs& layer : codecs) {
        const LayerCodecs finest = layer;
        layer = codecs_of_bits(kFewestBits, kMostBits);
        names.push_back(contender(codecs));
        layer = codecs_of_bits(kMostBits, kFewestBits);
        names.push_back(contender(codecs));
        layer = finest;
    }
    return names;
}

/// Mean divergence of each cache; empty: stopped.
std::vector<double> divergences(Contest& contest, const runner::Model& model,
                                std::span<const runner::Token> tokens, std::size_t window) {
    std::vector<std::vector<Standing>> items;
    for (std::size_t first = 0; first + window <= tokens.size(); first += window) {
        const auto part = tokens.subspan(first, window);
        contest.clear();
        if (!contest.score(opened(model, part), window / 2)) return {};
        items.push_back(contest.standings());
    }
    std::vector<double> means;
    for (const CacheScore& score : sum_up(contest.formats(), items)) {
        if (score.never_quantized)
            throw UsageError(fmt::format("--ctx {}: in windows of so few tokens nothing is "
                                         "quantized that bits could matter to; choose a larger one",
                                         window));
        means.push_back(score.score.divergence_mean);
    }
    return means;
}

int cost_of(std::size_t side_bytes) { return static_cast<int>(side_bytes / kCostUnit); }

std::vector<Choice> choices_of(double above, int head_dim) {
    // What was measured is beside most bits, whose own loss is a part of the whole.
    const double measured = relative_loss(kFewestBits) - relative_loss(kMostBits);
    const double scale = std::max(above, kLeastLoss) / measured;
    std::vector<Choice> choices;
    for (int bits = kFewestBits; bits <= kMostBits; ++bits) {
        const LayerCodecs codecs = codecs_of_bits(bits, bits);
        const PageFormat format{codecs.k, codecs.v, head_dim};
        choices.push_back({cost_of(format.side_bytes(codecs.k)), scale * relative_loss(bits)});
    }
    return choices;
}

double uniform_bits(int bits, int head_dim) {
    const LayerCodecs codecs = codecs_of_bits(bits, bits);
    return PageFormat{codecs.k, codecs.v, head_dim}.bits_per_value();
}

} // namespace

std::optional<Sensitivity> measure_sensitivity(const std::shared_ptr<runner::Model>& model,
                                               std::span<const runner::Token> tokens,
                                               const SensitivityOptions& options) {
    const std::vector<std::string> names = contenders(model->info().layers);
    const auto window = static_cast<std::size_t>(options.window);
    const std::size_t windows = tokens.size() / window;
    const std::size_t batches = (names.size() + kAtOnce - 1) / kAtOnce;
    Progress bar("calibrate", "tokens",
                 static_cast<std::int64_t>((names.size() + batches) * windows * (window - 1)));
    ContestOptions contest_options;
    contest_options.context = options.window;
    contest_options.threads = options.threads;
    contest_options.calibration = options.transforms;
    // Rounded activations would blur what one side of one layer changes.
    contest_options.expand_weights = true;
    std::vector<double> means;
    std::int64_t before = 0;
    for (std::size_t first = 0; first < names.size(); first += kAtOnce) {
        std::vector<std::string> caches{"f16"};
        const std::size_t last = std::min(first + kAtOnce, names.size());
        for (std::size_t index = first; index < last; ++index) caches.push_back(names[index]);
        Contest contest(model, caches, contest_options, [&](std::int64_t done) {
            bar.update(before + done);
            return !interrupted();
        });
        const std::vector<double> found = divergences(contest, *model, tokens, window);
        if (found.empty()) return std::nullopt;
        means.insert(means.end(), found.begin() + 1, found.end());
        before += contest.done();
    }
    Sensitivity result{means.front(), {}};
    for (std::size_t index = 1; index < means.size(); index += 2)
        result.above.push_back({means[index] - result.finest, means[index + 1] - result.finest});
    return result;
}

void check_bits(int head_dim, double bits) {
    const double fewest = uniform_bits(kFewestBits, head_dim);
    const double most = uniform_bits(kMostBits, head_dim);
    if (bits >= fewest && bits <= most) return;
    throw UsageError(fmt::format("--bits {}: with {} to {} bits, scales and zero-points a value of "
                                 "this model's heads takes {:.2f} to {:.2f}",
                                 bits, kFewestBits, kMostBits, fewest, most));
}

std::vector<LayerCodecs> choose_codecs(const Sensitivity& sensitivity, int head_dim, double bits) {
    check_bits(head_dim, bits);
    std::vector<std::vector<Choice>> items;
    for (const Sides& layer : sensitivity.above) {
        items.push_back(choices_of(layer.k, head_dim));
        items.push_back(choices_of(layer.v, head_dim));
    }
    // Rounding of the product must not take away the last unit.
    const double bytes = bits * static_cast<double>(items.size()) * kPageTokens * head_dim / 8.0;
    const auto budget = static_cast<int>(bytes / kCostUnit + 1e-6);
    const std::vector<std::size_t> chosen = choose_within(items, budget);
    std::vector<LayerCodecs> layers;
    for (std::size_t item = 0; item < items.size(); item += 2)
        layers.push_back(codecs_of_bits(kFewestBits + static_cast<int>(chosen[item]),
                                        kFewestBits + static_cast<int>(chosen[item + 1])));
    return layers;
}

std::string layer_digits(std::span<const LayerCodecs> layers) {
    std::string digits;
    for (const LayerCodecs& layer : layers)
        digits += fmt::format("{}{}", layer.k.bits, layer.v.bits);
    return digits;
}

} // namespace innerkv::cli
