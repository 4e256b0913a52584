// SPDX-License-Identifier: Apache-2.0
#include "cuda/kernels/instantiate.cuh"

namespace innerkv::cuda {

KernelEntry small_kernel(int blocks, bool packed) {
    return instantiate<Side<CodecKind::affine, 3>, Side<CodecKind::affine, 2>>(blocks, packed);
}

} // namespace innerkv::cuda
