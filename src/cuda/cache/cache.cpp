// SPDX-License-Identifier: Apache-2.0
#include "cuda/cache/cache.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>

#include "cache/state.h"
#include "cuda/arguments.h"
#include "cuda/cache/append.h"
#include "cuda/kernels/table.h"

namespace innerkv::cuda {
namespace {

using paging::divide_up;
using paging::LayerRule;

constexpr std::int64_t kMostTokens = std::int64_t{1} << 30;

void check_config(const CacheConfig& config) {
    paging::validate_config(config);
    if (config.exact_prefill)
        throw InvalidArgument("cuda cache: exact_prefill is not supported; leave it off");
    if (!config.layer_codecs.empty())
        throw InvalidArgument(
            "cuda cache: layer_codecs is not supported, all layers have one format; leave it "
            "empty and choose a preset");
    if (config.format.quantized())
        find_kernel(config.format, false); // or attention could not read it
    if (config.max_sequences > kMaxSequences)
        throw InvalidArgument("cuda cache: max_sequences is " +
                              std::to_string(config.max_sequences) + "; supported are 1 to " +
                              std::to_string(kMaxSequences));
    if (config.max_tokens < 1 || config.max_tokens > kMostTokens)
        throw InvalidArgument("cuda cache: max_tokens is " + std::to_string(config.max_tokens) +
                              "; supported are 1 to 2^30");
    for (const KeyTransform& head : config.calibrated)
        if (head.rotate != config.calibrated[0].rotate)
            throw InvalidArgument("cuda cache: some KV heads are rotated and others not; rotate "
                                  "all or none");
}

/// `count` entries that go round `groups` groups from `first` on.
std::vector<std::byte*> ring_of(std::byte* first, std::size_t group_bytes, std::int64_t groups,
                                std::int64_t count) {
    std::vector<std::byte*> entries;
    for (std::int64_t i = 0; i < count; ++i)
        entries.push_back(first + static_cast<std::size_t>(i % groups) * group_bytes);
    return entries;
}

std::size_t channels(const CacheConfig& config) {
    return static_cast<std::size_t>(config.kv_heads) *
           static_cast<std::size_t>(config.format.head_dim);
}

LayerParams layer_params(const CacheConfig& config, const LayerRule& rule, int layer) {
    const bool calibrated = config.transform.norm == KeyNormPolicy::calibrated;
    LayerParams params{};
    params.rule = rule;
    params.format = config.format;
    params.layer = layer;
    params.kv_heads = config.kv_heads;
    params.rotate =
        rule.quantizes && (calibrated ? config.calibrated[0].rotate : config.transform.rotate) ? 1
                                                                                               : 0;
    params.norm = config.transform.norm;
    params.norm_threshold = config.transform.norm_threshold;
    params.centre = config.transform.centre ? 1 : 0;
    params.f16_stride =
        static_cast<std::int64_t>(paging::f16_format(config.format.head_dim).page_bytes());
    return params;
}

} // namespace

std::byte* DevicePool::take() {
    std::byte* group = nullptr;
    if (given_back_.empty()) {
        const auto used = owners_.size() - static_cast<std::size_t>(never_used_--);
        group = memory_ + used * group_bytes_;
    } else {
        group = given_back_.back();
        given_back_.pop_back();
    }
    owners_[number(group)] = 1;
    return group;
}

void Table::write(std::size_t first) const {
    if (first >= host.size()) return;
    check(cudaMemcpy(device + first, host.data() + first, (host.size() - first) * sizeof(void*),
                     cudaMemcpyHostToDevice),
          "writing a table of pages");
}

DeviceCache::Impl::Impl(const CacheConfig& cache_config) : config(cache_config) {
    check_config(config);
    calibrated_values = paging::adopt_calibrated(config);
    for (int layer = 0; layer < config.layers; ++layer) {
        rules.push_back(paging::layer_rule(config, layer));
        params.push_back(layer_params(config, rules.back(), layer));
    }
    in_use.assign(static_cast<std::size_t>(config.max_sequences), false);
    choose_layouts();
}

DeviceCache::Impl::Impl(const CacheConfig& cache_config, int cache_device) : Impl(cache_config) {
    require_device(cache_device);
    device = cache_device;
    memory = DeviceMemory(device, place(nullptr), "a cache");
    place(memory.data());
    fill();
}

void DeviceCache::Impl::choose_layouts() {
    for (const LayerRule& rule : rules) {
        LayerLayout layout;
        const std::int64_t peak = rule.peak_recent_tokens(config.max_append);
        // What an append quantizes keeps its fp16 pages until the append is visible.
        if (peak != paging::kUnbounded)
            layout.recent_pages =
                divide_up(std::min(peak + config.max_append, config.max_tokens), kPageTokens) + 1;
        if (rule.quantizes && rule.sliding_window > 0) {
            layout.windowed_pages = rule.peak_windowed_pages() + layout.recent_pages;
            layout.windowed_epochs = rule.peak_epochs(layout.windowed_pages) + 1;
        }
        layouts.push_back(layout);
    }
}

namespace {

/// Arrays of a layer that every slot uses.
struct SharedArrays {
    float* norm = nullptr;
    float* centre = nullptr;
    float* value_centre = nullptr;
    std::int32_t* has_norm = nullptr;
};

SharedArrays place_calibrated(const CacheConfig& config, const LayerRule& rule, Cursor& cursor) {
    if (!rule.quantizes || config.transform.norm != KeyNormPolicy::calibrated) return {};
    return {cursor.take<float>(channels(config)), cursor.take<float>(channels(config)),
            cursor.take<float>(channels(config)),
            cursor.take<std::int32_t>(static_cast<std::size_t>(config.kv_heads))};
}

/// Tables of a slot, and the pages of those that are rings.
void place_tables(const CacheConfig& config, const LayerRule& rule, const LayerLayout& layout,
                  Cursor& cursor, SlotPages& own) {
    const auto table = [&](std::int64_t count) {
        return cursor.take<std::byte*>(static_cast<std::size_t>(count));
    };
    const auto ring = [&](std::int64_t groups, std::size_t bytes, std::int64_t count) {
        return groups > 0 ? ring_of(cursor.groups(groups, bytes), bytes, groups, count)
                          : std::vector<std::byte*>();
    };
    const std::int64_t pages = divide_up(config.max_tokens, kPageTokens);
    const std::int64_t sink = divide_up(rule.sink_tokens, kPageTokens);
    const std::size_t f16_bytes = paging::f16_group_bytes(config);
    own.sink = {table(sink), ring(sink, f16_bytes, sink)};
    own.recent = {table(layout.recent_pages > 0 ? 2 * layout.recent_pages : pages),
                  ring(layout.recent_pages, f16_bytes, 2 * layout.recent_pages)};
    if (!rule.quantizes) return;
    own.quantized = {table(pages),
                     ring(layout.windowed_pages, paging::quantized_group_bytes(config), pages)};
    if (rule.epoch_pages == 0) return;
    const std::int64_t epochs = divide_up(pages, rule.epoch_pages) + 1;
    own.epochs = {table(epochs),
                  ring(layout.windowed_epochs, paging::centre_group_bytes(config), epochs)};
}

/// An empty sequence in these pages.
SlotState place_state(const CacheConfig& config, const LayerRule& rule, const LayerLayout& layout,
                      const SharedArrays& arrays, const SlotPages& own, Cursor& cursor) {
    SlotState state{};
    state.extent.quantized_first = state.extent.recent_first = rule.sink_tokens;
    state.quantized_capacity = static_cast<std::int64_t>(own.quantized.host.size());
    state.in_use = 1;
    state.calibrated = rule.calibration_tokens == 0 ? 1 : 0;
    state.sink = own.sink.device;
    state.recent.table = own.recent.device;
    if (layout.recent_pages > 0) {
        state.recent.pages = static_cast<std::int32_t>(layout.recent_pages);
        state.recent_capacity = std::numeric_limits<std::int64_t>::max();
    } else {
        state.recent.pages = static_cast<std::int32_t>(divide_up(config.max_tokens, kPageTokens));
    }
    state.quantized = own.quantized.device;
    state.epochs = own.epochs.device;
    state.norm = arrays.norm;
    state.centre = arrays.centre;
    state.value_centre = arrays.value_centre;
    state.has_norm = arrays.has_norm;
    if (!rule.quantizes) return state;
    if (paging::norm_from_sequence(config.transform)) {
        state.norm = cursor.take<float>(channels(config));
        state.has_norm = cursor.take<std::int32_t>(static_cast<std::size_t>(config.kv_heads));
    }
    if (config.transform.value_centre) state.value_centre = cursor.take<float>(channels(config));
    if (rule.balances)
        for (float*& power : state.query_power) power = cursor.take<float>(channels(config));
    return state;
}

} // namespace

std::size_t DeviceCache::Impl::place(std::byte* base) {
    Cursor cursor(base);
    const auto slots = static_cast<std::size_t>(config.max_sequences);
    const auto all = slots * static_cast<std::size_t>(config.layers);
    states = cursor.take<SlotState>(all);
    sequences = cursor.take<Sequence>(all);
    faults = cursor.take<Fault>(slots);
    auto* arrivals = cursor.take<std::int32_t>(all);
    zeroed_bytes = cursor.size();
    slot_pages.clear();
    fresh_states.clear();
    for (std::size_t layer = 0; layer < rules.size(); ++layer) {
        params[layer].slots = states + layer * slots;
        params[layer].sequences = sequences + layer * slots;
        params[layer].faults = faults;
        params[layer].arrivals = arrivals + layer * slots;
        const SharedArrays arrays = place_calibrated(config, rules[layer], cursor);
        for (int slot = 0; slot < config.max_sequences; ++slot) {
            SlotPages own;
            place_tables(config, rules[layer], layouts[layer], cursor, own);
            fresh_states.push_back(
                place_state(config, rules[layer], layouts[layer], arrays, own, cursor));
            slot_pages.push_back(std::move(own));
        }
    }
    place_pools(cursor);
    return cursor.size();
}

void DeviceCache::Impl::place_pools(Cursor& cursor) {
    const std::int64_t pages = divide_up(config.max_tokens, kPageTokens);
    std::int64_t quantized = 0;
    std::int64_t f16 = 0;
    std::int64_t centres = 0;
    for (std::size_t layer = 0; layer < rules.size(); ++layer) {
        // A page that two sequences have halves of is two pages.
        const std::int64_t most = pages + config.max_sequences;
        if (layouts[layer].recent_pages == 0) f16 += most;
        if (!rules[layer].quantizes || layouts[layer].windowed_pages > 0) continue;
        quantized += pages;
        if (rules[layer].epoch_pages > 0)
            centres += divide_up(pages, rules[layer].epoch_pages) + config.max_sequences;
    }
    const auto pool = [&](std::size_t bytes, std::int64_t groups) {
        return DevicePool(cursor.groups(groups, bytes), bytes, groups);
    };
    quantized_pool = pool(paging::quantized_group_bytes(config), quantized);
    f16_pool = pool(paging::f16_group_bytes(config), f16);
    centre_pool = pool(paging::centre_group_bytes(config), centres);
}

/// What is the same for all sequences that will come.
void DeviceCache::Impl::fill() {
    const DeviceScope scope(device);
    check(cudaMemset(memory.data(), 0, zeroed_bytes), "clearing a cache");
    for (const SlotPages& own : slot_pages) {
        own.sink.write(0);
        own.recent.write(0);
        own.quantized.write(0);
        own.epochs.write(0);
    }
    const bool calibrated = config.transform.norm == KeyNormPolicy::calibrated;
    for (int layer = 0; layer < config.layers && calibrated; ++layer) {
        if (!rules[static_cast<std::size_t>(layer)].quantizes) continue;
        const auto heads = static_cast<std::size_t>(config.kv_heads);
        write_transforms(fresh_states[index(layer, 0)],
                         std::span<const KeyTransform>(config.calibrated)
                             .subspan(static_cast<std::size_t>(layer) * heads, heads));
    }
    finish_writes();
}

namespace {

/// [kv_heads, head_dim] to the device, `neutral` for heads without.
void write_channels(const CacheConfig& config, std::span<const KeyTransform> transforms,
                    const float* KeyTransform::*field, float neutral, const float* to) {
    const auto dim = static_cast<std::size_t>(config.format.head_dim);
    std::vector<float> all(channels(config), neutral);
    for (std::size_t head = 0; head < transforms.size(); ++head)
        if (const float* from = transforms[head].*field)
            std::copy_n(from, dim, all.begin() + static_cast<std::ptrdiff_t>(head * dim));
    check(cudaMemcpy(const_cast<float*>(to), all.data(), all.size() * sizeof(float),
                     cudaMemcpyHostToDevice),
          "writing transforms");
}

} // namespace

void DeviceCache::Impl::write_transforms(const SlotState& state,
                                         std::span<const KeyTransform> transforms) const {
    if (state.norm != nullptr) {
        write_channels(config, transforms, &KeyTransform::norm, 1.0f, state.norm);
        std::vector<std::int32_t> has_norm;
        for (const KeyTransform& head : transforms)
            has_norm.push_back(head.norm != nullptr ? 1 : 0);
        check(cudaMemcpy(state.has_norm, has_norm.data(), has_norm.size() * sizeof(std::int32_t),
                         cudaMemcpyHostToDevice),
              "writing transforms");
    }
    if (state.centre != nullptr)
        write_channels(config, transforms, &KeyTransform::centre, 0.0f, state.centre);
    if (state.value_centre != nullptr)
        write_channels(config, transforms, &KeyTransform::value_centre, 0.0f, state.value_centre);
}

} // namespace innerkv::cuda
