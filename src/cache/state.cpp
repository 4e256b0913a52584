// SPDX-License-Identifier: Apache-2.0
#include "cache/state.h"

#include <algorithm>
#include <limits>
#include <set>
#include <string>
#include <utility>

#include "innerkv/error.h"

namespace innerkv::paging {
namespace {

std::string name_of(SequenceId id) {
    return "sequence " + std::to_string(static_cast<std::int32_t>(id));
}

PageRun run_of(const PageList& list, std::size_t page_bytes, std::size_t head_stride,
               std::int64_t first, std::int64_t end) {
    PageRun run;
    run.pages = list.pointers();
    run.head_stride = head_stride;
    run.page_bytes = page_bytes;
    run.first_token = first;
    run.tokens = list.empty() ? 0 : end - first;
    return run;
}

} // namespace

std::size_t layer_state_bytes(const CacheConfig& config) {
    return sizeof(LayerState) + layer_transform_bytes(config) + query_power_bytes(config);
}

int LayerState::partial_rows(const LayerRule& rule) const {
    if (length < rule.sink_tokens) return static_cast<int>(length % kPageTokens);
    return static_cast<int>((length - rule.sink_tokens) % kPageTokens);
}

PageList& LayerState::last_list(const LayerRule& rule) {
    return length < rule.sink_tokens ? sink : recent;
}

const PageList& LayerState::last_list(const LayerRule& rule) const {
    return length < rule.sink_tokens ? sink : recent;
}

CacheState::CacheState(CacheConfig checked_config)
    : config(std::move(checked_config)), calibrated_values(adopt_calibrated(config)),
      classes(config), f16_pool(f16_group_bytes(config), pool_capacity(config).f16_pages),
      centre_pool(centre_group_bytes(config), pool_capacity(config).centres),
      pending(static_cast<std::size_t>(config.layers), 0) {
    const PoolCapacity capacity = pool_capacity(config);
    for (std::size_t i = 0; i < classes.group_bytes.size(); ++i)
        quantized_pools.push_back(
            std::make_unique<Pool>(classes.group_bytes[i], capacity.quantized_pages[i],
                                   static_cast<std::size_t>(config.kv_heads)));
    for (int layer = 0; layer < config.layers; ++layer) rules.push_back(layer_rule(config, layer));
    KeyTransform rotated;
    rotated.rotate = config.transform.rotate;
    rotation.assign(static_cast<std::size_t>(config.kv_heads), rotated);
}

SequenceState& CacheState::sequence(SequenceId id) {
    return const_cast<SequenceState&>(std::as_const(*this).sequence(id));
}

const SequenceState& CacheState::sequence(SequenceId id) const {
    const auto found = sequences.find(id);
    if (found == sequences.end())
        throw InvalidArgument("unknown " + name_of(id) + "; the cache holds " +
                              std::to_string(sequences.size()) +
                              " sequences, made by create() or fork() and not removed");
    return found->second;
}

void CacheState::check_layer(int layer) const {
    if (layer >= 0 && layer < config.layers) return;
    throw InvalidArgument("layer " + std::to_string(layer) + " does not exist; the cache has " +
                          std::to_string(config.layers) + " layers, from 0 on");
}

const LayerRule& CacheState::rule(int layer) const {
    check_layer(layer);
    return rules[static_cast<std::size_t>(layer)];
}

void CacheState::check_not_pending(const char* operation) const {
    const auto found = std::find_if(pending.begin(), pending.end(), [](int n) { return n != 0; });
    if (found == pending.end()) return;
    throw InvalidArgument(std::string(operation) + " while an append to layer " +
                          std::to_string(found - pending.begin()) +
                          " is under way; commit or drop it first");
}

SequenceId CacheState::new_id() {
    SequenceId id{};
    do {
        id = SequenceId{next_id};
        next_id = next_id == std::numeric_limits<std::int32_t>::max() ? 0 : next_id + 1;
    } while (sequences.contains(id));
    return id;
}

void CacheState::check_sequence_count() const {
    if (sequences.size() < static_cast<std::size_t>(config.max_sequences)) return;
    throw OutOfPages("one more sequence asked; the cache was made for max_sequences = " +
                     std::to_string(config.max_sequences) +
                     "; remove one, or make the cache for more");
}

SequenceId CacheState::create() {
    check_sequence_count();
    SequenceState fresh;
    fresh.layers.resize(static_cast<std::size_t>(config.layers));
    fresh.settles = !config.exact_prefill;
    for (LayerState& layer : fresh.layers)
        layer.quantized_first = layer.recent_first = config.sink_tokens;
    const SequenceId id = new_id();
    sequences.emplace(id, std::move(fresh));
    return id;
}

SequenceId CacheState::fork(SequenceId parent) {
    check_not_pending("fork");
    const SequenceState& source = sequence(parent);
    check_sequence_count();
    const SequenceId id = new_id();
    const auto child = sequences.emplace(id, source).first;
    for (int layer = 0; layer < config.layers; ++layer) {
        const LayerState& state = child->second.layers[static_cast<std::size_t>(layer)];
        state.sink.retain_all(f16_pool);
        state.quantized.retain_all(quantized_pool(layer));
        state.recent.retain_all(f16_pool);
        state.centres.retain_all(centre_pool);
    }
    return id;
}

void CacheState::remove(SequenceId id) {
    check_not_pending("remove");
    SequenceState& removed = sequence(id);
    for (int layer = 0; layer < config.layers; ++layer) {
        LayerState& state = removed.layers[static_cast<std::size_t>(layer)];
        state.sink.keep_front(f16_pool, 0);
        state.quantized.keep_front(quantized_pool(layer), 0);
        state.recent.keep_front(f16_pool, 0);
        state.centres.keep_front(centre_pool, 0);
    }
    sequences.erase(id);
}

std::span<const KeyTransform> CacheState::transforms(int layer, const LayerState& state) const {
    const auto heads = static_cast<std::size_t>(config.kv_heads);
    if (!rules[static_cast<std::size_t>(layer)].quantizes) return {};
    if (config.transform.norm == KeyNormPolicy::calibrated)
        return std::span(config.calibrated).subspan(static_cast<std::size_t>(layer) * heads, heads);
    if (calibrates(config))
        return state.transform ? std::span<const KeyTransform>(state.transform->heads)
                               : std::span<const KeyTransform>();
    if (config.transform.rotate) return rotation;
    return {};
}

CentreRun CacheState::centres(int layer, const LayerState& state) const {
    const LayerRule& rule = rules[static_cast<std::size_t>(layer)];
    if (state.quantized.empty() || rule.epoch_pages == 0) return {};
    const auto first = rule.grid_page(state.quantized_first) % rule.epoch_pages;
    return {state.centres.pointers(), rule.epoch_pages, static_cast<int>(first)};
}

SequenceView CacheState::view(int layer, SequenceId id) const {
    check_layer(layer);
    const LayerState& state = sequence(id).layers[static_cast<std::size_t>(layer)];
    const std::int64_t sink_end = std::min<std::int64_t>(state.length, config.sink_tokens);
    const std::size_t f16_bytes = f16_format(config.format.head_dim).page_bytes();
    SequenceView view;
    view.sink =
        run_of(state.sink, f16_bytes, f16_bytes, std::min(state.dropped, sink_end), sink_end);
    view.quantized =
        run_of(state.quantized, config.layer_format(layer).page_bytes(),
               quantized_pool(layer).part_stride(), state.quantized_first, state.recent_first);
    view.recent = run_of(state.recent, f16_bytes, f16_bytes, state.recent_first, state.length);
    view.length = state.length;
    view.transforms = transforms(layer, state);
    view.centres = centres(layer, state);
    return view;
}

CacheUsage CacheState::usage() const {
    std::set<const LayerTransform*> transforms_in_use;
    for (const auto& [id, sequence] : sequences)
        for (const LayerState& layer : sequence.layers)
            if (layer.transform) transforms_in_use.insert(layer.transform.get());
    CacheUsage usage;
    const auto add = [&usage](const Pool& pool) {
        usage.bytes_in_use += static_cast<std::size_t>(pool.in_use()) * pool.page_bytes();
        usage.bytes_reserved += pool.bytes_reserved();
    };
    for (const auto& pool : quantized_pools) {
        usage.quantized_pages += pool->in_use();
        add(*pool);
    }
    usage.f16_pages = f16_pool.in_use();
    add(f16_pool);
    add(centre_pool);
    usage.bytes_in_use += transforms_in_use.size() * layer_transform_bytes(config);
    return usage;
}

void CacheState::check_free(const std::string& what, const PoolCapacity& needed) const {
    for (std::size_t i = 0; i < needed.quantized_pages.size(); ++i)
        paging::check_free(what, kQuantizedPages, *quantized_pools[i], needed.quantized_pages[i]);
    paging::check_free(what, kF16Pages, f16_pool, needed.f16_pages);
    paging::check_free(what, kCentres, centre_pool, needed.centres);
}

void check_free(const std::string& what, const char* kind, const Pool& pool, std::int64_t groups) {
    if (groups <= pool.free()) return;
    throw OutOfPages(what + " needs " + std::to_string(groups) + " " + kind + "; " +
                     std::to_string(pool.free()) + " of " + std::to_string(pool.capacity()) +
                     " are free; remove or truncate a sequence, or make the cache with larger "
                     "max_tokens, max_sequences or max_append");
}

} // namespace innerkv::paging
