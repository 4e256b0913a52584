// SPDX-License-Identifier: Apache-2.0
#include "cuda/kernels/instantiate.cuh"

namespace innerkv::cuda {

KernelEntry k8v8_kernel(int blocks, bool packed) {
    return instantiate<Side<CodecKind::symmetric, 8>, Side<CodecKind::symmetric, 8>>(blocks,
                                                                                     packed);
}

} // namespace innerkv::cuda
