// SPDX-License-Identifier: Apache-2.0
#include "gguf_file.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstring>
#include <limits>

#include "log.h"
#include "runner/runner.h"

namespace innerkv::runner {
namespace {

/// Weights are read in place by kernels that load whole vectors.
constexpr std::size_t kTensorAlignment = 32;

bool is_integer(gguf_type type) {
    switch (type) {
    case GGUF_TYPE_UINT8:
    case GGUF_TYPE_INT8:
    case GGUF_TYPE_UINT16:
    case GGUF_TYPE_INT16:
    case GGUF_TYPE_UINT32:
    case GGUF_TYPE_INT32:
    case GGUF_TYPE_UINT64:
    case GGUF_TYPE_INT64:
    case GGUF_TYPE_BOOL:
        return true;
    default:
        return false;
    }
}

template <typename T>
std::int64_t element(const void* data, std::size_t index) {
    T value;
    std::memcpy(&value, static_cast<const std::byte*>(data) + index * sizeof(T), sizeof(T));
    if constexpr (sizeof(T) == 8 && std::is_unsigned_v<T>) {
        if (value > static_cast<T>(std::numeric_limits<std::int64_t>::max())) {
            return std::numeric_limits<std::int64_t>::max(); // refused wherever a bound is checked
        }
    }
    return static_cast<std::int64_t>(value);
}

std::int64_t integer_at(gguf_type type, const void* data, std::size_t index) {
    switch (type) {
    case GGUF_TYPE_INT8:
        return element<std::int8_t>(data, index);
    case GGUF_TYPE_UINT16:
        return element<std::uint16_t>(data, index);
    case GGUF_TYPE_INT16:
        return element<std::int16_t>(data, index);
    case GGUF_TYPE_UINT32:
        return element<std::uint32_t>(data, index);
    case GGUF_TYPE_INT32:
        return element<std::int32_t>(data, index);
    case GGUF_TYPE_UINT64:
        return element<std::uint64_t>(data, index);
    case GGUF_TYPE_INT64:
        return element<std::int64_t>(data, index);
    default:
        return element<std::uint8_t>(data, index);
    }
}

gguf_context* read_metadata(const std::string& path, std::span<const std::byte> bytes) {
    constexpr std::size_t header_bytes = 24;
    constexpr std::size_t magic_bytes = 4;
    if (std::memcmp(bytes.data(), GGUF_MAGIC, std::min(bytes.size(), magic_bytes)) != 0) {
        throw ModelError(path + ": is not a GGUF file; a GGUF file is expected");
    }
    if (bytes.size() < header_bytes) {
        throw ModelError(path + ": is truncated: " + std::to_string(bytes.size()) + " of the " +
                         std::to_string(header_bytes) +
                         " bytes of a GGUF header are there; download it again");
    }
    const CaughtLog log;
    const gguf_init_params params{/*.no_alloc =*/true, /*.ctx =*/nullptr};
    gguf_context* const metadata = gguf_init_from_buffer(bytes.data(), bytes.size(), params);
    if (!metadata) {
        throw ModelError(path + ": is a broken or truncated GGUF file" +
                         (log.first_error().empty() ? "" : ": " + log.first_error()));
    }
    return metadata;
}

} // namespace

std::string type_name(ggml_type type) {
    const char* const name = ggml_type_name(type);
    std::string upper(name ? name : "?");
    for (char& c : upper) {
        c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    }
    return upper;
}

std::string shape_text(const std::array<std::int64_t, GGML_MAX_DIMS>& shape) {
    std::size_t dims = shape.size();
    while (dims > 1 && shape[dims - 1] == 1) {
        --dims;
    }
    std::string text = "[";
    for (std::size_t i = 0; i < dims; ++i) {
        text += (i ? ", " : "") + std::to_string(shape[i]);
    }
    return text + "]";
}

GgufFile::GgufFile(const std::string& path)
    : path_(path), mapping_(path), metadata_(read_metadata(path, mapping_.bytes())) {
    check_keys();
    read_tensors();
}

void GgufFile::fail(const std::string& what) const { throw ModelError(path_ + ": " + what); }

void GgufFile::fail_type(const std::string& key, const char* expected) const {
    fail("metadata " + key + " is not " + expected);
}

/// A key that begins with a NUL is empty to ggml's functions, which assert that there is none.
void GgufFile::check_keys() const {
    for (std::int64_t i = 0; i < gguf_get_n_kv(metadata_.get()); ++i) {
        if (*gguf_get_key(metadata_.get(), i) == '\0') {
            fail("is a broken GGUF file: metadata key " + std::to_string(i) + " is empty");
        }
    }
}

void GgufFile::read_tensors() {
    const gguf_context* const metadata = metadata_.get();
    const std::size_t file_bytes = mapping_.bytes().size();
    const std::size_t data_offset = gguf_get_data_offset(metadata);
    for (std::int64_t i = 0; i < gguf_get_n_tensors(metadata); ++i) {
        TensorEntry tensor;
        tensor.name = gguf_get_tensor_name(metadata, i);
        tensor.type = gguf_get_tensor_type(metadata, i);
        const std::int64_t* const shape = gguf_get_tensor_ne(metadata, i);
        std::copy(shape, shape + GGML_MAX_DIMS, tensor.shape.begin());
        tensor.bytes = gguf_get_tensor_size(metadata, i);
        const std::size_t offset = gguf_get_tensor_offset(metadata, i);
        if (data_offset > file_bytes || offset > file_bytes - data_offset ||
            tensor.bytes > file_bytes - data_offset - offset) {
            fail("is truncated: tensor " + tensor.name + " lies beyond the file's " +
                 std::to_string(file_bytes) + " bytes; download or make it again");
        }
        tensor.offset = data_offset + offset;
        if (tensor.offset % kTensorAlignment != 0) {
            fail("tensor " + tensor.name + " is not aligned to 32 bytes; write the file with " +
                 "general.alignment 32 or more");
        }
        tensor_index_.emplace(tensor.name, tensors_.size());
        tensors_.push_back(std::move(tensor));
    }
}

std::int64_t GgufFile::find(const std::string& key) const {
    return gguf_find_key(metadata_.get(), key.c_str());
}

const TensorEntry* GgufFile::find_tensor(const std::string& name) const {
    const auto found = tensor_index_.find(name);
    return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

bool GgufFile::is_array(const std::string& key) const {
    const std::int64_t id = find(key);
    return id >= 0 && gguf_get_kv_type(metadata_.get(), id) == GGUF_TYPE_ARRAY;
}

std::optional<std::int64_t> GgufFile::integer(const std::string& key) const {
    const std::int64_t id = find(key);
    if (id < 0) {
        return std::nullopt;
    }
    const gguf_type type = gguf_get_kv_type(metadata_.get(), id);
    if (!is_integer(type)) {
        fail_type(key, "an integer");
    }
    return integer_at(type, gguf_get_val_data(metadata_.get(), id), 0);
}

std::optional<double> GgufFile::number(const std::string& key) const {
    const std::int64_t id = find(key);
    if (id < 0) {
        return std::nullopt;
    }
    double value = 0.0;
    switch (const gguf_type type = gguf_get_kv_type(metadata_.get(), id)) {
    case GGUF_TYPE_FLOAT32:
        value = double{gguf_get_val_f32(metadata_.get(), id)};
        break;
    case GGUF_TYPE_FLOAT64:
        value = gguf_get_val_f64(metadata_.get(), id);
        break;
    default:
        if (!is_integer(type)) {
            fail_type(key, "a number");
        }
        value = static_cast<double>(integer_at(type, gguf_get_val_data(metadata_.get(), id), 0));
    }
    if (!std::isfinite(value)) {
        fail_type(key, "a finite number");
    }
    return value;
}

std::optional<std::string> GgufFile::text(const std::string& key) const {
    const std::int64_t id = find(key);
    if (id < 0) {
        return std::nullopt;
    }
    if (gguf_get_kv_type(metadata_.get(), id) != GGUF_TYPE_STRING) {
        fail_type(key, "a string");
    }
    return gguf_get_val_str(metadata_.get(), id);
}

std::vector<std::int64_t> GgufFile::integers(const std::string& key) const {
    if (!is_array(key)) {
        const std::optional<std::int64_t> value = integer(key);
        return value ? std::vector<std::int64_t>{*value} : std::vector<std::int64_t>{};
    }
    const std::int64_t id = find(key);
    const gguf_type type = gguf_get_arr_type(metadata_.get(), id);
    if (!is_integer(type)) {
        fail_type(key, "an integer or an array of integers");
    }
    const void* const data = gguf_get_arr_data(metadata_.get(), id);
    std::vector<std::int64_t> values(gguf_get_arr_n(metadata_.get(), id));
    for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = integer_at(type, data, i);
    }
    return values;
}

std::vector<std::string_view> GgufFile::texts(const std::string& key) const {
    const std::int64_t id = find(key);
    if (id < 0) {
        return {};
    }
    if (!is_array(key) || gguf_get_arr_type(metadata_.get(), id) != GGUF_TYPE_STRING) {
        fail_type(key, "an array of strings");
    }
    std::vector<std::string_view> values(gguf_get_arr_n(metadata_.get(), id));
    for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = gguf_get_arr_str(metadata_.get(), id, i);
    }
    return values;
}

} // namespace innerkv::runner
