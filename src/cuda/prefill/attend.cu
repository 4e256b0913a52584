// SPDX-License-Identifier: Apache-2.0
#include "cuda/prefill/attend.cuh"

#include "cuda/prefill/kernels.h"

namespace innerkv::cuda {
namespace {

constexpr int kAlignment = 1024; // what the start of dynamic shared memory may lack

template <int blocks>
PrefillKernel entry() {
    using C = ChunkConfig<blocks>;
    return {reinterpret_cast<const void*>(&attend_kernel<C>), kAttendThreads,
            static_cast<int>(sizeof(ChunkShared<C>)) + kAlignment};
}

} // namespace

PrefillKernel attend_kernel_of(int blocks) {
    switch (blocks) {
    case 1:
        return entry<1>();
    case 2:
        return entry<2>();
    case 3:
        return entry<3>();
    case 4:
        return entry<4>();
    default:
        return {};
    }
}

} // namespace innerkv::cuda
