// SPDX-License-Identifier: Apache-2.0
// A cache on a CUDA device and attention on it behind one lock: what Python's Cache calls there. A sequence is a slot,
// and a call is for a range of slots, row i of each tensor being the range's i-th. Knows nothing of Python.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "innerkv/cuda.h"
#include "innerkv/cuda_cache.h"
#include "tensor.h"

namespace innerkv::python {

struct SlotRange {
    int first = 0;
    int count = 0;
};

/// Rows that slots append. `tokens` may be null: all of the tensors' tokens, in every slot.
struct DeviceTokens {
    Tensor k;
    Tensor v;
    const Tensor* q = nullptr;
    const std::int32_t* tokens = nullptr; ///< [slots] in device memory
};

/// Queries of the tokens that the last append to the layer brought.
struct DeviceQuestion {
    Tensor q;
    Tensor out;                   ///< the shape of q
    float* log_sum_exp = nullptr; ///< [slots, query_limit(tokens), q_heads]; optional
    float scale = 0.0f;
    float soft_cap = 0.0f;
    int sliding_window = 0;
};

class SharedDeviceCache {
public:
    SharedDeviceCache(const CacheConfig& config, int device);

    const CacheConfig& config() const { return cache_.config(); }
    int device() const { return device_; }

    int create();
    int fork(int slot);
    void reorder(const std::vector<int>& sources);
    void remove(int slot);
    /// All or none; each slot once.
    void truncate(const std::vector<int>& slots, const std::vector<std::int64_t>& lengths);
    /// Takes pages for `length` tokens in all.
    void reserve(int slot, std::int64_t length);
    std::int64_t length(int slot, int layer) const;
    CacheUsage usage() const;
    std::size_t bytes() const; ///< of device memory held
    void verify();
    cuda::HostSequence fetch(int slot) const;

    /// Takes pages for so many tokens more in each slot, all or OutOfPages; waits for the device where too few are
    /// reserved, and does nothing where `stream` is captured.
    void take(int layer, SlotRange slots, std::int64_t tokens, cuda::Stream stream);

    /// Takes pages as take() does; other than that only enqueues.
    void append(int layer, SlotRange slots, const DeviceTokens& tokens, cuda::Stream stream);
    void attend(int layer, SlotRange slots, const DeviceQuestion& question, cuda::Stream stream);
    void step(int layer, SlotRange slots, const DeviceTokens& tokens,
              const DeviceQuestion& question, cuda::Stream stream);
    /// Makes what attend() needs for one query token, so that it allocates nothing.
    void prepare(int q_heads, float scale, float soft_cap, int sliding_window);
    /// Query tokens that a call with so many is laid out for.
    int query_limit(std::int64_t tokens) const { return tokens == 1 ? 1 : config().max_append; }

private:
    struct Kernel {
        AttentionShape shape;
        int max_query_tokens;
        cuda::Attention attention;
    };

    void check_slots(SlotRange slots) const;
    void check_append(int layer, SlotRange slots, const DeviceTokens& tokens) const;
    void check_question(int layer, SlotRange slots, const DeviceQuestion& question) const;
    void append_locked(int layer, SlotRange slots, const DeviceTokens& tokens, cuda::Stream stream);
    void attend_locked(int layer, SlotRange slots, const DeviceQuestion& question,
                       cuda::Stream stream);
    void take_pages(int layer, SlotRange slots, std::int64_t tokens, cuda::Stream stream);
    void forget(int slot);
    cuda::Attention& attention_for(const AttentionShape& shape, int max_query_tokens);
    AttentionShape shape_of(int q_heads, float scale, float soft_cap, int sliding_window) const;
    std::int64_t& bound(int slot, int layer);

    mutable std::mutex mutex_; ///< DeviceCache's calls must not overlap
    cuda::DeviceCache cache_;
    int device_;
    std::vector<std::unique_ptr<Kernel>> kernels_;
    std::vector<std::int64_t> bounds_;   ///< [slot, layer]: tokens that a slot has at most
    std::vector<std::int64_t> reserved_; ///< [slot]
    std::vector<bool> in_use_;           ///< [slot]
    bool captured_ = false; ///< an append is in a graph, whose replays bounds_ do not see
    std::vector<std::int64_t> asking_; ///< [layer]: tokens of the last append
};

} // namespace innerkv::python
