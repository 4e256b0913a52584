// SPDX-License-Identifier: Apache-2.0
#include "device_cache.h"

#include <algorithm>
#include <string>

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

void check_heads(const char* name, const Tensor& tensor, const CacheConfig& config) {
    if (tensor.heads() == config.kv_heads) return;
    throw InvalidArgument(std::string(name) + " has " + std::to_string(tensor.heads()) +
                          " heads (shape " + innerkv::python::shape_of(tensor) +
                          "); this cache has " + std::to_string(config.kv_heads) + " KV heads");
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
      asking_(static_cast<std::size_t>(config.layers)) {}

std::int64_t& SharedDeviceCache::bound(int slot, int layer) {
    return bounds_[static_cast<std::size_t>(slot) * static_cast<std::size_t>(config().layers) +
                   static_cast<std::size_t>(layer)];
}

int SharedDeviceCache::create() {
    const Lock lock(mutex_);
    const int slot = cache_.create();
    reserved_[static_cast<std::size_t>(slot)] = 0;
    for (int layer = 0; layer < config().layers; ++layer) bound(slot, layer) = 0;
    return slot;
}

int SharedDeviceCache::fork(int slot) {
    const Lock lock(mutex_);
    const int forked = cache_.fork(slot);
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
    }
}

void SharedDeviceCache::remove(int slot) {
    const Lock lock(mutex_);
    cache_.remove(slot);
}

void SharedDeviceCache::truncate(int slot, std::int64_t length) {
    const Lock lock(mutex_);
    cache_.truncate(slot, length);
    for (int layer = 0; layer < config().layers; ++layer)
        bound(slot, layer) = std::min(bound(slot, layer), length);
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
    if (slots.first >= 0 && slots.count > 0 && slots.first + slots.count <= config().max_sequences)
        return;
    throw InvalidArgument("sequences " + std::to_string(slots.first) + " to " +
                          std::to_string(slots.first + slots.count - 1) + "; this cache has 0 to " +
                          std::to_string(config().max_sequences - 1));
}

void SharedDeviceCache::check_tokens(SlotRange slots, const DeviceTokens& tokens) const {
    check_slots(slots);
    const auto count = static_cast<std::size_t>(slots.count);
    const int head_dim = config().format.head_dim;
    check_tensor("k", tokens.k, count, head_dim);
    check_tensor("v", tokens.v, count, head_dim);
    check_heads("k", tokens.k, config());
    check_heads("v", tokens.v, config());
    if (tokens.q) check_tensor("q", *tokens.q, count, head_dim);
    if (tokens.v.tokens() != tokens.k.tokens() ||
        (tokens.q && tokens.q->tokens() != tokens.k.tokens()))
        throw InvalidArgument("k, v and q differ in tokens: " + python::shape_of(tokens.k) + ", " +
                              python::shape_of(tokens.v) +
                              (tokens.q ? ", " + python::shape_of(*tokens.q) : ""));
}

void SharedDeviceCache::check_question(SlotRange slots, const DeviceQuestion& question) const {
    check_slots(slots);
    check_tensor("q", question.q, static_cast<std::size_t>(slots.count), config().format.head_dim);
    if (!std::equal(question.q.shape, question.q.shape + 4, question.out.shape))
        throw InvalidArgument("out has the shape " + python::shape_of(question.out) + "; q has " +
                              python::shape_of(question.q) + ", and out must have the same");
}

void SharedDeviceCache::append(int layer, SlotRange slots, const DeviceTokens& tokens,
                               cuda::Stream stream) {
    check_tokens(slots, tokens);
    const Lock lock(mutex_);
    append_locked(layer, slots, tokens, stream);
}

void SharedDeviceCache::attend(int layer, SlotRange slots, const DeviceQuestion& question,
                               cuda::Stream stream) {
    check_question(slots, question);
    const Lock lock(mutex_);
    attend_locked(layer, slots, question, stream);
}

void SharedDeviceCache::step(int layer, SlotRange slots, const DeviceTokens& tokens,
                             const DeviceQuestion& question, cuda::Stream stream) {
    check_tokens(slots, tokens);
    check_question(slots, question);
    const Lock lock(mutex_);
    append_locked(layer, slots, tokens, stream);
    attend_locked(layer, slots, question, stream);
}

void SharedDeviceCache::prepare(int q_heads, float scale, float soft_cap, int sliding_window) {
    const Lock lock(mutex_);
    static_cast<void>(attention_for(shape_of(q_heads, scale, soft_cap, sliding_window), 1));
}

void SharedDeviceCache::take_pages(int layer, SlotRange slots, std::int64_t tokens) {
    for (int slot = slots.first; slot < slots.first + slots.count; ++slot) {
        std::int64_t& reserved = reserved_[static_cast<std::size_t>(slot)];
        std::int64_t& enqueued = bound(slot, layer);
        if (enqueued + tokens <= reserved) continue;
        // Tokens may have been padding: the device knows.
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
    if (layer < 0 || layer >= config().layers)
        throw InvalidArgument("layer " + std::to_string(layer) + "; this cache has layers 0 to " +
                              std::to_string(config().layers - 1));
    take_pages(layer, slots, tokens.k.tokens());
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
    const cuda::Sequence* const sequences = cache_.sequences(layer);
    const std::int64_t tokens = question.q.tokens();
    if (tokens != asking_[static_cast<std::size_t>(layer)])
        throw InvalidArgument(
            "attend: " + std::to_string(tokens) +
            " queries a sequence; on a device they are those of the tokens of the "
            "last append to the layer, of which there were " +
            std::to_string(asking_[static_cast<std::size_t>(layer)]));
    cuda::AttentionCall call;
    call.sequences = sequences + slots.first;
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
