// SPDX-License-Identifier: Apache-2.0
// Sequences that share pages, and slots that change places. A quantized page that is full is never written again, so
// forks have it in common; what may still change, windows and pages to come, each has for itself.
#include <algorithm>
#include <map>
#include <string>

#include "cuda/cache/cache.h"

namespace innerkv::cuda {
namespace {

using paging::LayerExtent;

void copy_on_device(void* to, const void* from, std::size_t bytes) {
    if (bytes == 0 || to == nullptr || from == nullptr) return;
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, nullptr), "copying a slot");
}

/// The pages of a ring, which lie one behind the other.
void copy_ring(const Table& from, const Table& to, std::int64_t groups, std::size_t bytes) {
    if (groups == 0 || from.host.empty()) return;
    copy_on_device(to.host[0], from.host[0], static_cast<std::size_t>(groups) * bytes);
}

/// `to` gets the first `shared` groups of `from` and as many of its own as `from` has behind them.
void fork_table(const Table& from, Table& to, std::size_t shared, DevicePool& pool) {
    to.host.reserve(from.host.size());
    for (std::size_t i = 0; i < from.host.size(); ++i) {
        if (i < shared) pool.share(from.host[i]);
        to.host.push_back(i < shared ? from.host[i] : pool.take());
    }
    to.write(0);
}

std::size_t entries(std::int64_t count, const Table& table) {
    return std::min(static_cast<std::size_t>(count), table.host.size());
}

} // namespace

std::int64_t DevicePool::freed_by(std::vector<std::byte*> given_back) const {
    std::sort(given_back.begin(), given_back.end());
    std::int64_t freed = 0;
    for (auto first = given_back.begin(); first != given_back.end();) {
        const auto end = std::upper_bound(first, given_back.end(), *first);
        if (end - first == owners_[number(*first)]) ++freed;
        first = end;
    }
    return freed;
}

DeviceCache::Impl::Filled DeviceCache::Impl::filled(int layer, const SlotState& state) const {
    const paging::LayerRule& rule = rules[static_cast<std::size_t>(layer)];
    if (!pools_quantized(layer)) return {};
    return {static_cast<std::size_t>(rule.grid_page(state.extent.recent_first)),
            static_cast<std::size_t>(rule.epochs(state.extent).last)};
}

DeviceCache::Impl::Groups
DeviceCache::Impl::fork_lack(int slot, const std::vector<SlotState>& slot_states) const {
    Groups result;
    for (int layer = 0; layer < config.layers; ++layer) {
        const SlotPages& own = slot_pages[index(layer, slot)];
        if (pools_recent(layer)) result.f16 += static_cast<std::int64_t>(own.recent.host.size());
        if (!pools_quantized(layer)) continue;
        const Filled full = filled(layer, slot_states[static_cast<std::size_t>(layer)]);
        result.quantized += static_cast<std::int64_t>(
            own.quantized.host.size() - std::min(full.quantized, own.quantized.host.size()));
        result.centres += static_cast<std::int64_t>(own.epochs.host.size() -
                                                    std::min(full.epochs, own.epochs.host.size()));
    }
    return result;
}

void DeviceCache::Impl::fork_layer(int layer, int from, int to, const SlotState& source,
                                   SlotState& state) {
    const auto at = static_cast<std::size_t>(layer);
    const SlotPages& old = slot_pages[index(layer, from)];
    SlotPages& own = slot_pages[index(layer, to)];
    const SlotState places = state;
    state = source;
    state.sink = places.sink;
    state.recent.table = places.recent.table;
    state.quantized = places.quantized;
    state.epochs = places.epochs;
    const std::size_t f16_bytes = paging::f16_group_bytes(config);
    copy_ring(old.sink, own.sink, static_cast<std::int64_t>(old.sink.host.size()), f16_bytes);
    if (pools_recent(layer)) {
        fork_table(old.recent, own.recent, 0, f16_pool);
        const std::size_t used = entries(rules[at].grid_pages(source.extent.length), old.recent);
        for (std::size_t i = 0; i < used; ++i)
            copy_on_device(own.recent.host[i], old.recent.host[i], f16_bytes);
    } else {
        copy_ring(old.recent, own.recent, layouts[at].recent_pages, f16_bytes);
    }
    if (pools_quantized(layer)) {
        const Filled full = filled(layer, source);
        fork_table(old.quantized, own.quantized, full.quantized, quantized_pool);
        fork_table(old.epochs, own.epochs, full.epochs, centre_pool);
    } else if (rules[at].quantizes) {
        copy_ring(old.quantized, own.quantized, layouts[at].windowed_pages,
                  paging::quantized_group_bytes(config));
        copy_ring(old.epochs, own.epochs, layouts[at].windowed_epochs,
                  paging::centre_group_bytes(config));
    }
    const std::size_t channels_bytes = static_cast<std::size_t>(config.kv_heads) *
                                       static_cast<std::size_t>(config.format.head_dim) *
                                       sizeof(float);
    const auto own_channels = [&](float* place, float*& field) {
        if (place != field) copy_on_device(place, field, channels_bytes);
        field = place;
    };
    own_channels(places.norm, state.norm);
    own_channels(places.value_centre, state.value_centre);
    for (int i = 0; i < 2; ++i) own_channels(places.query_power[i], state.query_power[i]);
    if (places.has_norm != state.has_norm)
        copy_on_device(places.has_norm, state.has_norm,
                       static_cast<std::size_t>(config.kv_heads) * sizeof(std::int32_t));
    state.has_norm = places.has_norm;
}

int DeviceCache::Impl::fork(int slot) {
    check_slot(slot);
    check_told(slot);
    const std::vector<SlotState> source = read_states(slot);
    check_free(fork_lack(slot, source));
    return create_filled([&](int to) {
        const DeviceScope scope(device);
        std::vector<SlotState> forked(rules.size());
        for (int layer = 0; layer < config.layers; ++layer) {
            const auto at = static_cast<std::size_t>(layer);
            forked[at] = fresh_states[index(layer, to)];
            fork_layer(layer, slot, to, source[at], forked[at]);
        }
        write_states(to, forked);
    });
}

DeviceCache::Impl::Groups DeviceCache::Impl::shared_lack(std::span<const int> slots) const {
    std::map<std::byte*, std::int32_t> owners; // that are left once the slots before have others
    const auto shared = [&](const Table& table, const DevicePool& pool) {
        return std::count_if(table.host.begin(), table.host.end(), [&](std::byte* group) {
            return owners.try_emplace(group, pool.owners(group)).first->second-- > 1;
        });
    };
    Groups wanted;
    for (const int slot : slots) {
        for (int layer = 0; layer < config.layers; ++layer) {
            if (!pools_quantized(layer)) continue;
            const SlotPages& own = slot_pages[index(layer, slot)];
            wanted.quantized += shared(own.quantized, quantized_pool);
            wanted.centres += shared(own.epochs, centre_pool);
        }
    }
    return wanted;
}

void DeviceCache::Impl::replace_shared(int slot) {
    const DeviceScope scope(device);
    const auto replace = [](Table& table, DevicePool& pool) {
        bool changed = false;
        for (std::byte*& group : table.host) {
            if (!pool.shared(group)) continue;
            std::byte* const own = pool.take();
            pool.give_back(group);
            group = own;
            changed = true;
        }
        if (changed) table.write(0);
    };
    for (int layer = 0; layer < config.layers; ++layer) {
        if (!pools_quantized(layer)) continue;
        SlotPages& own = slot_pages[index(layer, slot)];
        replace(own.quantized, quantized_pool);
        replace(own.epochs, centre_pool);
    }
}

void DeviceCache::Impl::permute(std::span<const int> sources) {
    const DeviceScope scope(device);
    const auto slots = static_cast<std::size_t>(config.max_sequences);
    std::vector<SlotState> all = read_all_states();
    std::vector<Fault> old_faults(slots);
    check(cudaMemcpy(old_faults.data(), faults, slots * sizeof(Fault), cudaMemcpyDeviceToHost),
          "reading what appends refused");
    std::vector<Fault> new_faults;
    for (const int source : sources)
        new_faults.push_back(old_faults[static_cast<std::size_t>(source)]);
    const auto move_all = [&](auto& of_layers) {
        for (int layer = 0; layer < config.layers; ++layer) {
            auto first = of_layers.begin() + static_cast<std::ptrdiff_t>(index(layer, 0));
            const std::vector old(first, first + config.max_sequences);
            for (const int source : sources) *first++ = old[static_cast<std::size_t>(source)];
        }
    };
    move_all(slot_pages);
    move_all(fresh_states);
    move_all(all);
    const std::vector<bool> old_in_use = in_use;
    for (std::size_t slot = 0; slot < slots; ++slot)
        in_use[slot] = old_in_use[static_cast<std::size_t>(sources[slot])];
    check(cudaMemcpy(faults, new_faults.data(), slots * sizeof(Fault), cudaMemcpyHostToDevice),
          "writing what appends refused");
    write_all_states(all);
}

DeviceCache::Impl::Groups DeviceCache::Impl::reorder_lack(const std::vector<int>& uses) const {
    Groups result;
    const std::vector<SlotState> all = read_all_states();
    // What those give back that nobody wants.
    std::vector<std::byte*> quantized;
    std::vector<std::byte*> f16;
    std::vector<std::byte*> centres;
    const auto add = [](std::vector<std::byte*>& to, const Table& table) {
        to.insert(to.end(), table.host.begin(), table.host.end());
    };
    for (int slot = 0; slot < config.max_sequences; ++slot) {
        const auto at = static_cast<std::size_t>(slot);
        if (!in_use[at]) continue;
        if (const int copies = uses[at] - 1; copies > 0) {
            const Groups one = fork_lack(slot, states_of(all, slot));
            result.quantized += copies * one.quantized;
            result.f16 += copies * one.f16;
            result.centres += copies * one.centres;
        }
        for (int layer = 0; layer < config.layers && uses[at] == 0; ++layer) {
            const SlotPages& own = slot_pages[index(layer, slot)];
            if (pools_recent(layer)) add(f16, own.recent);
            if (!pools_quantized(layer)) continue;
            add(quantized, own.quantized);
            add(centres, own.epochs);
        }
    }
    result.quantized -= quantized_pool.freed_by(std::move(quantized));
    result.f16 -= f16_pool.freed_by(std::move(f16));
    result.centres -= centre_pool.freed_by(std::move(centres));
    return result;
}

void DeviceCache::Impl::reorder(std::span<const int> sources) {
    const auto slots = static_cast<std::size_t>(config.max_sequences);
    if (sources.size() > slots)
        throw OutOfPages("cuda cache: " + std::to_string(sources.size()) +
                         " sequences asked; it was made for max_sequences = " +
                         std::to_string(slots) + "; make the cache for more");
    std::vector<int> uses(slots, 0);
    for (const int source : sources) {
        check_slot(source);
        ++uses[static_cast<std::size_t>(source)];
    }
    for (std::size_t slot = 0; slot < slots; ++slot)
        if (uses[slot] > 1) check_told(static_cast<int>(slot));
    check_free(reorder_lack(uses));
    for (std::size_t slot = 0; slot < slots; ++slot)
        if (in_use[slot] && uses[slot] == 0) remove(static_cast<int>(slot));
    std::vector<int> places;
    std::vector<bool> taken(slots, false);
    for (const int source : sources) {
        const auto at = static_cast<std::size_t>(source);
        places.push_back(taken[at] ? fork(source) : source);
        taken[at] = true;
    }
    for (int slot = 0; slot < config.max_sequences; ++slot) // the rest, in any order
        if (std::find(places.begin(), places.end(), slot) == places.end()) places.push_back(slot);
    if (!std::is_sorted(places.begin(), places.end())) permute(places);
}

} // namespace innerkv::cuda
