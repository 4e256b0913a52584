// SPDX-License-Identifier: Apache-2.0
#include "cuda/arguments.h"

#include <string>

#include "cuda/device.h"

namespace innerkv::cuda {

void CallArguments::check_pointer(const void* pointer, const char* name) const {
    cudaPointerAttributes attributes{};
    check(cudaPointerGetAttributes(&attributes, pointer), std::string("looking at ") + name);
    if (attributes.type == cudaMemoryTypeManaged) return;
    if (attributes.type != cudaMemoryTypeDevice)
        throw InvalidArgument(std::string(subject_) + ": " + name +
                              " is not device memory; copy it to device " +
                              std::to_string(device_));
    if (attributes.device != device_)
        throw InvalidArgument(std::string(subject_) + ": " + name + " is memory of device " +
                              std::to_string(attributes.device) +
                              ", the object was made for device " + std::to_string(device_));
}

void CallArguments::check_stream(Stream stream) const {
#if CUDART_VERSION >= 12080
    const bool capturing = is_capturing(stream);
    // While a graph is captured its stream must not be asked; a launch from elsewhere is refused by the runtime.
    if (stream == nullptr || capturing) return;
    int of_stream = 0;
    check(cudaStreamGetDevice(stream, &of_stream), "asking for a stream's device");
    if (of_stream != device_)
        throw InvalidArgument(std::string(subject_) + ": the stream is one of device " +
                              std::to_string(of_stream) + ", the object was made for device " +
                              std::to_string(device_));
#else
    static_cast<void>(stream);
#endif
}

} // namespace innerkv::cuda
