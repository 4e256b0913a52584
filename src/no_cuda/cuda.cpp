// SPDX-License-Identifier: Apache-2.0
// include/innerkv/cuda.h in a build without CUDA: there are no devices, and no objects on them.
#include "innerkv/cuda.h"

namespace innerkv::cuda {
namespace {

constexpr const char* kReason = "this build has no CUDA; configure with -DINNERKV_CUDA=ON";

[[noreturn]] void refuse() { throw Unavailable(std::string("cuda: ") + kReason); }

} // namespace

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

} // namespace innerkv::cuda
