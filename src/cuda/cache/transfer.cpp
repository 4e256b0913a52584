// SPDX-License-Identifier: Apache-2.0
// Sequences between host and device: pages, centres and transforms as views show them, byte for byte.
#include <algorithm>
#include <cstring>
#include <string>

#include "cache/state.h"
#include "cuda/cache/cache.h"
#include "cuda/cache/view.h"

namespace innerkv::cuda {
namespace {

/// Pieces of device memory in a row of their own: those that lie one behind the other go in one copy.
class Pieces {
public:
    Pieces(std::size_t bytes, std::span<std::byte* const> places)
        : bytes_(bytes), places_(places) {}

    void write(const std::byte* host) const {
        for_each_stretch([&](std::size_t first, std::size_t count) {
            check(cudaMemcpy(places_[first], host + first * bytes_, count * bytes_,
                             cudaMemcpyHostToDevice),
                  "writing pages");
        });
    }
    void read(std::byte* host) const {
        for_each_stretch([&](std::size_t first, std::size_t count) {
            check(cudaMemcpy(host + first * bytes_, places_[first], count * bytes_,
                             cudaMemcpyDeviceToHost),
                  "reading pages");
        });
    }

private:
    template <typename Copy>
    void for_each_stretch(const Copy& copy) const {
        for (std::size_t first = 0; first < places_.size();) {
            std::size_t count = 1;
            while (first + count < places_.size() &&
                   places_[first + count] == places_[first] + count * bytes_)
                ++count;
            copy(first, count);
            first += count;
        }
    }

    std::size_t bytes_;
    std::span<std::byte* const> places_;
};

/// `count` entries of a table from `first` on; of a ring of `ring` groups, round and round.
std::vector<std::byte*> entries(const Table& table, std::int64_t first, std::size_t count,
                                std::int64_t ring = 0) {
    std::vector<std::byte*> result;
    for (std::size_t i = 0; i < count; ++i) {
        const std::size_t at = static_cast<std::size_t>(first) + i;
        result.push_back(table.host.at(ring > 0 ? at % static_cast<std::size_t>(ring) : at));
    }
    return result;
}

/// Page groups of a run, one behind the other.
std::vector<std::byte> gather(const PageRun& run, int kv_heads, std::size_t page_bytes) {
    std::vector<std::byte> all(run.pages.size() * static_cast<std::size_t>(kv_heads) * page_bytes);
    std::byte* to = all.data();
    for (const std::byte* page : run.pages)
        for (int head = 0; head < kv_heads; ++head, to += page_bytes)
            std::memcpy(to, page + static_cast<std::size_t>(head) * run.head_stride, page_bytes);
    return all;
}

} // namespace

void DeviceCache::Impl::load_layer(int layer, int slot, const SequenceView& view,
                                   SlotState& state) const {
    const auto at = static_cast<std::size_t>(layer);
    const SlotPages& own = slot_pages[index(layer, slot)];
    state.extent = extent_of(rules[at], view);
    const Stretches stretches(rules[at], state.extent);
    const auto copy = [&](const Table& table, const Stretch& stretch, const PageRun& run,
                          std::size_t page_bytes, std::int64_t ring = 0) {
        const std::vector<std::byte*> places = entries(table, stretch.first, stretch.count, ring);
        Pieces(page_bytes * static_cast<std::size_t>(config.kv_heads), places)
            .write(gather(run, config.kv_heads, page_bytes).data());
    };
    const std::size_t f16_bytes = paging::f16_format(config.format.head_dim).page_bytes();
    copy(own.sink, stretches.sink, view.sink, f16_bytes);
    copy(own.recent, stretches.recent, view.recent, f16_bytes, layouts[at].recent_pages);
    copy(own.quantized, stretches.quantized, view.quantized, config.format.page_bytes());
    const std::vector<std::byte*> centres =
        entries(own.epochs, stretches.epochs.first,
                std::min(stretches.epochs.count, view.centres.epochs.size()));
    for (std::size_t i = 0; i < centres.size(); ++i)
        check(cudaMemcpy(centres[i], view.centres.epochs[i],
                         static_cast<std::size_t>(config.kv_heads) *
                             paging::f16_row_bytes(config.format.head_dim),
                         cudaMemcpyHostToDevice),
              "writing centres");
    if (rules[at].calibration_tokens == 0 || view.transforms.empty()) return;
    write_transforms(state, view.transforms);
    state.calibrated = 1;
}

int DeviceCache::Impl::load(std::span<const SequenceView> layers) {
    if (layers.size() != rules.size())
        throw InvalidArgument("cuda cache: " + std::to_string(layers.size()) +
                              " views to load; the cache has " + std::to_string(rules.size()) +
                              " layers");
    std::vector<Groups> wanted;
    for (int layer = 0; layer < config.layers; ++layer) {
        const SequenceView& view = layers[static_cast<std::size_t>(layer)];
        check_view(layer, view);
        // A sequence that was truncated keeps pages that one of its length would not have quantized yet.
        const paging::LayerRule& rule = rules[static_cast<std::size_t>(layer)];
        const std::int64_t quantized = rule.grid_page(extent_of(rule, view).recent_first);
        wanted.push_back(groups_for(layer, rule.grid_pages(view.length),
                                    std::max(quantized, rule.settled_pages(view.length))));
    }
    return create_filled([&](int slot) {
        grow(slot, wanted);
        std::vector<SlotState> loaded = read_states(slot);
        const DeviceScope scope(device);
        for (int layer = 0; layer < config.layers; ++layer)
            load_layer(layer, slot, layers[static_cast<std::size_t>(layer)],
                       loaded[static_cast<std::size_t>(layer)]);
        write_states(slot, loaded);
    });
}

struct HostSequence::Impl {
    struct Layer {
        std::vector<std::byte> pages[3]; ///< sink, quantized, recent
        std::vector<const std::byte*> tables[3];
        std::vector<std::byte> centres;
        std::vector<const std::byte*> epochs;
        std::vector<float> channels[3]; ///< norm, centre, value centre
        std::vector<KeyTransform> transforms;
        SequenceView view;
    };
    std::vector<Layer> layers;
};

namespace {

/// Memory of pages that begins at a multiple of their alignment.
std::byte* aligned(std::vector<std::byte>& memory, std::size_t bytes) {
    memory.resize(bytes + kPageAlignment);
    const auto at = reinterpret_cast<std::uintptr_t>(memory.data());
    return memory.data() + (kPageAlignment - at % kPageAlignment) % kPageAlignment;
}

/// Reads groups to `memory` and lists them in `table`; `ring` as entries() has it.
void read_groups(const Table& from, const Stretch& stretch, std::size_t bytes,
                 std::vector<std::byte>& memory, std::vector<const std::byte*>& table,
                 std::int64_t ring = 0) {
    std::byte* const to = aligned(memory, stretch.count * bytes);
    const std::vector<std::byte*> places = entries(from, stretch.first, stretch.count, ring);
    Pieces(bytes, places).read(to);
    for (std::size_t i = 0; i < stretch.count; ++i) table.push_back(to + i * bytes);
}

PageRun run_of(const std::vector<const std::byte*>& table, std::size_t page_bytes,
               std::int64_t first, std::int64_t tokens) {
    return {table, page_bytes, first, table.empty() ? 0 : tokens, page_bytes};
}

std::vector<float> read_channels(const CacheConfig& config, const float* from) {
    if (from == nullptr) return {};
    std::vector<float> result(static_cast<std::size_t>(config.kv_heads * config.format.head_dim));
    check(cudaMemcpy(result.data(), from, result.size() * sizeof(float), cudaMemcpyDeviceToHost),
          "reading transforms");
    return result;
}

} // namespace

HostSequence::HostSequence(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HostSequence::~HostSequence() = default;
HostSequence::HostSequence(HostSequence&&) noexcept = default;
HostSequence& HostSequence::operator=(HostSequence&&) noexcept = default;

int HostSequence::layers() const { return static_cast<int>(impl_->layers.size()); }
SequenceView HostSequence::view(int layer) const {
    if (layer < 0 || layer >= layers())
        throw InvalidArgument("layer " + std::to_string(layer) + " does not exist; there are " +
                              std::to_string(layers()));
    return impl_->layers[static_cast<std::size_t>(layer)].view;
}

namespace {

/// Transforms as Cache::view has them.
template <typename Layer>
void read_transforms(const CacheConfig& config, bool rotate, const SlotState& state, Layer& layer) {
    std::vector<std::int32_t> has_norm(static_cast<std::size_t>(config.kv_heads), 0);
    if (state.has_norm != nullptr)
        check(cudaMemcpy(has_norm.data(), state.has_norm, has_norm.size() * sizeof(std::int32_t),
                         cudaMemcpyDeviceToHost),
              "reading transforms");
    const float* arrays[] = {state.norm, state.centre, state.value_centre};
    for (int i = 0; i < 3; ++i) layer.channels[i] = read_channels(config, arrays[i]);
    for (std::size_t head = 0; head < has_norm.size(); ++head) {
        const auto of_head = [&](const std::vector<float>& channels) {
            return channels.empty()
                       ? nullptr
                       : channels.data() + head * static_cast<std::size_t>(config.format.head_dim);
        };
        layer.transforms.push_back({has_norm[head] != 0 ? of_head(layer.channels[0]) : nullptr,
                                    of_head(layer.channels[1]), of_head(layer.channels[2]),
                                    rotate});
    }
}

template <typename Layer>
void read_layer(const CacheConfig& config, const paging::LayerRule& rule, const LayerParams& params,
                const SlotPages& own, const SlotState& state, std::int64_t recent_ring,
                Layer& layer) {
    const paging::LayerExtent& extent = state.extent;
    const Stretches stretches(rule, extent);
    const std::size_t f16_group = paging::f16_group_bytes(config);
    read_groups(own.sink, stretches.sink, f16_group, layer.pages[0], layer.tables[0]);
    read_groups(own.quantized, stretches.quantized, paging::quantized_group_bytes(config),
                layer.pages[1], layer.tables[1]);
    read_groups(own.recent, stretches.recent, f16_group, layer.pages[2], layer.tables[2],
                recent_ring);
    read_groups(own.epochs, stretches.epochs, paging::centre_group_bytes(config), layer.centres,
                layer.epochs);
    const auto f16_stride = static_cast<std::size_t>(params.f16_stride);
    const std::int64_t sink_end = std::min<std::int64_t>(extent.length, rule.sink_tokens);
    const std::int64_t sink_first = std::min(extent.dropped, sink_end);
    SequenceView& view = layer.view;
    view.sink = run_of(layer.tables[0], f16_stride, sink_first, sink_end - sink_first);
    view.quantized = run_of(layer.tables[1], config.format.page_bytes(), extent.quantized_first,
                            extent.recent_first - extent.quantized_first);
    view.recent = run_of(layer.tables[2], f16_stride, extent.recent_first,
                         extent.length - extent.recent_first);
    view.length = extent.length;
    const bool transforms = params.rotate != 0 || rule.calibration_tokens > 0 ||
                            config.transform.norm == KeyNormPolicy::calibrated;
    if (rule.quantizes && transforms && state.calibrated != 0) {
        read_transforms(config, params.rotate != 0, state, layer);
        view.transforms = layer.transforms;
    }
    if (extent.quantized_pages() == 0 || rule.epoch_pages == 0) return;
    view.centres = {layer.epochs, rule.epoch_pages,
                    static_cast<int>(rule.grid_page(extent.quantized_first) % rule.epoch_pages)};
}

} // namespace

int DeviceCache::load(std::span<const SequenceView> layers) { return impl_->load(layers); }

HostSequence DeviceCache::fetch(int slot) const {
    impl_->check_slot(slot);
    const std::vector<SlotState> states = impl_->read_states(slot);
    const DeviceScope scope(impl_->device);
    auto host = std::make_unique<HostSequence::Impl>();
    host->layers.resize(states.size());
    for (std::size_t layer = 0; layer < states.size(); ++layer)
        read_layer(impl_->config, impl_->rules[layer], impl_->params[layer],
                   impl_->slot_pages[impl_->index(static_cast<int>(layer), slot)], states[layer],
                   impl_->layouts[layer].recent_pages, host->layers[layer]);
    return HostSequence(std::move(host));
}

} // namespace innerkv::cuda
