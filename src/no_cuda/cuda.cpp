// SPDX-License-Identifier: Apache-2.0
// include/innerkv/cuda.h in a build without CUDA: there are no devices, and no objects on them.
#include "innerkv/cuda.h"

#include "innerkv/cuda_cache.h"

namespace innerkv::cuda {
namespace {

constexpr const char* kReason = "this build has no CUDA; configure with -DINNERKV_CUDA=ON";

[[noreturn]] void refuse() { throw Unavailable(std::string("cuda: ") + kReason); }

} // namespace

bool is_capturing(Stream /*stream*/) { return false; }
std::vector<DeviceInfo> devices() { return {}; }
std::string unavailable_reason() { return kReason; }

struct DeviceSequences::Impl {};
DeviceSequences::DeviceSequences(const AttentionShape& /*shape*/,
                                 std::span<const SequenceQueries> /*sequences*/, int /*device*/) {
    refuse();
}
DeviceSequences::~DeviceSequences() = default;
DeviceSequences::DeviceSequences(DeviceSequences&&) noexcept = default;
DeviceSequences& DeviceSequences::operator=(DeviceSequences&&) noexcept = default;
const Sequence* DeviceSequences::data() const { refuse(); }
int DeviceSequences::size() const { refuse(); }
std::size_t DeviceSequences::bytes() const { refuse(); }

struct Attention::Impl {};
Attention::Attention(const AttentionShape& /*shape*/, const AttentionLimits& /*limits*/) {
    refuse();
}
Attention::~Attention() = default;
Attention::Attention(Attention&&) noexcept = default;
Attention& Attention::operator=(Attention&&) noexcept = default;
void Attention::run(const AttentionCall& /*call*/) { refuse(); }
std::size_t Attention::bytes() const { refuse(); }

struct HostSequence::Impl {};
HostSequence::HostSequence(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HostSequence::~HostSequence() = default;
HostSequence::HostSequence(HostSequence&&) noexcept = default;
HostSequence& HostSequence::operator=(HostSequence&&) noexcept = default;
int HostSequence::layers() const { refuse(); }
SequenceView HostSequence::view(int /*layer*/) const { refuse(); }

struct DeviceCache::Impl {};
DeviceCache::DeviceCache(const CacheConfig& /*config*/, int /*device*/) { refuse(); }
std::size_t DeviceCache::plan(const CacheConfig& /*config*/) { refuse(); }
DeviceCache::~DeviceCache() = default;
DeviceCache::DeviceCache(DeviceCache&&) noexcept = default;
DeviceCache& DeviceCache::operator=(DeviceCache&&) noexcept = default;
const CacheConfig& DeviceCache::config() const { refuse(); }
int DeviceCache::create() { refuse(); }
void DeviceCache::remove(int /*slot*/) { refuse(); }
int DeviceCache::fork(int /*slot*/) { refuse(); }
void DeviceCache::reorder(std::span<const int> /*sources*/) { refuse(); }
void DeviceCache::reserve(int /*slot*/, std::int64_t /*length*/) { refuse(); }
void DeviceCache::append(const DeviceAppend& /*append*/) { refuse(); }
void DeviceCache::verify() { refuse(); }
void DeviceCache::truncate(int /*slot*/, std::int64_t /*length*/) { refuse(); }
void DeviceCache::truncate(std::span<const int> /*slots*/,
                           std::span<const std::int64_t> /*lengths*/) {
    refuse();
}
std::int64_t DeviceCache::length(int /*slot*/, int /*layer*/) const { refuse(); }
const Sequence* DeviceCache::sequences(int /*layer*/) const { refuse(); }
int DeviceCache::load(std::span<const SequenceView> /*layers*/) { refuse(); }
HostSequence DeviceCache::fetch(int /*slot*/) const { refuse(); }
CacheUsage DeviceCache::usage() const { refuse(); }
std::size_t DeviceCache::bytes() const { refuse(); }

} // namespace innerkv::cuda
