// SPDX-License-Identifier: Apache-2.0
// Devices, memory, streams and graph captures that a call must not be given: refused by name, nothing has changed, and
// the next call works.
#include <gtest/gtest.h>

#include "both_caches.h"

namespace innerkv::test {
namespace {

class DeviceMisuse : public OnDevice {
protected:
    DeviceMisuse() : batch_(shape_of(find_preset("base").format(64), 4, 2)) {
        SequenceSpec spec;
        spec.quantized = 64;
        batch_.add(spec);
    }

    static CacheConfig config() {
        CacheConfig config = small_config("base", 64);
        config.max_sequences = 2;
        return config;
    }

    void expect_right(cuda::Attention& attention, const DeviceBatch& device) {
        const Result result = collect(batch_, [&] {
            attention.run(device.call());
            expect_success(cudaDeviceSynchronize());
            device.fetch(batch_);
        });
        EXPECT_LT(largest_error(result, reference(batch_)), 0.02);
    }

    Batch batch_;
};

int count_devices() {
    int count = 0;
    expect_success(cudaGetDeviceCount(&count));
    return count;
}

TEST_F(DeviceMisuse, DevicesThatAreTooOld) {
    int old = -1;
    for (int device = 0; device < count_devices(); ++device) {
        cudaDeviceProp properties{};
        expect_success(cudaGetDeviceProperties(&properties, device));
        if (properties.major < 8) old = device;
    }
    if (old < 0) GTEST_SKIP() << "no device here is too old";
    const std::string message = "device " + std::to_string(old) + " (";
    for (const cuda::DeviceInfo& info : cuda::devices()) EXPECT_NE(info.index, old);
    expect_refused<cuda::Unavailable>(
        [&] {
            const cuda::Attention attention(batch_.shape, {old, 1, 1, 0});
        },
        message);
    expect_refused<cuda::Unavailable>([&] { const cuda::DeviceCache cache(config(), old); },
                                      "; the kernels need 8.0");
}

TEST_F(DeviceMisuse, MemoryOfTheHost) {
    const DeviceBatch device(batch_);
    cuda::Attention attention(batch_.shape, device.limits());
    void* pinned = nullptr;
    expect_success(cudaMallocHost(&pinned, 4096));
    cuda::AttentionCall call = device.call();
    call.q = pinned;
    expect_refused<InvalidArgument>([&] { attention.run(call); }, "q is not device memory");
    expect_success(cudaFreeHost(pinned));
    expect_right(attention, device);
}

TEST_F(DeviceMisuse, MemoryAndStreamsOfAnotherDevice) {
    if (cuda::devices().size() < 2) GTEST_SKIP() << "one device alone";
    const DeviceBatch device(batch_);
    cuda::Attention attention(batch_.shape, device.limits());
    BothCaches both(config(), 300);
    both.append({40, 40});
    both.write_rows({1, 1}, 1);
    expect_success(cudaSetDevice(1));
    const DeviceBuffer elsewhere(1 << 16);
    cudaStream_t stream = nullptr;
    expect_success(cudaStreamCreate(&stream));
    expect_success(cudaSetDevice(0));

    cuda::AttentionCall call = device.call();
    call.out = elsewhere.as();
    expect_refused<InvalidArgument>([&] { attention.run(call); }, "out is memory of device 1");
    cuda::DeviceAppend append = both.device_append(0, 1);
    append.k.data = elsewhere.as();
    expect_refused<InvalidArgument>([&] { both.device.append(append); }, "k is memory of device 1");
#if CUDART_VERSION >= 12080 // before, the runtime does not tell
    call = device.call();
    call.stream = stream;
    expect_refused<InvalidArgument>([&] { attention.run(call); }, "stream is one of device 1");
    append = both.device_append(0, 1);
    append.stream = stream;
    expect_refused<InvalidArgument>([&] { both.device.append(append); },
                                    "stream is one of device 1");
#endif
    expect_success(cudaStreamDestroy(stream));
    expect_right(attention, device);
    both.append({1, 1});
    both.expect_same();
}

/// Calls that wait or allocate, between the steps of a capture: they end it, and change nothing else.
TEST_F(DeviceMisuse, CallsThatACaptureDoesNotAllow) {
    const DeviceBatch device(batch_);
    cuda::Attention attention(batch_.shape, device.limits());
    BothCaches both(config(), 300);
    both.append({40, 40});
    const auto expect_refused_in_capture = [](const std::function<void()>& call) {
        cudaStream_t stream = nullptr;
        expect_success(cudaStreamCreate(&stream));
        expect_success(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
        expect_refused<cuda::DeviceError>(call, "before a graph is captured");
        cudaGraph_t graph = nullptr;
        EXPECT_NE(cudaStreamEndCapture(stream, &graph), cudaSuccess);
        EXPECT_EQ(graph, nullptr);
        static_cast<void>(cudaGetLastError());
        expect_success(cudaStreamDestroy(stream));
    };
    expect_refused_in_capture(
        [&] { const cuda::Attention another(batch_.shape, device.limits()); });
    expect_refused_in_capture([&] { const cuda::DeviceCache cache(config()); });
    expect_refused_in_capture([&] { both.device.reserve(0, 1800); });
    expect_refused_in_capture([&] { both.device.truncate(0, 0); });
    expect_refused_in_capture([&] { both.device.remove(0); });
    expect_refused_in_capture([&] { both.device.verify(); });
    expect_refused_in_capture([&] { static_cast<void>(both.device.fetch(0)); });
    EXPECT_EQ(both.device.length(0, 0), 40);
    expect_right(attention, device);
    both.append({260, 5});
    both.expect_same();
}

} // namespace
} // namespace innerkv::test
