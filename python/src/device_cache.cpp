// SPDX-License-Identifier: Apache-2.0
#include "device_cache.h"

#include <algorithm>
#include <string>

#include "checks.h"
#include "innerkv/error.h"

namespace innerkv::python {
namespace {

using Lock = std::lock_guard<std::mutex>;

/// A sequence that is longer than its share of the cache takes pages for so many tokens more than it needs, if they are
/// free: taking them waits for the device.
constexpr std::int64_t kTokensAhead = 256;

cuda::DeviceRows rows_of(const Tensor& tensor) {
    return {tensor.data, tensor.type, tensor.strides[0], tensor.strides[1], tensor.strides[2]};
}

bool same(const AttentionShape& a, const AttentionShape& b) {
    return a.q_heads == b.q_heads && a.scale == b.scale && a.soft_cap == b.soft_cap &&
           a.sliding_window == b.sliding_window;
}

} // namespace

SharedDeviceCache::SharedDeviceCache(const CacheConfig& config, int device)
    : cache_(config, device), device_(device),
      bounds_(static_cast<std::size_t>(config.max_sequences) *
              static_cast<std::size_t>(config.layers)),
      reserved_(static_cast<std::size_t>(config.max_sequences)),
      in_use_(static_cast<std::size_t>(config.max_sequences)),
      asking_(static_cast<std::size_t>(config.layers)) {}

std::int64_t& SharedDeviceCache::bound(int slot, int layer) {
    return bounds_[static_cast<std::size_t>(slot) * static_cast<std::size_t>(config().layers) +
                   static_cast<std::size_t>(layer)];
}

int SharedDeviceCache::create() {
    const Lock lock(mutex_);
    const int slot = cache_.create();
    in_use_[static_cast<std::size_t>(slot)] = true;
    return slot;
}

int SharedDeviceCache::fork(int slot) {
    const Lock lock(mutex_);
    const int forked = cache_.fork(slot);
    in_use_[static_cast<std::size_t>(forked)] = true;
    reserved_[static_cast<std::size_t>(forked)] = reserved_[static_cast<std::size_t>(slot)];
    for (int layer = 0; layer < config().layers; ++layer) bound(forked, layer) = bound(slot, layer);
    return forked;
}

void SharedDeviceCache::reorder(const std::vector<int>& sources) {
    const Lock lock(mutex_);
    cache_.reorder(sources);
    const std::vector<std::int64_t> bounds = bounds_;
    const std::vector<std::int64_t> reserved = reserved_;
    const auto layers = static_cast<std::ptrdiff_t>(config().layers);
    for (std::size_t slot = 0; slot < sources.size(); ++slot) {
        const auto source = static_cast<std::ptrdiff_t>(sources[slot]);
        reserved_[slot] = reserved[static_cast<std::size_t>(source)];
        std::copy_n(bounds.begin() + source * layers, layers,
                    bounds_.begin() + static_cast<std::ptrdiff_t>(slot) * layers);
        in_use_[slot] = true;
    }
    for (std::size_t slot = sources.size(); slot < in_use_.size(); ++slot)
        forget(static_cast<int>(slot));
}

void SharedDeviceCache::forget(int slot) {
    in_use_[static_cast<std::size_t>(slot)] = false;
    reserved_[static_cast<std::size_t>(slot)] = 0;
    for (int layer = 0; layer < config().layers; ++layer) bound(slot, layer) = 0;
}

void SharedDeviceCache::remove(int slot) {
    const Lock lock(mutex_);
    cache_.remove(slot);
    forget(slot);
}

void SharedDeviceCache::truncate(const std::vector<int>& slots,
                                 const std::vector<std::int64_t>& lengths) {
    check_lengths(slots.size(), lengths.size());
    const Lock lock(mutex_);
    cache_.truncate(slots, lengths);
    for (std::size_t i = 0; i < slots.size(); ++i)
        for (int layer = 0; layer < config().layers; ++layer)
            bound(slots[i], layer) = std::min(bound(slots[i], layer), lengths[i]);
}

void SharedDeviceCache::reserve(int slot, std::int64_t length) {
    const Lock lock(mutex_);
    cache_.reserve(slot, length);
    std::int64_t& reserved = reserved_[static_cast<std::size_t>(slot)];
    reserved = std::max(reserved, length);
}

std::int64_t SharedDeviceCache::length(int slot, int layer) const {
    const Lock lock(mutex_);
    return cache_.length(slot, layer);
}

CacheUsage SharedDeviceCache::usage() const {
    const Lock lock(mutex_);
    return cache_.usage();
}

std::size_t SharedDeviceCache::bytes() const {
    const Lock lock(mutex_);
    std::size_t all = cache_.bytes();
    for (const auto& kernel : kernels_) all += kernel->attention.bytes();
    return all;
}

void SharedDeviceCache::verify() {
    const Lock lock(mutex_);
    cache_.verify();
}

cuda::HostSequence SharedDeviceCache::fetch(int slot) const {
    const Lock lock(mutex_);
    return cache_.fetch(slot);
}

void SharedDeviceCache::check_slots(SlotRange slots) const {
    const int most = config().max_sequences;
    const bool inside = slots.first >= 0 && slots.count > 0 && slots.first < most &&
                        slots.count <= most - slots.first;
    const std::string asked = "sequences " + std::to_string(slots.first) + " to " +
                              std::to_string(std::int64_t{slots.first} + slots.count - 1);
    if (!inside) throw InvalidArgument(asked + "; this cache has 0 to " + std::to_string(most - 1));
    for (int slot = slots.first; slot < slots.first + slots.count; ++slot)
        if (!in_use_[static_cast<std::size_t>(slot)])
            throw InvalidArgument(asked + ": sequence " + std::to_string(slot) +
                                  " is not there; create() or fork() makes one");
}

void SharedDeviceCache::check_append(int layer, SlotRange slots, const DeviceTokens& tokens) const {
    check_layer(layer, config());
    check_rows(tokens.k, tokens.v, tokens.q, static_cast<std::size_t>(slots.count), config());
    check_slots(slots);
}

void SharedDeviceCache::check_question(int layer, SlotRange slots,
                                       const DeviceQuestion& question) const {
    check_layer(layer, config());
    check_queries(question.q, question.out, static_cast<std::size_t>(slots.count), config());
    check_slots(slots);
}

void SharedDeviceCache::append(int layer, SlotRange slots, const DeviceTokens& tokens,
                               cuda::Stream stream) {
    const Lock lock(mutex_);
    check_append(layer, slots, tokens);
    append_locked(layer, slots, tokens, stream);
}

void SharedDeviceCache::attend(int layer, SlotRange slots, const DeviceQuestion& question,
                               cuda::Stream stream) {
    const Lock lock(mutex_);
    check_question(layer, slots, question);
    attend_locked(layer, slots, question, stream);
}

void SharedDeviceCache::step(int layer, SlotRange slots, const DeviceTokens& tokens,
                             const DeviceQuestion& question, cuda::Stream stream) {
    const Lock lock(mutex_);
    check_append(layer, slots, tokens);
    check_question(layer, slots, question);
    append_locked(layer, slots, tokens, stream);
    attend_locked(layer, slots, question, stream);
}

void SharedDeviceCache::prepare(int q_heads, float scale, float soft_cap, int sliding_window) {
    const Lock lock(mutex_);
    static_cast<void>(attention_for(shape_of(q_heads, scale, soft_cap, sliding_window), 1));
}

void SharedDeviceCache::take(int layer, SlotRange slots, std::int64_t tokens, cuda::Stream stream) {
    const Lock lock(mutex_);
    check_layer(layer, config());
    check_slots(slots);
    take_pages(layer, slots, tokens, stream);
}

void SharedDeviceCache::take_pages(int layer, SlotRange slots, std::int64_t tokens,
                                   cuda::Stream stream) {
    if (cuda::is_capturing(stream)) { // nobody may wait, and how often it will run is not known
        captured_ = true;
        return;
    }
    for (int slot = slots.first; slot < slots.first + slots.count; ++slot) {
        std::int64_t& reserved = reserved_[static_cast<std::size_t>(slot)];
        std::int64_t& enqueued = bound(slot, layer);
        if (!captured_ && enqueued + tokens <= reserved) continue;
        // Tokens may have been padding, or have come in graphs: the device knows.
        enqueued = cache_.length(slot, layer);
        const std::int64_t needed = enqueued + tokens;
        if (needed <= reserved) continue;
        const std::int64_t share = config().max_tokens / config().max_sequences;
        const std::int64_t ahead = std::min(needed + kTokensAhead, config().max_tokens);
        std::int64_t taken = needed <= share ? share : std::max(needed, ahead);
        try {
            cache_.reserve(slot, taken);
        } catch (const OutOfPages&) {
            taken = needed;
            cache_.reserve(slot, taken);
        }
        reserved = taken;
    }
}

void SharedDeviceCache::append_locked(int layer, SlotRange slots, const DeviceTokens& tokens,
                                      cuda::Stream stream) {
    take_pages(layer, slots, tokens.k.tokens(), stream);
    cuda::DeviceAppend append;
    append.layer = layer;
    append.max_tokens = static_cast<int>(tokens.k.tokens());
    append.tokens = tokens.tokens;
    append.k = rows_of(tokens.k);
    append.v = rows_of(tokens.v);
    if (tokens.q) {
        append.q = rows_of(*tokens.q);
        append.q_heads = tokens.q->heads();
    }
    append.stream = stream;
    append.first_slot = slots.first;
    append.slots = slots.count;
    cache_.append(append);
    for (int slot = slots.first; slot < slots.first + slots.count; ++slot)
        bound(slot, layer) += tokens.k.tokens();
    asking_[static_cast<std::size_t>(layer)] = tokens.k.tokens();
}

void SharedDeviceCache::attend_locked(int layer, SlotRange slots, const DeviceQuestion& question,
                                      cuda::Stream stream) {
    const std::int64_t tokens = question.q.tokens();
    if (tokens > config().max_append)
        throw InvalidArgument(
            "attend: " + std::to_string(tokens) +
            " queries a sequence; on a device they are at most max_append, " +
            std::to_string(config().max_append) +
            ": append and attend to so many at once, or make the cache with a larger max_append");
    if (tokens != asking_[static_cast<std::size_t>(layer)])
        throw InvalidArgument(
            "attend: " + std::to_string(tokens) +
            " queries a sequence; on a device they are those of the tokens of the "
            "last append to the layer, of which there were " +
            std::to_string(asking_[static_cast<std::size_t>(layer)]));
    cuda::AttentionCall call;
    call.sequences = cache_.sequences(layer) + slots.first;
    call.count = slots.count;
    call.q = question.q.data;
    call.q_type = question.q.type;
    call.q_sequence_stride = question.q.strides[0];
    call.q_token_stride = question.q.strides[1];
    call.q_head_stride = question.q.strides[2];
    call.out = question.out.data;
    call.out_type = question.out.type;
    call.out_sequence_stride = question.out.strides[0];
    call.out_token_stride = question.out.strides[1];
    call.out_head_stride = question.out.strides[2];
    call.log_sum_exp = question.log_sum_exp;
    call.stream = stream;
    attention_for(
        shape_of(question.q.heads(), question.scale, question.soft_cap, question.sliding_window),
        query_limit(tokens))
        .run(call);
}

AttentionShape SharedDeviceCache::shape_of(int q_heads, float scale, float soft_cap,
                                           int sliding_window) const {
    AttentionShape shape;
    shape.format = config().format;
    shape.kv_heads = config().kv_heads;
    shape.q_heads = q_heads;
    shape.scale = scale;
    shape.soft_cap = soft_cap;
    shape.sliding_window = sliding_window;
    return shape;
}

cuda::Attention& SharedDeviceCache::attention_for(const AttentionShape& shape,
                                                  int max_query_tokens) {
    for (const auto& kernel : kernels_)
        if (kernel->max_query_tokens == max_query_tokens && same(kernel->shape, shape))
            return kernel->attention;
    cuda::AttentionLimits limits;
    limits.device = device_;
    limits.max_sequences = config().max_sequences;
    limits.max_query_tokens = max_query_tokens;
    if (max_query_tokens > 1) limits.max_history_tokens = config().max_tokens;
    const auto add = [&] {
        kernels_.push_back(std::make_unique<Kernel>(
            Kernel{shape, max_query_tokens, cuda::Attention(shape, limits)}));
    };
    try {
        add();
    } catch (const cuda::OutOfMemory&) {
        if (limits.max_history_tokens == 0) throw;
        limits.max_history_tokens = 0; // slower, but there
        add();
    }
    return kernels_.back()->attention;
}

} // namespace innerkv::python
