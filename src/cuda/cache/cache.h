// SPDX-License-Identifier: Apache-2.0
// The host's side of a device cache: what memory it has, which slot has which pages, and states of slots where they
// come and go. Between these calls the device alone knows how far a slot is.
#pragma once

#include <span>
#include <vector>

#include "cuda/cache/show.h"
#include "cuda/device.h"
#include "innerkv/cuda_cache.h"

namespace innerkv::cuda {

/// Groups of equal size, in one piece of device memory, each with any number of owners.
class DevicePool {
public:
    DevicePool() = default;
    DevicePool(std::byte* memory, std::size_t group_bytes, std::int64_t groups)
        : memory_(memory), group_bytes_(group_bytes), never_used_(groups),
          owners_(static_cast<std::size_t>(groups), 0) {}

    std::int64_t free() const {
        return never_used_ + static_cast<std::int64_t>(given_back_.size());
    }
    std::byte* take();
    void share(std::byte* group) { ++owners_[number(group)]; }
    bool shared(std::byte* group) const { return owners(group) > 1; }
    std::int32_t owners(std::byte* group) const { return owners_[number(group)]; }
    /// Groups that nobody has any more once each of these, listed as often as it is given back, has been.
    std::int64_t freed_by(std::vector<std::byte*> given_back) const;
    void give_back(std::byte* group) {
        if (--owners_[number(group)] == 0) given_back_.push_back(group);
    }

private:
    std::size_t number(const std::byte* group) const {
        return static_cast<std::size_t>(group - memory_) / group_bytes_;
    }

    std::byte* memory_ = nullptr;
    std::size_t group_bytes_ = 0;
    std::int64_t never_used_ = 0; ///< the last groups
    std::vector<std::byte*> given_back_;
    std::vector<std::int32_t> owners_;
};

/// A table of page groups, in device memory and here: as many entries here as are known.
struct Table {
    std::byte** device = nullptr;
    std::vector<std::byte*> host;

    /// Copies entries from `first` on to the device.
    void write(std::size_t first) const;
};

/// Pages of one slot in one layer.
struct SlotPages {
    Table sink;
    Table recent;    ///< a ring, twice; or pooled
    Table quantized; ///< pooled, or a ring over and over
    Table epochs;
};

/// How many groups a layer has of each kind.
struct LayerLayout {
    std::int64_t recent_pages = 0;   ///< of a slot's ring; 0: pooled
    std::int64_t windowed_pages = 0; ///< likewise, of quantized pages; 0: pooled, or none
    std::int64_t windowed_epochs = 0;
};

/// Pieces of memory one behind the other, at multiples of a page's alignment.
class Cursor {
public:
    explicit Cursor(std::byte* base) : base_(reinterpret_cast<std::uintptr_t>(base)) {}

    template <typename T>
    T* take(std::size_t count) {
        const std::size_t at = size_;
        size_ = (size_ + count * sizeof(T) + kPageAlignment - 1) / kPageAlignment * kPageAlignment;
        return reinterpret_cast<T*>(base_ + at);
    }
    std::byte* groups(std::int64_t count, std::size_t bytes) {
        return take<std::byte>(static_cast<std::size_t>(count) * bytes);
    }
    std::size_t size() const { return size_; }

private:
    std::uintptr_t base_;
    std::size_t size_ = 0;
};

struct DeviceCache::Impl {
    /// Without memory: what place(nullptr) needs.
    explicit Impl(const CacheConfig& cache_config);
    Impl(const CacheConfig& cache_config, int cache_device);

    std::size_t index(int layer, int slot) const {
        return static_cast<std::size_t>(layer) * static_cast<std::size_t>(config.max_sequences) +
               static_cast<std::size_t>(slot);
    }

    /// Throw InvalidArgument.
    void check_slot(int slot) const;
    void check_layer(int layer) const;

    int create();
    void remove(int slot);
    void reserve(int slot, std::int64_t length);
    void append(const DeviceAppend& append) const;
    std::vector<Fault> read_faults() const;
    void write_fault(int slot, const Fault& fault) const;
    /// Throws what the first of them was, which is forgotten.
    void check_faults();
    /// Cuts all layers of a slot to the shortest; false, and nothing has changed, where one cannot be cut there.
    bool level(int slot) const;
    /// Throws InvalidArgument where verify() has something to tell of the slot.
    void check_told(int slot) const;
    void truncate(std::span<const int> slots, std::span<const std::int64_t> lengths);
    /// States of a slot cut at `length`; throws InvalidArgument where it cannot be.
    std::vector<SlotState> truncated(int slot, std::int64_t length) const;
    int fork(int slot);
    void reorder(std::span<const int> sources);
    CacheUsage usage() const;
    int load(std::span<const SequenceView> layers);
    /// Throw InvalidArgument unless load() takes such a view.
    void check_view(int layer, const SequenceView& view) const;
    void check_extent(int layer, const paging::LayerExtent& extent) const;
    void check_room(int layer, const paging::LayerExtent& extent) const;
    void check_centres(int layer, const SequenceView& view,
                       const paging::LayerExtent& extent) const;
    void check_transforms(int layer, const SequenceView& view) const;
    void load_layer(int layer, int slot, const SequenceView& view, SlotState& state) const;

    /// A new slot that `fill` has filled. Where that throws there is none, and its pages are given back.
    template <typename Fill>
    int create_filled(const Fill& fill) {
        const int slot = create();
        try {
            fill(slot);
        } catch (...) {
            remove(slot);
            throw;
        }
        return slot;
    }

    /// States of a slot in all layers; what was enqueued before has run.
    std::vector<SlotState> read_states(int slot) const;
    /// And what attention sees of them; nobody asks.
    void write_states(int slot, const std::vector<SlotState>& written) const;
    /// The same of all slots, [layers, max_sequences].
    std::vector<SlotState> read_all_states() const;
    void write_all_states(const std::vector<SlotState>& written) const;
    /// Those of one slot.
    std::vector<SlotState> states_of(const std::vector<SlotState>& all, int slot) const;

    void choose_layouts();
    /// Gives everything its place from `base` on; returns the bytes behind it.
    std::size_t place(std::byte* base);
    void place_pools(Cursor& cursor);
    void fill();
    void write_transforms(const SlotState& state, std::span<const KeyTransform> transforms) const;
    /// Groups of the pools: in one layer's tables, or what is lacking there.
    struct Groups {
        std::int64_t quantized = 0;
        std::int64_t f16 = 0;
        std::int64_t centres = 0;
    };
    /// That a layer has for so many grid pages, of which the first `quantized` are; rings need none.
    Groups groups_for(int layer, std::int64_t grid_pages, std::int64_t quantized) const;
    /// And for a sequence of `length` tokens that only grew.
    Groups groups_for(int layer, std::int64_t length) const;
    Groups lack(int layer, int slot, const Groups& wanted) const;
    /// Extends the slot's tables to these, a layer each. Throws OutOfPages, and nothing has changed.
    void grow(int slot, std::span<const Groups> wanted);
    /// Throws OutOfPages.
    void check_free(const Groups& wanted) const;
    bool pools_quantized(int layer) const;
    bool pools_recent(int layer) const;

    /// Entries of a layer's pooled tables that hold something: what a fork shares.
    struct Filled {
        std::size_t quantized = 0;
        std::size_t epochs = 0;
    };
    Filled filled(int layer, const SlotState& state) const;
    /// Groups that a fork of the slot takes.
    Groups fork_lack(int slot, const std::vector<SlotState>& slot_states) const;
    /// And reorder(), which uses each slot so many times.
    Groups reorder_lack(const std::vector<int>& uses) const;
    void fork_layer(int layer, int from, int to, const SlotState& source, SlotState& state);
    /// Groups of the slots that forks have too, each counted once less than it has owners at most.
    Groups shared_lack(std::span<const int> slots) const;
    /// Takes others instead of those; for slots that begin anew.
    void replace_shared(int slot);
    /// Slot i gets what slot sources[i] has, a permutation of all slots.
    void permute(std::span<const int> sources);

    CacheConfig config;
    int device = 0;
    std::vector<float> calibrated_values; ///< what config.calibrated points to
    std::vector<paging::LayerRule> rules;
    std::vector<LayerLayout> layouts;
    std::vector<LayerParams> params; ///< of appends to each layer
    SlotState* states = nullptr;     ///< [layers, max_sequences], as Sequence
    Sequence* sequences = nullptr;
    Fault* faults = nullptr;      ///< [max_sequences]
    std::size_t zeroed_bytes = 0; ///< these, and what is cleared with them
    DeviceMemory memory;
    DevicePool quantized_pool;
    DevicePool f16_pool;
    DevicePool centre_pool;
    std::vector<SlotPages> slot_pages;   ///< [layers, max_sequences]
    std::vector<SlotState> fresh_states; ///< likewise: of empty sequences
    std::vector<bool> in_use;            ///< [max_sequences]
};

} // namespace innerkv::cuda
