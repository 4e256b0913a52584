// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <set>
#include <string>

#include "cache/settle.h"
#include "cache/state.h"
#include "innerkv/error.h"

namespace innerkv::paging {
namespace {

/// Tokens of a quantized page that stay when its sequence is cut at `length`, 0 where the cut is at a
/// page boundary or elsewhere.
int kept_of_quantized_page(const LayerState& state, std::int64_t length) {
    if (length >= state.recent_first || length <= state.quantized_first) return 0;
    return static_cast<int>((length - state.quantized_first) % kPageTokens);
}

/// Index of a recent page that nobody else refers to, or -1: such a page can take dequantized tokens.
std::int64_t own_recent_page(const CacheState& cache, const LayerState& state) {
    for (std::int64_t i = 0; i < state.recent.size(); ++i)
        if (!cache.f16_pool.shared(state.recent.id(i))) return i;
    return -1;
}

void check_window(const CacheState& cache, int layer, const LayerState& state,
                  std::int64_t length) {
    const int window = cache.rule(layer).sliding_window;
    const std::int64_t first_seen = std::max<std::int64_t>(0, length - window + 1);
    if (length == 0 || state.dropped == 0) return;
    if (first_seen >= state.dropped && length >= state.dropped) return;
    throw InvalidArgument("truncate to " + std::to_string(length) + " tokens: layer " +
                          std::to_string(layer) + " has a sliding window of " +
                          std::to_string(window) + " and has dropped the tokens before " +
                          std::to_string(state.dropped) +
                          "; truncate to 0 and append the tokens again");
}

/// Centres of the KV heads of one page of the run; null: there are none.
const std::byte* centres_of_page(const CentreRun& centres, std::int64_t page) {
    if (centres.epochs.empty()) return nullptr;
    return centres
        .epochs[static_cast<std::size_t>((centres.first_page + page) / centres.epoch_pages)];
}

/// Keeps the first tokens of the quantized run; `page` gets what is kept of the page cut through.
void cut_quantized(CacheState& cache, int layer, LayerState& state, std::int64_t length,
                   const Page* page) {
    const std::int64_t whole = (length - state.quantized_first) / kPageTokens;
    const int kept = kept_of_quantized_page(state, length);
    if (kept > 0) {
        const PageFormat format = cache.config.layer_format(layer);
        const std::size_t f16_stride = f16_format(format.head_dim).page_bytes();
        const std::size_t stride = cache.quantized_pool(layer).part_stride();
        const std::byte* source = state.quantized.pointers()[static_cast<std::size_t>(whole)];
        const std::span<const KeyTransform> transforms = cache.transforms(layer, state);
        const std::byte* centres = centres_of_page(cache.centres(layer, state), whole);
        for (std::size_t head = 0; head < static_cast<std::size_t>(cache.config.kv_heads); ++head)
            dequantize_to_f16_page(format, page_transform(format, transforms, centres, head),
                                   source + head * stride, kept, page->data + head * f16_stride);
    }
    state.quantized.keep_front(cache.quantized_pool(layer), whole);
    state.recent.keep_front(cache.f16_pool, 0);
    state.recent_first = state.quantized_first + kPageTokens * whole;
    state.centres.keep_front(cache.centre_pool, cache.rule(layer).epochs(state).count());
    if (kept > 0) state.recent.push_back(*page);
}

void cut_sink(CacheState& cache, int layer, LayerState& state, std::int64_t length) {
    const LayerRule& rule = cache.rule(layer);
    if (length == 0) state.dropped = 0;
    state.sink.keep_front(cache.f16_pool, rule.sink_pages(length) - rule.dropped_sink_pages(state));
    state.quantized.keep_front(cache.quantized_pool(layer), 0);
    state.recent.keep_front(cache.f16_pool, 0);
    state.centres.keep_front(cache.centre_pool, 0);
    state.quantized_first = state.recent_first = rule.sink_tokens;
    state.queries.reset();
}

void cut_layer(CacheState& cache, int layer, LayerState& state, std::int64_t length,
               const Page* page) {
    const LayerRule& rule = cache.rule(layer);
    if (length <= rule.sink_tokens) {
        cut_sink(cache, layer, state, length);
    } else if (length >= state.recent_first) {
        state.recent.keep_front(cache.f16_pool,
                                divide_up(length - state.recent_first, kPageTokens));
    } else {
        cut_quantized(cache, layer, state, length, page);
    }
    state.length = length;
}

} // namespace

/// Checks one sequence of a batch and makes room for its pages; fp16 pages that it needs at most.
std::int64_t CacheState::truncate_need(const Truncation& cut) {
    SequenceState& target = sequence(cut.sequence);
    if (cut.length < 0)
        throw InvalidArgument("truncate to " + std::to_string(cut.length) +
                              " tokens; the length must not be negative");
    std::int64_t pages = 0;
    for (int layer = 0; layer < config.layers; ++layer) {
        LayerState& state = target.layers[static_cast<std::size_t>(layer)];
        if (state.length <= cut.length) continue;
        check_window(*this, layer, state, cut.length);
        if (kept_of_quantized_page(state, cut.length) == 0) continue;
        if (own_recent_page(*this, state) < 0) ++pages;
        state.recent.reserve(1);
    }
    return pages;
}

/// Cuts one sequence; returns what is left of `fresh`.
std::span<const Page> CacheState::cut(const Truncation& cut, std::span<const Page> fresh) {
    SequenceState& target = sequence(cut.sequence);
    for (int layer = 0; layer < config.layers; ++layer) {
        LayerState& state = target.layers[static_cast<std::size_t>(layer)];
        if (state.length <= cut.length) continue;
        Page page;
        if (kept_of_quantized_page(state, cut.length) > 0) {
            const std::int64_t own = own_recent_page(*this, state);
            if (own >= 0) {
                page = state.recent.extract(f16_pool, own);
            } else {
                page = fresh.front();
                fresh = fresh.subspan(1);
            }
        }
        cut_layer(*this, layer, state, cut.length, &page);
    }
    return fresh;
}

void CacheState::truncate(std::span<const Truncation> batch) {
    check_not_pending("truncate");
    std::set<SequenceId> named;
    std::int64_t fresh_pages = 0;
    for (const Truncation& one : batch) {
        fresh_pages += truncate_need(one);
        if (!named.insert(one.sequence).second)
            throw InvalidArgument("truncate: sequence " +
                                  std::to_string(static_cast<std::int32_t>(one.sequence)) +
                                  " is named twice; name each once");
    }
    paging::check_free("truncate", kF16Pages, f16_pool, fresh_pages);
    PageHold fresh(f16_pool);
    fresh.take(fresh_pages);
    std::span<const Page> rest = fresh.pages();
    for (const Truncation& one : batch) rest = cut(one, rest);
    fresh.keep_all_but(rest.size()); // sequences that shared a page with those before may need none
}

} // namespace innerkv::paging
