// SPDX-License-Identifier: Apache-2.0
// Attention of chunks on the rows that expand.cuh wrote: 128 query rows a block, one warpgroup that sends tiles of keys
// and values to shared memory, two that multiply 64 rows each. While the tensor cores work on the logits of one tile and
// the values of the tile before, nothing waits but the warpgroup itself; the other's exponentials fill the gaps.
#pragma once

#include "cuda/prefill/chunk_rows.cuh"

namespace innerkv::cuda {

/// One warp calls it, of which one lane sends.
template <class C>
__device__ void send_tiles(const AttentionParams& params, const PrefillMemory& memory,
                           ChunkShared<C>& shared) {
    Turn turn;
    const int parts = all_parts(*memory.plan);
    for (int index = static_cast<int>(blockIdx.x); index < parts;
         index += static_cast<int>(gridDim.x)) {
        const ChunkItem item = chunk_item<C>(params, *memory.plan, index);
        if (threadIdx.x % kWarpSize != 0) continue;
        const int first = memory.plan->chunk[item.chunk].first_tile;
        for (int tile = item.first_tile; tile < item.last_tile; ++tile) {
            const unsigned char* from =
                memory.tiles +
                (std::int64_t{first + tile} * params.kv_heads + item.kv_head) * 2 * C::kSideBytes;
            shared.keys_free[turn.stage].wait(turn.parity ^ 1);
            shared.keys_full[turn.stage].arrive_and_expect(C::kSideBytes);
            copy_to_shared(shared.keys[turn.stage], from, C::kSideBytes,
                           shared.keys_full[turn.stage]);
            shared.values_free[turn.stage].wait(turn.parity ^ 1);
            shared.values_full[turn.stage].arrive_and_expect(C::kSideBytes);
            copy_to_shared(shared.values[turn.stage], from + C::kSideBytes, C::kSideBytes,
                           shared.values_full[turn.stage]);
            turn.next();
        }
    }
}

template <class C>
__global__ void __launch_bounds__(kAttendThreads, 1)
    attend_kernel(const __grid_constant__ AttentionParams params,
                  const __grid_constant__ PrefillMemory memory) {
    extern __shared__ unsigned char dynamic[];
    // The dynamic part need not begin at a multiple of 1024.
    const std::uint32_t rest = shared_address(dynamic) % 1024;
    auto& shared = *reinterpret_cast<ChunkShared<C>*>(dynamic + (rest == 0 ? 0 : 1024 - rest));
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            shared.keys_full[stage].init(1);
            shared.values_full[stage].init(1);
            shared.keys_free[stage].init(kConsumers * kWarpgroup / kWarpSize);
            shared.values_free[stage].init(kConsumers * kWarpgroup / kWarpSize);
        }
        publish_barriers();
    }
    __syncthreads();
    const int warpgroup = uniform(static_cast<int>(threadIdx.x) / kWarpgroup);
    if (warpgroup == kConsumers) {
        give_registers<40>();
        if (threadIdx.x / kWarpSize == kConsumers * kWarpgroup / kWarpSize)
            send_tiles(params, memory, shared);
    } else {
        take_registers<232>();
        ChunkRows<C> rows(params, memory, shared, warpgroup);
        const int parts = all_parts(*memory.plan);
        for (int index = static_cast<int>(blockIdx.x); index < parts;
             index += static_cast<int>(gridDim.x)) {
            const ChunkItem item = chunk_item<C>(params, *memory.plan, index);
            rows.attend(memory.plan->chunk[item.chunk], item);
        }
    }
}

} // namespace innerkv::cuda
