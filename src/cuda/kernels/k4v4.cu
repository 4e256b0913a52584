// SPDX-License-Identifier: Apache-2.0
#include "cuda/kernels/instantiate.cuh"

namespace innerkv::cuda {

KernelEntry k4v4_kernel(int blocks, bool packed) {
    return instantiate<Side<CodecKind::affine, 4>, Side<CodecKind::affine, 4>>(blocks, packed);
}

} // namespace innerkv::cuda
