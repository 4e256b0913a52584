// SPDX-License-Identifier: Apache-2.0
#include "cuda/prefill/prefill.h"

#include <algorithm>

#include "cuda/kernels/table.h"

namespace innerkv::cuda {
namespace {

/// sm_90a code runs on 9.0 and on nothing else.
bool runs_on(int device) {
    return attribute(cudaDevAttrComputeCapabilityMajor, device) == 9 &&
           attribute(cudaDevAttrComputeCapabilityMinor, device) == 0;
}

/// Of a launch that fills the device.
int resident_blocks(const PrefillKernel& kernel, int device) {
    check(cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               kernel.shared_bytes),
          "asking for shared memory");
    int blocks = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
              &blocks, kernel.function, kernel.threads,
              static_cast<std::size_t>(kernel.shared_bytes)),
          "asking how many blocks fit");
    return blocks * attribute(cudaDevAttrMultiProcessorCount, device);
}

void launch(const PrefillKernel& kernel, int blocks, void** arguments, Stream stream) {
    check(cudaLaunchKernel(kernel.function, dim3(static_cast<unsigned>(blocks)),
                           dim3(static_cast<unsigned>(kernel.threads)), arguments,
                           static_cast<std::size_t>(kernel.shared_bytes), stream),
          "launching attention of chunks");
}

} // namespace

Prefill::Prefill(const AttentionShape& shape, int device, int sequences, std::int64_t tokens) {
    if (tokens == 0 || !runs_on(device)) return;
    const DeviceScope scope(device);
    const int dim = shape.format.padded_dim();
    tile_tokens_ = tile_tokens(dim);
    expand_ = expand_kernel_of(shape.format);
    attend_ = attend_kernel_of(shape.format.blocks());
    if (expand_.function == nullptr || attend_.function == nullptr) throw_no_kernel(shape.format);
    expand_blocks_ = resident_blocks(expand_, device);
    const int blocks = resident_blocks(attend_, device);
    const int parts = 2 * blocks;
    // Each sequence's history begins a tile.
    const std::int64_t tiles = tokens / tile_tokens_ + sequences;
    plan_ = DeviceMemory(device, sizeof(PrefillPlan), "a plan of chunks");
    others_ = DeviceMemory(device, static_cast<std::size_t>(sequences) * sizeof(Sequence),
                           "sequences that are no chunks");
    tiles_ = DeviceMemory(device,
                          2 * static_cast<std::size_t>(tiles) *
                              static_cast<std::size_t>(shape.kv_heads) *
                              static_cast<std::size_t>(tile_side_bytes(dim)),
                          "what chunks see as fp16 rows");
    const std::size_t warpgroups = static_cast<std::size_t>(parts) * kConsumers;
    parts_ = DeviceMemory(device,
                          warpgroups * static_cast<std::size_t>(part_floats(dim)) * sizeof(float),
                          "partial results of chunks");
    arrivals_ = DeviceMemory(device, warpgroups * sizeof(int), "counters of chunks");
    check(cudaMemset(arrivals_.data(), 0, arrivals_.bytes()), "clearing counters");
    memory_ = {reinterpret_cast<PrefillPlan*>(plan_.data()),
               reinterpret_cast<Sequence*>(others_.data()),
               reinterpret_cast<unsigned char*>(tiles_.data()),
               reinterpret_cast<float*>(parts_.data()),
               reinterpret_cast<int*>(arrivals_.data()),
               static_cast<int>(tiles),
               parts,
               blocks};
}

void Prefill::run(AttentionParams params, Stream stream) const {
    PrefillMemory memory = memory_;
    int tokens = tile_tokens_;
    void* arguments[] = {&params, &memory, &tokens}; // kernels of two take the first two
    launch(prefill_plan_kernel(), 1, arguments, stream);
    launch(expand_, expand_blocks_, arguments, stream);
    launch(attend_, memory.blocks, arguments, stream);
}

} // namespace innerkv::cuda
