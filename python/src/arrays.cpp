// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <string>
#include <utility>

#include "bindings.h"
#include "innerkv/error.h"

namespace nb = nanobind;

namespace innerkv::python {
namespace {

RowType type_of(const char* name, nb::dlpack::dtype type) {
    using Code = nb::dlpack::dtype_code;
    const auto code = static_cast<Code>(type.code);
    if (type.lanes == 1) {
        if (code == Code::Float && type.bits == 32) return RowType::f32;
        if (code == Code::Float && type.bits == 16) return RowType::f16;
        if (code == Code::Bfloat && type.bits == 16) return RowType::bf16;
    }
    throw InvalidArgument(std::string(name) + " has elements of another type (" +
                          std::to_string(type.bits) +
                          " bits); supported are float32, float16 and bfloat16");
}

template <class Array>
Tensor convert_array(const char* name, const Array& array) {
    if (array.ndim() != 4)
        throw InvalidArgument(std::string(name) + " has " + std::to_string(array.ndim()) +
                              " dimensions; it must have four: [sequences, tokens, heads, "
                              "head_dim]");
    Tensor tensor;
    // Inputs are only read: Tensor serves both directions.
    tensor.data =
        static_cast<std::byte*>(const_cast<void*>(static_cast<const void*>(array.data())));
    tensor.type = type_of(name, array.dtype());
    for (std::size_t i = 0; i < 4; ++i) {
        tensor.shape[i] = static_cast<std::int64_t>(array.shape(i));
        tensor.strides[i] = static_cast<std::ptrdiff_t>(array.stride(i));
        if (tensor.strides[i] < 0)
            throw InvalidArgument(std::string(name) + " runs backwards; make it contiguous");
    }
    if (tensor.strides[3] != 1 && tensor.shape[3] > 1)
        throw InvalidArgument(std::string(name) +
                              ": channels of a head do not lie side by side (the last dimension's "
                              "stride is " +
                              std::to_string(tensor.strides[3]) + "); make it contiguous");
    return tensor;
}

void check_place(const char* name, int device_type, int device_id) {
    if (device_type == nb::device::cpu::value) return;
    throw InvalidArgument(std::string(name) + " is on " + place_name(device_type, device_id) +
                          "; this cache is in main memory: make it with device=\"cuda\", or "
                          "move the array");
}

template <class Array>
Tensor in_main_memory(const char* name, const Array& array) {
    check_place(name, array.device_type(), array.device_id());
    return convert_array(name, array);
}

} // namespace

std::string place_name(int type, int id) {
    if (type == nb::device::cpu::value) return "the CPU";
    if (type == nb::device::cuda::value) return "cuda:" + std::to_string(id);
    return "a device of DLPack's type " + std::to_string(type);
}

Tensor convert(const char* name, const AnyInput& array) { return convert_array(name, array); }
Tensor convert(const char* name, const AnyOutput& array) { return convert_array(name, array); }
Tensor tensor_from(const char* name, const AnyInput& array) { return in_main_memory(name, array); }
Tensor tensor_from(const char* name, const AnyOutput& array) { return in_main_memory(name, array); }

void check_main_memory(const char* name, const AnyOutput& array) {
    check_place(name, array.device_type(), array.device_id());
}

Tensor heads_first(Tensor tensor) {
    std::swap(tensor.shape[1], tensor.shape[2]);
    std::swap(tensor.strides[1], tensor.strides[2]);
    return tensor;
}

float* log_sum_exp_from(const AnyOutput& array, const Tensor& q, std::int64_t tokens) {
    const std::int64_t shape[] = {q.sequences(), tokens, q.heads()};
    bool fits = array.ndim() == 3 && array.dtype() == nb::dtype<float>();
    std::int64_t stride = 1;
    for (std::size_t i = 3; fits && i-- > 0; stride *= shape[i])
        fits = static_cast<std::int64_t>(array.shape(i)) == shape[i] &&
               (array.stride(i) == stride || shape[i] == 1);
    if (!fits)
        throw InvalidArgument("log_sum_exp must be a contiguous float32 array of [" +
                              std::to_string(shape[0]) + ", " + std::to_string(shape[1]) + ", " +
                              std::to_string(shape[2]) + "], sequences, tokens and query heads");
    return static_cast<float*>(array.data());
}

std::string quantized_pages(const CacheConfig& config, int layer, const SequenceView& view) {
    const std::size_t page_bytes = config.layer_format(layer).page_bytes();
    std::string all;
    for (const std::byte* page : view.quantized.pages)
        for (int head = 0; head < config.kv_heads; ++head)
            all.append(reinterpret_cast<const char*>(page + static_cast<std::size_t>(head) *
                                                                view.quantized.head_stride),
                       page_bytes);
    return all;
}

} // namespace innerkv::python
