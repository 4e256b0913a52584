// SPDX-License-Identifier: Apache-2.0
// What src/cuda and its tests ask of the CUDA runtime, on this computer: devices whose memory is the host's, the last of
// them too old for the kernels.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <utility>
#include <vector>

#include "cuda/cache/append.h"
#include "cuda/cache/state.h"
#include "cuda/params.h"
#include "failures.h"
#include "launch.h"

namespace innerkv::cuda {
/// What kernels declare: the memory of a block whose size a launch tells.
alignas(128) unsigned char memory[227 << 10];
} // namespace innerkv::cuda

int simt::writes_until_failure = -1;

namespace {

using namespace innerkv::cuda;

constexpr std::size_t kMemoryBytes = std::size_t{1} << 30; ///< of a device
constexpr int kMajors[] = {8, 8, 7};                       ///< their compute capabilities
constexpr int kDevices = 3;

int current = 0;

/// Few, so that a launch is few blocks. SIMT_MULTIPROCESSORS says another number.
int multiprocessors() {
    const char* told = std::getenv("SIMT_MULTIPROCESSORS");
    return told != nullptr ? std::atoi(told) : 3;
}

struct Allocation {
    std::size_t bytes;
    int device; ///< kHost: of the host, pinned
};
constexpr int kHost = -1;

std::map<const void*, Allocation>& allocations() {
    static std::map<const void*, Allocation> all;
    return all;
}
std::size_t allocated() {
    std::size_t bytes = 0;
    for (const auto& [at, allocation] : allocations())
        if (allocation.device == current) bytes += allocation.bytes;
    return bytes;
}
void* allocate(std::size_t bytes, int device) {
    void* data = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    std::memset(data, 0xff, bytes);
    allocations()[data] = {bytes, device};
    return data;
}

using Work = std::deque<std::function<void()>>;

/// A stream is where it was made; what is enqueued runs at once.
struct FakeStream {
    int device;
    bool blocks; ///< waits for the default stream
};
FakeStream* fake(cudaStream_t stream) { return reinterpret_cast<FakeStream*>(stream); }

/// Copies and fills of the default stream: as late as a device may do them, when something waits for them.
Work& writes() {
    static Work all;
    return all;
}
void finish_writes() {
    for (const auto& write : std::exchange(writes(), {})) write();
}
/// What a stream enqueues comes after them if it blocks.
void order_after_writes(cudaStream_t stream) {
    if (stream == nullptr || stream == cudaStreamLegacy || fake(stream)->blocks) finish_writes();
}

/// The capture under way: a call that it does not allow ends it.
Work* captured = nullptr;
bool broken = false;
bool capture_forbids() {
    if (captured == nullptr) return false;
    broken = true;
    return true;
}

template <typename Params>
std::function<void()> bind(const void* function, void** arguments) {
    const auto kernel =
        reinterpret_cast<void (*)(Params)>(reinterpret_cast<std::uintptr_t>(function));
    return [kernel, params = *static_cast<Params*>(arguments[0])] { kernel(params); };
}

/// This copy or fill does not happen.
bool fails() { return simt::writes_until_failure >= 0 && simt::writes_until_failure-- == 0; }

simt::Place place(dim3 size) { return {size.x, size.y, size.z}; }

} // namespace

// Parameters have names of this project's kind.
// NOLINTBEGIN(readability-inconsistent-declaration-parameter-name)
extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
    *count = kDevices;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
    *device = current;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= kDevices) return cudaErrorInvalidDevice;
    current = device;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    *properties = {};
    std::strcpy(properties->name, "threads of a CPU");
    properties->major = kMajors[device];
    properties->multiProcessorCount = multiprocessors();
    properties->totalGlobalMem = kMemoryBytes;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int device) {
    switch (name) {
    case cudaDevAttrMultiProcessorCount:
        *value = multiprocessors();
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
        *value = kMajors[device];
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
        *value = 0;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = static_cast<int>(sizeof memory);
        return cudaSuccess;
    default:
        return cudaErrorInvalidValue;
    }
}
cudaError_t cudaFuncSetAttribute(const void* /*function*/, cudaFuncAttribute /*name*/,
                                 int /*value*/) {
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* /*function*/,
                                                          int threads, std::size_t shared_bytes) {
    *blocks = static_cast<int>(
        std::min<std::size_t>(sizeof memory / shared_bytes, 512 / static_cast<unsigned>(threads)));
    return cudaSuccess;
}

cudaError_t cudaMalloc(void** data, std::size_t bytes) {
    if (capture_forbids()) return cudaErrorStreamCaptureUnsupported;
    if (allocated() + bytes > kMemoryBytes) return cudaErrorMemoryAllocation;
    *data = allocate(bytes, current);
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void** data, std::size_t bytes) {
    *data = allocate(bytes, kHost);
    return cudaSuccess;
}
cudaError_t cudaFree(void* data) {
    finish_writes();
    allocations().erase(data);
    std::free(data);
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void* data) { return cudaFree(data); }
cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total) {
    *total = kMemoryBytes;
    *free_bytes = kMemoryBytes - allocated();
    return cudaSuccess;
}
cudaError_t cudaMemset(void* data, int value, std::size_t bytes) {
    if (capture_forbids()) return cudaErrorStreamCaptureUnsupported;
    if (fails()) return cudaErrorUnknown;
    writes().push_back([=] { std::memset(data, value, bytes); });
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
    return cudaMemcpy2D(to, bytes, from, bytes, bytes, 1, kind);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t /*stream*/) {
    return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemcpy2D(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                         std::size_t width, std::size_t height, cudaMemcpyKind kind) {
    if (capture_forbids()) return cudaErrorStreamCaptureUnsupported;
    if (fails()) return cudaErrorUnknown;
    const auto copy = [=](const void* source, std::size_t pitch) {
        for (std::size_t row = 0; row < height; ++row)
            std::memcpy(static_cast<std::byte*>(to) + row * to_pitch,
                        static_cast<const std::byte*>(source) + row * pitch, width);
    };
    if (kind == cudaMemcpyDeviceToHost) {
        finish_writes();
        copy(from, from_pitch);
    } else if (kind == cudaMemcpyDeviceToDevice) {
        writes().push_back([=] { copy(from, from_pitch); });
    } else { // the caller's memory is free when this returns
        std::vector<std::byte> staged(width * height);
        for (std::size_t row = 0; row < height; ++row)
            std::memcpy(staged.data() + row * width,
                        static_cast<const std::byte*>(from) + row * from_pitch, width);
        writes().push_back(
            [copy, width, staged = std::move(staged)] { copy(staged.data(), width); });
    }
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
    *attributes = {};
    const auto after = allocations().upper_bound(pointer);
    const bool inside =
        after != allocations().begin() &&
        static_cast<const std::byte*>(pointer) <
            static_cast<const std::byte*>(std::prev(after)->first) + std::prev(after)->second.bytes;
    attributes->device = inside ? std::prev(after)->second.device : kHost;
    attributes->type = !inside                       ? cudaMemoryTypeUnregistered
                       : attributes->device == kHost ? cudaMemoryTypeHost
                                                     : cudaMemoryTypeDevice;
    return cudaSuccess;
}

cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t status) {
    return status == cudaErrorMemoryAllocation           ? "out of memory"
           : status == cudaErrorStreamCaptureUnsupported ? "not permitted in a capture"
                                                         : "an error";
}
cudaError_t cudaDeviceSynchronize() {
    if (capture_forbids()) return cudaErrorStreamCaptureUnsupported;
    finish_writes();
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    *stream = reinterpret_cast<cudaStream_t>(
        new FakeStream{current, (flags & cudaStreamNonBlocking) == 0});
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete fake(stream);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    if (capture_forbids()) return cudaErrorStreamCaptureUnsupported;
    order_after_writes(stream);
    return cudaSuccess;
}
cudaError_t cudaStreamGetDevice(cudaStream_t stream, int* device) {
    *device = fake(stream)->device;
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t /*stream*/, cudaStreamCaptureStatus* status) {
    *status = captured != nullptr ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* function, dim3 blocks, dim3 threads, void** arguments,
                             std::size_t shared_bytes, cudaStream_t stream) {
    const AppendKernels append = append_kernels();
    const bool of_append =
        function == append.settle || function == append.append || function == append.step;
    const auto kernel = of_append ? bind<AppendParams>(function, arguments)
                                  : bind<AttentionParams>(function, arguments);
    const auto work = [kernel, blocks, threads, shared_bytes] {
        simt::launch(place(blocks), place(threads), memory, shared_bytes, kernel);
    };
    if (captured != nullptr) {
        captured->push_back(work);
        return cudaSuccess;
    }
    order_after_writes(stream);
    work();
    return cudaSuccess;
}

// A graph is what was launched while it was captured; its memory is its executable's.
cudaError_t cudaStreamBeginCapture(cudaStream_t /*stream*/, cudaStreamCaptureMode /*mode*/) {
    captured = new Work;
    broken = false;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t /*stream*/, cudaGraph_t* graph) {
    if (broken) delete std::exchange(captured, nullptr);
    *graph = reinterpret_cast<cudaGraph_t>(std::exchange(captured, nullptr));
    return broken ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long /*flags*/) {
    *executable = reinterpret_cast<cudaGraphExec_t>(graph);
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t /*graph*/) { return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
    delete reinterpret_cast<Work*>(executable);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    order_after_writes(stream);
    for (const auto& work : *reinterpret_cast<Work*>(executable)) work();
    return cudaSuccess;
}

} // extern "C"
// NOLINTEND(readability-inconsistent-declaration-parameter-name)
