// SPDX-License-Identifier: Apache-2.0
// Decode attention on a device in microseconds, the second-level cache cold: a table by preset, batch and context.
//
//     cuda_attention_timing [preset,...] [q_heads] [kv_heads] [head_dim]
//
// Pages are quantized from Gaussian rows, 64 of them, copied to as many places as the context has. Two figures:
// events around a replay of a CUDA graph that holds one call; and the time by which a graph of many
// (flush, call) pairs exceeds one of as many flushes, which leaves out what starting a graph takes.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "innerkv/codec.h"
#include "innerkv/cuda.h"

namespace {

using namespace innerkv;

void check(cudaError_t status) {
    if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

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
    if (sum == 0x12345678) *sink = sum;
}

struct Flush {
    unsigned char* memory = nullptr;
    static constexpr std::size_t kBytes = std::size_t{256} << 20;
    Flush() {
        check(cudaMalloc(&memory, kBytes));
        check(cudaMemset(memory, 1, kBytes));
    }
    void run(cudaStream_t stream) const {
        read_all<<<1056, 512, 0, stream>>>(reinterpret_cast<const uint4*>(memory),
                                           kBytes / 2 / sizeof(uint4),
                                           reinterpret_cast<unsigned*>(memory));
    }
};

double read_bandwidth(const Flush& flush, cudaStream_t stream) {
    cudaEvent_t start{};
    cudaEvent_t stop{};
    check(cudaEventCreate(&start));
    check(cudaEventCreate(&stop));
    constexpr std::size_t kBytes = std::size_t{4} << 30;
    unsigned char* memory = nullptr;
    check(cudaMalloc(&memory, kBytes));
    check(cudaMemset(memory, 1, kBytes));
    float best = 1e9f;
    for (int i = 0; i < 5; ++i) {
        check(cudaEventRecord(start, stream));
        read_all<<<1056, 512, 0, stream>>>(reinterpret_cast<const uint4*>(memory),
                                           kBytes / sizeof(uint4),
                                           reinterpret_cast<unsigned*>(flush.memory));
        check(cudaEventRecord(stop, stream));
        check(cudaEventSynchronize(stop));
        float ms = 0;
        check(cudaEventElapsedTime(&ms, start, stop));
        best = std::min(best, ms);
    }
    check(cudaFree(memory));
    return static_cast<double>(kBytes) / best / 1e6;
}

cudaGraphExec_t capture(cudaStream_t stream, const std::function<void()>& work) {
    cudaGraph_t graph{};
    cudaGraphExec_t executable{};
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    work();
    check(cudaStreamEndCapture(stream, &graph));
    check(cudaGraphInstantiate(&executable, graph, 0));
    check(cudaGraphDestroy(graph));
    return executable;
}

struct Times {
    double events = 0;
    double difference = 0;
};

double timed_us(cudaStream_t stream, const std::function<void()>& before, cudaGraphExec_t graph) {
    static cudaEvent_t start = nullptr;
    static cudaEvent_t stop = nullptr;
    if (start == nullptr) {
        check(cudaEventCreate(&start));
        check(cudaEventCreate(&stop));
    }
    before();
    check(cudaEventRecord(start, stream));
    check(cudaGraphLaunch(graph, stream));
    check(cudaEventRecord(stop, stream));
    check(cudaEventSynchronize(stop));
    float ms = 0;
    check(cudaEventElapsedTime(&ms, start, stop));
    return 1e3 * static_cast<double>(ms);
}

double median(std::vector<double> values) {
    std::nth_element(values.begin(),
                     values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
    return values[values.size() / 2];
}

Times measure(cudaStream_t stream, const Flush& flush, const std::function<void()>& call) {
    constexpr int kRounds = 31;
    constexpr int kPairs = 20;
    const cudaGraphExec_t once = capture(stream, call);
    const cudaGraphExec_t pairs = capture(stream, [&] {
        for (int i = 0; i < kPairs; ++i) {
            flush.run(stream);
            call();
        }
    });
    const cudaGraphExec_t flushes = capture(stream, [&] {
        for (int i = 0; i < kPairs; ++i) flush.run(stream);
    });
    std::vector<double> events;
    std::vector<double> with;
    std::vector<double> without;
    for (int round = 0; round < kRounds; ++round)
        events.push_back(timed_us(
            stream, [&] { flush.run(stream); }, once));
    for (int round = 0; round < 7; ++round) {
        with.push_back(timed_us(
            stream, [] {}, pairs));
        without.push_back(timed_us(
            stream, [] {}, flushes));
    }
    check(cudaGraphExecDestroy(once));
    check(cudaGraphExecDestroy(pairs));
    check(cudaGraphExecDestroy(flushes));
    return {median(events), (median(with) - median(without)) / kPairs};
}

struct Case {
    int batch;
    std::int64_t context;
};

/// Host pages that sequences are made of.
struct Pages {
    std::vector<std::vector<unsigned char>> memory;
    std::vector<const std::byte*> at;

    Pages(const PageFormat& format, int kv_heads, int count) {
        std::mt19937 random(1);
        std::normal_distribution<float> normal;
        const auto values = static_cast<std::size_t>(kPageTokens * format.head_dim);
        std::vector<float> k(values);
        std::vector<float> v(values);
        for (int i = 0; i < count; ++i) {
            auto& page =
                memory.emplace_back(format.page_bytes() * static_cast<std::size_t>(kv_heads) + 64);
            auto* aligned = reinterpret_cast<std::byte*>(
                (reinterpret_cast<std::uintptr_t>(page.data()) + 63) / 64 * 64);
            for (int head = 0; head < kv_heads; ++head) {
                std::generate(k.begin(), k.end(), [&] { return normal(random); });
                std::generate(v.begin(), v.end(), [&] { return normal(random); });
                quantize_page(format, k.data(), format.head_dim, v.data(), format.head_dim,
                              aligned + static_cast<std::size_t>(head) * format.page_bytes());
            }
            at.push_back(aligned);
        }
    }
};

PageRun run_of(const Pages& pages, const PageFormat& format, std::int64_t first,
               std::int64_t tokens, std::vector<const std::byte*>& table) {
    for (std::int64_t page = 0; page < (tokens + 31) / 32; ++page)
        table.push_back(pages.at[static_cast<std::size_t>(page) % pages.at.size()]);
    return {table, format.page_bytes(), first, tokens};
}

void time_case(const Preset& preset, int q_heads, int kv_heads, int head_dim, const Case& tested,
               cudaStream_t stream, const Flush& flush, double bandwidth) {
    AttentionShape shape;
    shape.q_heads = q_heads;
    shape.kv_heads = kv_heads;
    shape.format = preset.format(head_dim);
    const PageFormat windows{kF16, kF16, head_dim};
    const bool all_f16 = !shape.format.quantized();
    const Pages quantized(shape.format, kv_heads, 16);
    const Pages dense(windows, kv_heads, 4);
    std::vector<const std::byte*> tables[3];
    SequenceView view;
    const std::int64_t recent = all_f16 ? tested.context - 32 : 96 + tested.context % 32;
    view.sink = run_of(dense, windows, 0, 32, tables[0]);
    if (!all_f16)
        view.quantized =
            run_of(quantized, shape.format, 32, tested.context - 32 - recent, tables[1]);
    view.recent = run_of(dense, windows, tested.context - recent, recent, tables[2]);
    view.length = tested.context;
    std::vector<float> norm(static_cast<std::size_t>(head_dim), 1.0f);
    std::vector<KeyTransform> transforms(static_cast<std::size_t>(kv_heads),
                                         {norm.data(), nullptr, nullptr, true});
    std::vector<std::byte> centre(static_cast<std::size_t>(kv_heads * head_dim) * 2);
    const std::vector<const std::byte*> epochs(static_cast<std::size_t>(tested.context / 256 + 1),
                                               centre.data());
    if (!all_f16) {
        view.transforms = transforms;
        view.centres = {epochs, 8, 0};
    }
    const std::vector<cuda::SequenceQueries> asked(static_cast<std::size_t>(tested.batch),
                                                   {&view, tested.context - 1, 1});
    const cuda::DeviceSequences sequences(shape, asked);
    cuda::Attention attention(shape, {0, tested.batch, 1, 0});
    const auto elements = static_cast<std::size_t>(tested.batch * q_heads * head_dim);
    std::mt19937 random(2);
    std::normal_distribution<float> normal;
    std::vector<std::uint16_t> host(elements);
    for (auto& value : host) value = f16_from_float(normal(random));
    std::uint16_t* q = nullptr;
    std::uint16_t* out = nullptr;
    check(cudaMalloc(&q, elements * 2));
    check(cudaMalloc(&out, elements * 2));
    check(cudaMemcpy(q, host.data(), elements * 2, cudaMemcpyHostToDevice));
    cuda::AttentionCall call;
    call.sequences = sequences.data();
    call.count = tested.batch;
    call.q = q;
    call.out = out;
    call.q_type = call.out_type = RowType::f16;
    call.q_head_stride = call.out_head_stride = head_dim;
    call.q_token_stride = call.out_token_stride = q_heads * head_dim;
    call.q_sequence_stride = call.out_sequence_stride = q_heads * head_dim;
    call.stream = stream;
    const Times times = measure(stream, flush, [&] { attention.run(call); });
    const double bytes =
        static_cast<double>(tested.batch) * kv_heads *
        (static_cast<double>(view.quantized.pages.size() * shape.format.page_bytes()) +
         static_cast<double>((32 + recent) * 4 * head_dim));
    std::printf("%-7s %3d x %-7ld events %7.1f us  alone %7.1f us  %8.2f MB  %6.0f GB/s  %4.1f%%\n",
                std::string(preset.name).c_str(), tested.batch, static_cast<long>(tested.context),
                times.events, times.difference, bytes / 1e6, bytes / times.difference / 1e3,
                100 * bytes / times.difference / 1e3 / bandwidth);
    std::fflush(stdout);
    check(cudaFree(q));
    check(cudaFree(out));
}

} // namespace

int main(int argc, char** argv) try {
    std::string names = argc > 1 ? argv[1] : "base";
    const int q_heads = argc > 2 ? std::atoi(argv[2]) : 32;
    const int kv_heads = argc > 3 ? std::atoi(argv[3]) : 8;
    const int head_dim = argc > 4 ? std::atoi(argv[4]) : 128;
    cudaStream_t stream{};
    check(cudaStreamCreate(&stream));
    const Flush flush;
    const double bandwidth = read_bandwidth(flush, stream);
    std::printf("%s, %d query heads on %d, %d channels; reading %.0f GB/s\n",
                cuda::devices().at(0).name.c_str(), q_heads, kv_heads, head_dim, bandwidth);
    std::istringstream list(names);
    for (std::string name; std::getline(list, name, ',');)
        for (const Case& tested : {Case{1, 8192}, Case{1, 32768}, Case{1, 131072}, Case{8, 8192},
                                   Case{8, 32768}, Case{32, 8192}})
            time_case(find_preset(name), q_heads, kv_heads, head_dim, tested, stream, flush,
                      bandwidth);
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
