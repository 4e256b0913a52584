// SPDX-License-Identifier: Apache-2.0
// Devices, their memory and the runtime's errors as exceptions. Host side.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <string>

namespace innerkv::cuda {

/// Throws DeviceError with `what` failed and the runtime's words; clears the runtime's last error.
void check(cudaError_t status, const std::string& what);

/// Throws InvalidArgument or Unavailable unless kernels run on the device.
void require_device(int device);

int attribute(cudaDeviceAttr name, int device);

/// Makes a device current; the one before is again when this goes.
class DeviceScope {
public:
    explicit DeviceScope(int device);
    ~DeviceScope();
    DeviceScope(const DeviceScope&) = delete;
    DeviceScope& operator=(const DeviceScope&) = delete;

private:
    int before_ = 0;
    int device_;
};

/// Waits for copies and fills of the default stream, which may be under way when the calls that asked for them return:
/// a stream that does not block does not wait for them. What writes device memory for launches to come ends with this.
void finish_writes();

/// Memory of one device.
class DeviceMemory {
public:
    DeviceMemory() = default;
    /// Throws DeviceError naming the bytes where there are too few; `what` it is for.
    DeviceMemory(int device, std::size_t bytes, const std::string& what);

    std::byte* data() const { return data_.get(); }
    std::size_t bytes() const { return bytes_; }

private:
    struct Free {
        int device;
        void operator()(std::byte* data) const;
    };
    std::unique_ptr<std::byte, Free> data_{nullptr, Free{0}};
    std::size_t bytes_ = 0;
};

} // namespace innerkv::cuda
