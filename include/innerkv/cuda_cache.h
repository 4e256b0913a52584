// SPDX-License-Identifier: Apache-2.0
// A KV cache in the memory of a CUDA device: what innerkv::Cache holds, byte for byte, filled and read without the
// host. A step is append() and cuda::Attention::run on sequences(layer): both enqueue a fixed number of launches of a
// fixed shape, so that a CUDA graph captured once is right while sequences grow.
//
// Sequences are slots, 0 .. max_sequences - 1, and a call is for all of them or a range: rows of a slot that is not in
// use, or that brings no token, are not looked at. Host calls (create, reserve, ...) wait for the device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "innerkv/cache.h"
#include "innerkv/cuda.h"

namespace innerkv::cuda {

/// Rows in device memory, [slot, token, head, head_dim], last dimension contiguous; strides in elements.
struct DeviceRows {
    const void* data = nullptr;
    RowType type = RowType::f32;
    std::ptrdiff_t slot_stride = 0;
    std::ptrdiff_t token_stride = 0;
    std::ptrdiff_t head_stride = 0;
};

/// New tokens of one layer.
struct DeviceAppend {
    int layer = 0;
    int max_tokens = 1; ///< of a slot, up to CacheConfig::max_append
    /// [slots] in device memory: how many tokens each slot brings, 0 to max_tokens; null: max_tokens each. Another
    /// number is refused, and verify() tells.
    const std::int32_t* tokens = nullptr;
    DeviceRows k;
    DeviceRows v;
    DeviceRows q = {}; ///< as AppendRows::q
    int q_heads = 0;
    Stream stream = nullptr;
    int first_slot = 0; ///< rows are those of slots first_slot .. first_slot + slots - 1
    int slots = 0;      ///< 0: all from first_slot on
};

/// A sequence's cache in host memory, as SequenceView shows it; of one layer after the other.
class HostSequence {
public:
    ~HostSequence();
    HostSequence(HostSequence&&) noexcept;
    HostSequence& operator=(HostSequence&&) noexcept;

    int layers() const;
    SequenceView view(int layer) const; ///< valid as long as this is

private:
    friend class DeviceCache;
    struct Impl;
    explicit HostSequence(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

/// Calls of one object must not overlap on the host; appends and attention of one layer must follow each other on the
/// device. Not there, other than in innerkv::Cache: exact_prefill, layer_codecs, truncate() into quantized pages.
class DeviceCache {
public:
    /// Takes all memory at once. Throws InvalidArgument where the config is not supported, Unavailable,
    /// DeviceError where memory is short.
    explicit DeviceCache(const CacheConfig& config, int device = 0);
    /// Bytes of device memory that a cache of this config takes, as bytes() says afterwards; needs no device. Throws
    /// InvalidArgument as the constructor does, Unavailable in a build without CUDA.
    static std::size_t plan(const CacheConfig& config);
    ~DeviceCache();
    DeviceCache(DeviceCache&&) noexcept;
    DeviceCache& operator=(DeviceCache&&) noexcept;

    const CacheConfig& config() const;

    /// A slot for a new, empty sequence. Throws OutOfPages where all are in use.
    int create();
    void remove(int slot); ///< and what verify() had to tell of it

    /// A slot with the same contents and room for as many tokens. Quantized pages are shared, windows copied. Throws
    /// OutOfPages, and nothing has changed, where all slots are in use or there are too few pages; InvalidArgument
    /// where verify() has a refused append of the slot to tell.
    int fork(int slot);

    /// Slot i becomes what slot sources[i] was; slots that are in nobody's place are removed. Where a source is there
    /// more than once the others are forks. Throws as fork() and remove() do, and nothing has changed.
    void reorder(std::span<const int> sources);

    /// Takes pages so that the slot may grow to `length` tokens in all. Throws OutOfPages, and nothing has changed,
    /// where there are too few.
    void reserve(int slot, std::int64_t length);

    /// Enqueues. Settles as Cache::append does, then stores the rows; the new tokens become those that ask in
    /// sequences(layer). A slot whose rows are not finite or beyond fp16, whose number of tokens is out of range, for
    /// which no pages were reserved, or whose fp16 window is full (load() brought a long one),
    /// stays as it is in this layer, asks nothing, and takes no more in any until verify() has told; layers before have
    /// the tokens, and what attention writes for the slot means nothing. Throws InvalidArgument for
    /// arguments out of range and pointers of another device, DeviceError where a launch is refused.
    void append(const DeviceAppend& append);

    /// Waits; throws InvalidArgument or OutOfPages naming what an append since the last call refused, the
    /// lowest slot's first. That slot's layers are then all as long as the shortest, as before the refused step, and
    /// it goes on. Where a layer was so many steps ahead that truncate() could not go back, or had counted queries of
    /// more than one step for its key norm, the message says so, and the slot takes nothing, which every verify()
    /// tells, until truncate(slot, 0) or remove().
    void verify();

    /// Keeps the first `length` tokens in every layer. Throws InvalidArgument where that cuts into quantized
    /// pages, or a window has dropped what the shorter sequence needs. 0 works always, but for OutOfPages where the
    /// slot shares pages with a fork and there are too few others.
    void truncate(int slot, std::int64_t length);
    /// The first lengths[i] tokens of slot slots[i], of each slot once: of all, or nothing has changed.
    void truncate(std::span<const int> slots, std::span<const std::int64_t> lengths);

    std::int64_t length(int slot, int layer) const;

    /// [max_sequences] in device memory, for AttentionCall::sequences; the same address for life.
    const Sequence* sequences(int layer) const;

    /// Copies a sequence to a slot: a view per layer, as Cache::view gives them under this config. Throws as
    /// create() and reserve() do, InvalidArgument where the views do not fit the config. Runs tell the size of their
    /// pages, not the codec: pages of another one with the same size are taken, and read wrongly. Queries that calibration
    /// has seen so far are not in a view: move a sequence before its first tokens or behind its calibration.
    int load(std::span<const SequenceView> layers);
    HostSequence fetch(int slot) const;

    /// Pages that hold tokens now, forks' own counted each, and their bytes; bytes_reserved as bytes(). Waits.
    CacheUsage usage() const;

    std::size_t bytes() const; ///< of device memory held

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

} // namespace innerkv::cuda
