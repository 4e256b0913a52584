// SPDX-License-Identifier: Apache-2.0
// The public classes: each forwards to what does the work.
#include "innerkv/cache.h"

#include <utility>

#include "cache/append.h"
#include "cache/state.h"

namespace innerkv {
namespace {

CacheConfig checked(CacheConfig config) {
    paging::validate_config(config);
    return config;
}

} // namespace

struct Append::Impl : paging::LayerAppend {
    using LayerAppend::LayerAppend;
};

struct Cache::Impl : paging::CacheState {
    using CacheState::CacheState;
};

Append::Append(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Append::~Append() = default;
Append::Append(Append&&) noexcept = default;
Append& Append::operator=(Append&&) noexcept = default;

int Append::parts() const { return impl_->parts(); }
void Append::run(int part) { impl_->run(part); }
bool Append::commit() noexcept { return impl_->commit(); }

Cache::Cache(CacheConfig config) : impl_(std::make_unique<Impl>(checked(std::move(config)))) {}
Cache::~Cache() = default;
Cache::Cache(Cache&&) noexcept = default;
Cache& Cache::operator=(Cache&&) noexcept = default;

const CacheConfig& Cache::config() const { return impl_->config; }

SequenceId Cache::create() { return impl_->create(); }
SequenceId Cache::fork(SequenceId sequence) { return impl_->fork(sequence); }
void Cache::remove(SequenceId sequence) { impl_->remove(sequence); }
void Cache::reserve(SequenceId sequence, int tokens) { impl_->reserve(sequence, tokens); }

Append Cache::begin_append(int layer, std::span<const AppendRows> batch) {
    return Append(std::make_unique<Append::Impl>(*impl_, layer, batch));
}

void Cache::append(int layer, std::span<const AppendRows> batch) {
    paging::LayerAppend(*impl_, layer, batch).finish();
}

void Cache::truncate(SequenceId sequence, std::int64_t length) {
    const Truncation one{sequence, length};
    impl_->truncate({&one, 1});
}

void Cache::truncate(std::span<const Truncation> batch) { impl_->truncate(batch); }

void Cache::settle(SequenceId sequence) { impl_->settle(sequence); }

std::int64_t Cache::length(SequenceId sequence, int layer) const {
    impl_->check_layer(layer);
    return impl_->sequence(sequence).layers[static_cast<std::size_t>(layer)].length;
}

SequenceView Cache::view(int layer, SequenceId sequence) const {
    return impl_->view(layer, sequence);
}

CacheUsage Cache::usage() const { return impl_->usage(); }

} // namespace innerkv
