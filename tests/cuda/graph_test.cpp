// SPDX-License-Identifier: Apache-2.0
// A step captured in a CUDA graph once and replayed while the sequences grow; calls that follow each other.
#include <gtest/gtest.h>

#include "device.h"

namespace innerkv::test {
namespace {

class DeviceGraph : public OnDevice {};

/// The array of sequences is the same memory throughout; what it says changes between replays.
TEST_F(DeviceGraph, ReplaysAsTheContextGrows) {
    std::deque<Batch> steps;
    for (const int pages : {0, 3, 40, 41, 500}) {
        Batch& batch = steps.emplace_back(shape_of(find_preset("base").format(128), 8, 2));
        SequenceSpec spec;
        spec.quantized = 32 * pages;
        spec.recent = 96 + pages % 32;
        batch.add(spec);
        spec.quantized = 64;
        batch.add(spec);
    }
    std::deque<DeviceBatch> devices;
    for (const Batch& batch : steps) devices.emplace_back(batch);

    DeviceBuffer sequences(2 * sizeof(cuda::Sequence));
    cuda::AttentionCall call = devices[0].call();
    expect_success(cudaMemcpy(sequences.as(), call.sequences, 2 * sizeof(cuda::Sequence),
                              cudaMemcpyDeviceToDevice));
    call.sequences = sequences.as<cuda::Sequence>();
    cuda::Attention attention(steps[0].shape, devices[0].limits());
    const Graph graph([&](cuda::Stream stream) {
        call.stream = stream;
        attention.run(call);
    });
    const std::size_t elements = static_cast<std::size_t>(2 * call.q_sequence_stride);
    for (std::size_t step = 0; step < steps.size(); ++step) {
        SCOPED_TRACE(step);
        expect_success(cudaMemcpy(sequences.as(), devices[step].sequences().data(),
                                  2 * sizeof(cuda::Sequence), cudaMemcpyDeviceToDevice));
        expect_success(cudaMemcpy(const_cast<void*>(call.q), devices[step].call().q,
                                  elements * sizeof(float), cudaMemcpyDeviceToDevice));
        const Result result = collect(steps[0], [&] {
            devices[0].clear_outputs();
            graph.replay();
            devices[0].fetch(steps[0]);
        });
        EXPECT_LT(largest_error(result, reference(steps[step])), 0.02);
    }
}

/// Partial results and counters are as a call found them.
TEST_F(DeviceGraph, CallsOfOneObjectFollowEachOther) {
    Batch batch(shape_of(find_preset("base").format(128), 8, 2));
    SequenceSpec spec;
    spec.quantized = 32 * 200;
    batch.add(spec, 2);
    DeviceBatch device(batch);
    cuda::Attention attention(batch.shape, device.limits());
    Result first;
    for (int call = 0; call < 20; ++call) {
        const Result result = collect(batch, [&] {
            device.clear_outputs();
            for (int i = 0; i < 3; ++i) attention.run(device.call());
            expect_success(cudaDeviceSynchronize());
            device.fetch(batch);
        });
        if (call == 0) first = result;
        EXPECT_EQ(result.out, first.out);
        EXPECT_EQ(result.log_sum_exp, first.log_sum_exp);
    }
    EXPECT_LT(largest_error(first, reference(batch)), 0.02);
}

} // namespace
} // namespace innerkv::test
