// SPDX-License-Identifier: Apache-2.0
#include "device_timer.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <vector>

#include "check.h"
#include "statistics.h"

namespace innerkv::bench {
namespace {

constexpr int kReadBlocks = 1056;
constexpr int kReadThreads = 512;

__global__ void read_all(const uint4* from, std::size_t count, unsigned* sink) {
    const std::size_t stride = std::size_t{gridDim.x} * blockDim.x;
    unsigned sum = 0;
    std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
    for (; i + 3 * stride < count; i += 4 * stride) {
        uint4 four[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
            four[j] = __ldcs(from + i + static_cast<std::size_t>(j) * stride);
#pragma unroll
        for (int j = 0; j < 4; ++j) sum += four[j].x ^ four[j].y ^ four[j].z ^ four[j].w;
    }
    for (; i < count; i += stride) {
        const uint4 one = __ldcs(from + i);
        sum += one.x ^ one.y ^ one.z ^ one.w;
    }
    if (sum == 0x12345678) *sink = sum;
}

constexpr int kDotChains = 8;
constexpr int kDotRounds = 4096;

/// Products of registers that do not wait for one another.
__global__ void multiply(int* sink) {
    const unsigned a = threadIdx.x;
    int sums[kDotChains][4] = {};
    for (int round = 0; round < kDotRounds; ++round)
#pragma unroll
        for (auto& c : sums)
            asm volatile(
                "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %4, "
                "%4, %4}, {%5, %5}, {%0, %1, %2, %3};"
                : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                : "r"(a), "r"(a + 1));
    int sum = 0;
    for (const auto& c : sums) sum += c[0] + c[1] + c[2] + c[3];
    if (sum == 0x12345678) *sink = sum;
}

struct Free {
    void operator()(unsigned char* memory) const { cudaFree(memory); }
};
using Memory = std::unique_ptr<unsigned char, Free>;

/// Not zeros, which can be read faster.
Memory filled(std::size_t bytes) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes));
    Memory owned(static_cast<unsigned char*>(memory));
    check(cudaMemset(memory, 0x5b, bytes));
    return owned;
}

} // namespace

struct DeviceGraph::Impl {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;

    Impl() = default;
    Impl(const Impl&) = delete;
    Impl& operator=(const Impl&) = delete;
    ~Impl() {
        if (executable != nullptr) cudaGraphExecDestroy(executable);
        if (graph != nullptr) cudaGraphDestroy(graph);
    }
};

DeviceGraph::DeviceGraph(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DeviceGraph::~DeviceGraph() = default;
DeviceGraph::DeviceGraph(DeviceGraph&&) noexcept = default;
DeviceGraph& DeviceGraph::operator=(DeviceGraph&&) noexcept = default;

struct DeviceTimer::Impl {
    static constexpr std::size_t kLeastFlushBytes = std::size_t{128} << 20;
    std::size_t flush_bytes = 0; ///< twice the second-level cache
    int multiprocessors = 0;
    cudaStream_t stream = nullptr;
    cudaEvent_t start = nullptr;
    cudaEvent_t stop = nullptr;
    Memory flushed;

    explicit Impl(int device) {
        check(cudaSetDevice(device));
        check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
        check(cudaStreamCreate(&stream));
        check(cudaEventCreate(&start));
        check(cudaEventCreate(&stop));
        int cache_bytes = 0;
        check(cudaDeviceGetAttribute(&cache_bytes, cudaDevAttrL2CacheSize, device));
        flush_bytes = std::max(kLeastFlushBytes, 2 * static_cast<std::size_t>(cache_bytes));
        flushed = filled(flush_bytes);
    }
    Impl(const Impl&) = delete;
    Impl& operator=(const Impl&) = delete;
    ~Impl() {
        cudaEventDestroy(stop);
        cudaEventDestroy(start);
        cudaStreamDestroy(stream);
    }

    void read(const Memory& memory, std::size_t bytes) const {
        read_all<<<kReadBlocks, kReadThreads, 0, stream>>>(
            reinterpret_cast<const uint4*>(memory.get()), bytes / sizeof(uint4),
            reinterpret_cast<unsigned*>(flushed.get()));
    }
    /// By reading: what is written would be written back later.
    void flush() const { read(flushed, flush_bytes); }

    double seconds(const std::function<void()>& work) const {
        check(cudaEventRecord(start, stream));
        work();
        check(cudaEventRecord(stop, stream));
        check(cudaEventSynchronize(stop));
        float milliseconds = 0;
        check(cudaEventElapsedTime(&milliseconds, start, stop));
        return 1e-3 * static_cast<double>(milliseconds);
    }
    double fastest(const std::function<void()>& work) const {
        double least = seconds(work);
        for (int i = 0; i < 4; ++i) least = std::min(least, seconds(work));
        return least;
    }
};

DeviceTimer::DeviceTimer(int device) : impl_(std::make_unique<Impl>(device)) {}
DeviceTimer::~DeviceTimer() = default;
cuda::Stream DeviceTimer::stream() const { return impl_->stream; }

double DeviceTimer::read_bandwidth() const {
    constexpr std::size_t kBytes = std::size_t{4} << 30;
    const Memory memory = filled(kBytes);
    return static_cast<double>(kBytes) / impl_->fastest([&] { impl_->read(memory, kBytes); });
}

double DeviceTimer::dot_rate() const {
    constexpr int kThreads = 256;
    const int blocks = 8 * impl_->multiprocessors;
    const double seconds = impl_->fastest([&] {
        multiply<<<blocks, kThreads, 0, impl_->stream>>>(
            reinterpret_cast<int*>(impl_->flushed.get()));
    });
    return 16.0 * 8 * 32 * kDotChains * kDotRounds * (kThreads / 32.0) * blocks / seconds;
}

DeviceGraph DeviceTimer::capture(const std::function<void()>& work) const {
    auto graph = std::make_unique<DeviceGraph::Impl>();
    check(cudaStreamBeginCapture(impl_->stream, cudaStreamCaptureModeThreadLocal));
    work();
    check(cudaStreamEndCapture(impl_->stream, &graph->graph));
    check(cudaGraphInstantiate(&graph->executable, graph->graph, 0));
    return DeviceGraph(std::move(graph));
}

double DeviceTimer::time_us(const DeviceGraph& graph) const {
    impl_->flush();
    return 1e6 *
           impl_->seconds([&] { check(cudaGraphLaunch(graph.impl_->executable, impl_->stream)); });
}

double DeviceTimer::time_inside_graph_us(const std::function<void()>& work) const {
    constexpr int kPairs = 20;
    constexpr int kRounds = 7;
    const auto repeated = [&](const std::function<void()>& step) {
        return capture([&] {
            for (int i = 0; i < kPairs; ++i) step();
        });
    };
    const DeviceGraph with = repeated([&] {
        impl_->flush();
        work();
    });
    const DeviceGraph without = repeated([&] { impl_->flush(); });
    std::vector<double> differences;
    for (int round = 0; round < kRounds; ++round)
        differences.push_back((time_us(with) - time_us(without)) / kPairs);
    return median(differences);
}

} // namespace innerkv::bench
