// SPDX-License-Identifier: Apache-2.0
#include "cuda/device.h"

#include "innerkv/cuda.h"

namespace innerkv::cuda {
namespace {

constexpr int kOldestMajor = 8;

/// Number of devices, or why there is none.
struct DeviceCount {
    int count = 0;
    std::string reason;
};

/// 12040 as 12.4.
std::string version(int number) {
    return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

DeviceCount count_devices() {
    DeviceCount result;
    const cudaError_t status = cudaGetDeviceCount(&result.count);
    if (status == cudaSuccess && result.count > 0) return result;
    result.count = 0;
    static_cast<void>(cudaGetLastError());
    result.reason = "no CUDA device was found";
    int driver = 0;
    if (status == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess) {
        result.reason += driver == 0
                             ? ": no NVIDIA driver is installed"
                             : ": the driver is for CUDA " + version(driver) +
                                   ", this build takes one for CUDA " + version(CUDART_VERSION);
    } else if (status != cudaSuccess) {
        result.reason += std::string(": ") + cudaGetErrorString(status);
    }
    return result;
}

DeviceInfo info_of(int device) {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, device), "reading a device's properties");
    return {device,
            properties.name,
            properties.major,
            properties.minor,
            properties.multiProcessorCount,
            properties.totalGlobalMem,
            static_cast<std::size_t>(properties.l2CacheSize)};
}

/// Throws OutOfMemory with what is free.
[[noreturn]] void throw_out_of_memory(const std::string& attempt) {
    static_cast<void>(cudaGetLastError());
    std::size_t free = 0;
    std::size_t total = 0;
    static_cast<void>(cudaMemGetInfo(&free, &total));
    throw OutOfMemory("cuda: " + attempt + " failed: out of memory; " + std::to_string(free) +
                      " of " + std::to_string(total) +
                      " bytes are free. Ask for fewer tokens or sequences, or free memory");
}

std::string too_old(const DeviceInfo& info) {
    return "device " + std::to_string(info.index) + " (" + info.name + ") has compute capability " +
           std::to_string(info.major) + "." + std::to_string(info.minor) + "; the kernels need 8.0";
}

} // namespace

void check(cudaError_t status, const std::string& what) {
    if (status == cudaSuccess) return;
    static_cast<void>(cudaGetLastError());
    std::string message = "cuda: " + what + " failed: " + cudaGetErrorString(status);
    if (status == cudaErrorStreamCaptureUnsupported || status == cudaErrorStreamCaptureImplicit)
        message +=
            "; what allocates or waits for the device must be done before a graph is captured";
    throw DeviceError(message);
}

bool is_capturing(Stream stream) {
    cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
    const cudaError_t status = cudaStreamIsCapturing(stream, &capturing);
    if (status == cudaErrorInsufficientDriver || status == cudaErrorNoDevice) {
        static_cast<void>(cudaGetLastError());
        return false; // as in a build without CUDA: nothing is recorded where there is no device
    }
    check(status, "looking at the stream");
    return capturing != cudaStreamCaptureStatusNone;
}

std::vector<DeviceInfo> devices() {
    std::vector<DeviceInfo> found;
    for (int device = 0, count = count_devices().count; device < count; ++device) {
        DeviceInfo info = info_of(device);
        if (info.major >= kOldestMajor) found.push_back(std::move(info));
    }
    return found;
}

std::string unavailable_reason() {
    const DeviceCount found = count_devices();
    std::string reason = found.reason;
    for (int device = 0; device < found.count; ++device) {
        const DeviceInfo info = info_of(device);
        if (info.major >= kOldestMajor) return "";
        reason += (reason.empty() ? "" : "; ") + too_old(info);
    }
    return reason;
}

void require_device(int device) {
    const DeviceCount found = count_devices();
    if (found.count == 0) throw Unavailable("cuda: " + found.reason);
    if (device < 0 || device >= found.count)
        throw InvalidArgument("cuda: device " + std::to_string(device) +
                              "; there are devices 0 to " + std::to_string(found.count - 1));
    const DeviceInfo info = info_of(device);
    if (info.major < kOldestMajor) throw Unavailable("cuda: " + too_old(info));
}

int attribute(cudaDeviceAttr name, int device) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, name, device), "reading a device's attribute");
    return value;
}

void finish_writes() {
    check(cudaStreamSynchronize(cudaStreamLegacy), "waiting for what was written");
}

DeviceScope::DeviceScope(int device) : device_(device) {
    check(cudaGetDevice(&before_), "asking for the current device");
    if (before_ != device_)
        check(cudaSetDevice(device_), "choosing device " + std::to_string(device_));
}

DeviceScope::~DeviceScope() {
    if (before_ != device_) static_cast<void>(cudaSetDevice(before_));
}

DeviceMemory::DeviceMemory(int device, std::size_t bytes, const std::string& what) : bytes_(bytes) {
    if (bytes == 0) return;
    const DeviceScope scope(device);
    void* data = nullptr;
    const std::string attempt = "allocating " + std::to_string(bytes) + " bytes for " + what +
                                " on device " + std::to_string(device);
    const cudaError_t status = cudaMalloc(&data, bytes);
    if (status == cudaErrorMemoryAllocation) throw_out_of_memory(attempt);
    check(status, attempt);
    data_ = std::unique_ptr<std::byte, Free>(static_cast<std::byte*>(data), Free{device});
}

void DeviceMemory::Free::operator()(std::byte* data) const {
    int before = 0;
    static_cast<void>(cudaGetDevice(&before));
    static_cast<void>(cudaSetDevice(device));
    static_cast<void>(cudaFree(data));
    static_cast<void>(cudaSetDevice(before));
}

} // namespace innerkv::cuda
