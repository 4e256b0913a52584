// SPDX-License-Identifier: Apache-2.0
// How many free pages appends of so many tokens can need at the worst, however they are cut.
#include <algorithm>
#include <string>

#include "cache/state.h"
#include "innerkv/error.h"

namespace innerkv::paging {
namespace {

struct Need {
    std::int64_t between_appends = 0;
    /// Taken by an append before it gives pages back; by one layer at a time.
    std::int64_t in_flight = 0;
};

Need f16_need(const CacheState& cache, const LayerRule& rule, const SequenceState& sequence,
              const LayerState& state, int tokens) {
    const std::int64_t end = state.length + tokens;
    const std::int64_t sink = rule.sink_pages(end) - rule.sink_pages(state.length);
    const bool copies =
        tokens > 0 && state.partial_rows(rule) > 0 &&
        cache.f16_pool.shared(state.last_list(rule).id(state.last_list(rule).size() - 1));
    // Nothing given back: pages from now on.
    const std::int64_t all =
        rule.grid_pages(end) - rule.grid_pages(state.length) + (copies ? 1 : 0);
    const std::int64_t peak = rule.peak_recent_tokens(cache.config.max_append);
    if (!sequence.settles || peak >= kUnbounded) return {sink + all, 0};
    // Pages shared with a fork do not come back to the pool when this sequence lets go of them.
    const std::int64_t bounded = std::max(divide_up(peak, kPageTokens), state.recent.size()) -
                                 state.recent.exclusive(cache.f16_pool);
    if (all <= bounded) return {sink + all, 0};
    return {sink + bounded, divide_up(cache.config.max_append, kPageTokens) + (copies ? 1 : 0)};
}

/// Whether pages are quantized, and epochs begun, by the time the sequence has `end` tokens.
bool settles(const LayerRule& rule, const SequenceState& sequence, const LayerState& state,
             std::int64_t end) {
    const bool calibrated = rule.calibration_tokens == 0 || state.transform;
    return sequence.settles && (calibrated || rule.calibration_ready(end));
}

Need quantized_need(const CacheState& cache, int layer, const SequenceState& sequence,
                    const LayerState& state, int tokens) {
    const LayerRule& rule = cache.rule(layer);
    const std::int64_t end = state.length + tokens;
    if (!settles(rule, sequence, state, end)) return {};
    const std::int64_t settled = rule.grid_page(state.recent_first);
    const std::int64_t all = std::max<std::int64_t>(0, rule.settled_pages(end) - settled);
    if (rule.sliding_window == 0) return {all, 0};
    const std::int64_t peak = rule.peak_windowed_pages();
    const std::int64_t bounded = std::max(peak, state.quantized.size()) -
                                 state.quantized.exclusive(cache.quantized_pool(layer));
    if (all <= bounded) return {all, 0};
    return {bounded, std::min(peak, divide_up(cache.config.max_append, kPageTokens))};
}

Need centre_need(const CacheState& cache, const LayerRule& rule, const SequenceState& sequence,
                 const LayerState& state, int tokens) {
    const std::int64_t end = state.length + tokens;
    if (rule.epoch_pages == 0 || !settles(rule, sequence, state, end)) return {};
    const std::int64_t left = std::max(rule.settled_pages(end), rule.grid_pages_outside(end));
    const std::int64_t all =
        std::max<std::int64_t>(0, rule.epochs(0, left).last - rule.epochs(state).last);
    if (rule.sliding_window == 0) return {all, 0};
    const std::int64_t bounded =
        std::max(rule.peak_epochs(rule.peak_windowed_pages()), state.centres.size()) -
        state.centres.exclusive(cache.centre_pool);
    if (all <= bounded) return {all, 0};
    return {bounded, rule.peak_epochs(divide_up(cache.config.max_append, kPageTokens))};
}

void add(Need& total, const Need& layer) {
    total.between_appends += layer.between_appends;
    total.in_flight = std::max(total.in_flight, layer.in_flight);
}

std::int64_t total(const Need& need) { return need.between_appends + need.in_flight; }

} // namespace

void CacheState::reserve(SequenceId id, int tokens) const {
    check_not_pending("reserve");
    const SequenceState& target = sequence(id);
    if (tokens < 0)
        throw InvalidArgument("reserve " + std::to_string(tokens) +
                              " tokens; the count must not be negative");
    std::vector<Need> quantized(quantized_pools.size());
    Need f16;
    Need centres;
    for (int layer = 0; layer < config.layers; ++layer) {
        const LayerState& state = target.layers[static_cast<std::size_t>(layer)];
        add(quantized[class_of(layer)], quantized_need(*this, layer, target, state, tokens));
        add(f16, f16_need(*this, rule(layer), target, state, tokens));
        add(centres, centre_need(*this, rule(layer), target, state, tokens));
    }
    PoolCapacity needed;
    needed.f16_pages = total(f16);
    needed.centres = total(centres);
    for (const Need& of_class : quantized) needed.quantized_pages.push_back(total(of_class));
    check_free("room for " + std::to_string(tokens) + " more tokens", needed);
}

} // namespace innerkv::paging
