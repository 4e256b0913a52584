// SPDX-License-Identifier: Apache-2.0
// What is refused, with a message that names the fault, and that the next call works.
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "device.h"

namespace innerkv::test {
namespace {

class DeviceArguments : public OnDevice {
protected:
    DeviceArguments() : batch_(shape_of(find_preset("base").format(64), 4, 2)) {}

    Batch batch_;
};

TEST_F(DeviceArguments, Limits) {
    const auto make = [&](cuda::AttentionLimits limits) {
        return [this, limits] { const cuda::Attention attention(batch_.shape, limits); };
    };
    expect_refused<InvalidArgument>(make({0, 0, 1, 0}), "up to 0 sequences");
    expect_refused<InvalidArgument>(make({0, 257, 1, 0}), "1 to 256");
    expect_refused<InvalidArgument>(make({0, 1, 0, 0}), "0 query tokens");
    expect_refused<InvalidArgument>(make({0, 1, 1, -2}), "-2 blocks");
    expect_refused<InvalidArgument>(make({0, 1, 17, 0, -5}), "histories of -5 tokens");
    expect_refused<InvalidArgument>(make({99, 1, 1, 0}), "device 99");
    expect_refused<InvalidArgument>(make({-1, 1, 1, 0}), "device -1");
}

TEST_F(DeviceArguments, Shapes) {
    AttentionShape shape = batch_.shape;
    shape.kv_heads = 3;
    expect_refused<InvalidArgument>([&] { const cuda::Attention attention(shape, {}); },
                                    "4 query heads on 3 KV heads");
    shape = batch_.shape;
    shape.format.k = symmetric(3);
    expect_refused<InvalidArgument>(
        [&] { const cuda::Attention attention(shape, {}); },
        "keys of symmetric 3 and values of affine 3 bits; supported are those of "
        "the presets base (affine 3, affine 3), small (affine 3, "
        "affine 2), ");
}

TEST_F(DeviceArguments, ShapesOfTooManyRows) {
    AttentionShape shape = batch_.shape;
    shape.q_heads = 1 << 16;
    shape.kv_heads = 1;
    const cuda::AttentionLimits limits{0, 1, 1 << 16, 0};
    expect_refused<InvalidArgument>([&] { const cuda::Attention attention(shape, limits); },
                                    "65536 query heads a KV head; supported are 2^20 rows");
    shape.q_heads = shape.kv_heads = 1 << 9;
    expect_refused<InvalidArgument>([&] { const cuda::Attention attention(shape, limits); },
                                    "512 query heads; supported are fewer than 2^22 times 8 rows");
}

/// Counters are those of blocks' parts, however much may be asked.
TEST_F(DeviceArguments, LimitsTakeNoMemory) {
    const cuda::Attention few(batch_.shape, {0, 1, 8, 0});
    const cuda::Attention many(batch_.shape, {0, 256, 1 << 16, 0});
    EXPECT_EQ(few.bytes(), many.bytes());
}

TEST_F(DeviceArguments, MemoryThatIsNotThere) {
    // Counters and partial results are small, so sequences: a page in host memory, named 40,000 times.
    SequenceSpec spec;
    spec.quantized = 32;
    batch_.add(spec);
    const DeviceBatch device(batch_);
    cuda::Attention attention(batch_.shape, device.limits());
    void* rest = nullptr;
    std::size_t free = 0;
    std::size_t total = 0;
    expect_success(cudaMemGetInfo(&free, &total));
    constexpr std::size_t kLeft = 64 << 20;
    if (free > kLeft) expect_success(cudaMalloc(&rest, free - kLeft));
    SequenceView view = batch_.sequences[0].view();
    const std::vector<const std::byte*> pages(40000, view.quantized.pages[0]);
    view.quantized.pages = pages;
    view.recent = {};
    view.quantized.tokens = 32 * static_cast<std::int64_t>(pages.size());
    view.length = view.quantized.first_token + view.quantized.tokens;
    const cuda::SequenceQueries queries[] = {{&view, 0, 1}};
    expect_refused<cuda::DeviceError>(
        [&] { const cuda::DeviceSequences sequences(batch_.shape, queries); },
        "bytes for copies of sequences on device 0");
    cudaFree(rest);
    attention.run(device.call());
    expect_success(cudaDeviceSynchronize());
}

TEST_F(DeviceArguments, Calls) {
    SequenceSpec spec;
    spec.quantized = 64;
    batch_.add(spec);
    const DeviceBatch device(batch_);
    cuda::Attention attention(batch_.shape, device.limits());
    std::vector<float> host(4096);
    const auto run = [&](const std::function<void(cuda::AttentionCall&)>& change) {
        return [&attention, &device, change] {
            cuda::AttentionCall call = device.call();
            change(call);
            attention.run(call);
        };
    };
    expect_refused<InvalidArgument>(run([](auto& call) { call.count = 2; }), "up to 1");
    expect_refused<InvalidArgument>(run([](auto& call) { call.count = -1; }), "-1 sequences");
    expect_refused<InvalidArgument>(run([&](auto& call) { call.q = host.data(); }),
                                    "q is not device memory");
    expect_refused<InvalidArgument>(run([&](auto& call) { call.out = host.data(); }),
                                    "out is not device memory");
    expect_refused<InvalidArgument>(run([](auto& call) { call.out = nullptr; }), "out");
    expect_refused<InvalidArgument>(run([&](auto& call) { call.log_sum_exp = host.data(); }),
                                    "log_sum_exp is not device memory");
    expect_refused<InvalidArgument>(run([](auto& call) { call.sequences = nullptr; }),
                                    "the array of sequences");
    expect_refused<InvalidArgument>(run([](auto& call) { call.q_head_stride = 63; }),
                                    "q_head_stride is 63 elements");
    expect_refused<InvalidArgument>(run([](auto& call) { call.out_head_stride = 0; }),
                                    "out_head_stride is 0 elements");
    expect_refused<InvalidArgument>(
        run([](auto& call) { call.q = static_cast<const std::byte*>(call.q) + 2; }),
        "q does not begin at a multiple of the 4 bytes");
    expect_refused<InvalidArgument>(
        run([](auto& call) { call.out = static_cast<std::byte*>(call.out) + 1; }),
        "out does not begin");
    expect_refused<InvalidArgument>(run([](auto& call) {
                                        call.log_sum_exp = reinterpret_cast<float*>(
                                            reinterpret_cast<std::byte*>(call.log_sum_exp) + 2);
                                    }),
                                    "log_sum_exp does not begin");
    const Result result = collect(batch_, [&] {
        attention.run(device.call());
        expect_success(cudaDeviceSynchronize());
        device.fetch(batch_);
    });
    EXPECT_LT(largest_error(result, reference(batch_)), 0.02);
}

/// Strides between tokens and sequences, where there are several.
TEST_F(DeviceArguments, Strides) {
    SequenceSpec spec;
    spec.quantized = 64;
    for (int i = 0; i < 2; ++i) batch_.add(spec, 3);
    const DeviceBatch device(batch_);
    cuda::Attention attention(batch_.shape, device.limits());
    for (const auto& [stride, name] :
         {std::pair{&cuda::AttentionCall::q_token_stride, "q_token_stride"},
          {&cuda::AttentionCall::out_token_stride, "out_token_stride"},
          {&cuda::AttentionCall::q_sequence_stride, "q_sequence_stride"},
          {&cuda::AttentionCall::out_sequence_stride, "out_sequence_stride"}}) {
        cuda::AttentionCall call = device.call();
        call.*stride = 0;
        expect_refused<InvalidArgument>([&] { attention.run(call); },
                                        std::string(name) + " is 0 elements");
    }
    const Result result = collect(batch_, [&] {
        attention.run(device.call());
        expect_success(cudaDeviceSynchronize());
        device.fetch(batch_);
    });
    EXPECT_LT(largest_error(result, reference(batch_)), 0.02);
}

TEST_F(DeviceArguments, SequencesWhoseHeadsDisagree) {
    SequenceSpec spec;
    spec.quantized = 32;
    spec.transform.rotate = true;
    batch_.add(spec);
    SequenceView view = batch_.sequences[0].view();
    std::vector<KeyTransform> transforms(view.transforms.begin(), view.transforms.end());
    transforms[1].rotate = false;
    view.transforms = transforms;
    const cuda::SequenceQueries queries[] = {{&view, 0, 1}};
    expect_refused<InvalidArgument>(
        [&] { const cuda::DeviceSequences sequences(batch_.shape, queries); },
        "rotate all or none");
}

} // namespace
} // namespace innerkv::test
