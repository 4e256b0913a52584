// SPDX-License-Identifier: Apache-2.0
// The file of a calibration (docs/calibration.md): written, and read with nothing in it trusted.
#include "runner/calibration.h"

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <span>

#include <unistd.h>

#include "backend.h"
#include "gguf_file.h"
#include "hash.h"
#include "innerkv/codec.h"
#include "log.h"
#include "runner/output_file.h"

namespace innerkv::runner {
namespace {

constexpr const char* kType = "innerkv-calibration";
constexpr std::uint32_t kVersion = 2;
constexpr std::int64_t kMostOfAnything = 1 << 20;

constexpr const char* kTypeKey = "general.type";
constexpr const char* kVersionKey = "innerkv.calibration.version";
constexpr const char* kArchitectureKey = "innerkv.calibration.model.architecture";
constexpr const char* kModelKey = "innerkv.calibration.model.name";
constexpr const char* kModelHashKey = "innerkv.calibration.model.hash";
constexpr const char* kTextHashKey = "innerkv.calibration.text.hash";
constexpr const char* kTokensKey = "innerkv.calibration.text.tokens";
constexpr const char* kLayersKey = "innerkv.calibration.layers";
constexpr const char* kKvHeadsKey = "innerkv.calibration.kv_heads";
constexpr const char* kHeadDimKey = "innerkv.calibration.head_dim";
constexpr const char* kHashKey = "innerkv.calibration.hash";
constexpr const char* kNormTensor = "norm";
constexpr const char* kCentreTensor = "centre";
constexpr const char* kBitsTensor = "bits";

/// [layers, 2]: of keys, of values.
std::vector<std::int8_t> bits_of(const Calibration& calibration) {
    std::vector<std::int8_t> bits;
    for (const LayerCodecs& layer : calibration.layer_codecs) {
        bits.push_back(static_cast<std::int8_t>(layer.k.bits));
        bits.push_back(static_cast<std::int8_t>(layer.v.bits));
    }
    return bits;
}

/// Of everything that the file says: a damaged one is told from a good one.
std::string hash_of(const Calibration& calibration) {
    Hash hash;
    for (const std::string* text : {&calibration.architecture, &calibration.model,
                                    &calibration.model_hash, &calibration.text_hash}) {
        hash.add_text(*text);
    }
    hash.add(calibration.tokens);
    for (const int extent : {calibration.layers, calibration.kv_heads, calibration.head_dim}) {
        hash.add(extent);
    }
    for (const std::vector<float>* values : {&calibration.norm, &calibration.centre}) {
        hash.add(values->data(), values->size() * sizeof(float));
    }
    const std::vector<std::int8_t> bits = bits_of(calibration);
    hash.add(bits.data(), bits.size());
    return hash.text();
}

/// What is wrong with the numbers; empty: nothing.
std::string find_fault(const Calibration& calibration) {
    const auto place = [&](std::size_t index) {
        const auto dim = static_cast<std::size_t>(calibration.head_dim);
        const auto heads = static_cast<std::size_t>(calibration.kv_heads);
        return " of layer " + std::to_string(index / dim / heads) + ", KV head " +
               std::to_string(index / dim % heads) + ", channel " + std::to_string(index % dim) +
               " is ";
    };
    // Written so that NaN fails.
    for (std::size_t i = 0; i < calibration.norm.size(); ++i) {
        const float norm = calibration.norm[i];
        if (!(norm >= kSmallestNorm && norm <= kLargestF16)) {
            return "norm" + place(i) + std::to_string(norm) + "; supported are 2^-24 to 65504";
        }
    }
    for (std::size_t i = 0; i < calibration.centre.size(); ++i) {
        const float centre = calibration.centre[i];
        if (!(std::abs(centre) <= kLargestF16)) {
            return "centre" + place(i) + std::to_string(centre) +
                   "; supported are magnitudes up to 65504";
        }
    }
    return {};
}

std::string required_text(const GgufFile& file, const char* key) {
    const std::optional<std::string> text = file.text(key);
    if (!text) {
        file.fail("is a damaged calibration: metadata " + std::string(key) + " is missing");
    }
    return *text;
}

std::int64_t required_count(const GgufFile& file, const char* key, std::int64_t most) {
    const std::int64_t count = file.integer(key).value_or(0);
    if (count < 1 || count > most) {
        file.fail("is a damaged calibration: metadata " + std::string(key) + " is " +
                  std::to_string(count) + "; 1 to " + std::to_string(most) + " is supported");
    }
    return count;
}

std::vector<float> read_tensor(const GgufFile& file, const char* name,
                               const Calibration& calibration) {
    const TensorEntry* const tensor = file.find_tensor(name);
    const std::array<std::int64_t, GGML_MAX_DIMS> shape{calibration.head_dim, calibration.kv_heads,
                                                        calibration.layers, 1};
    if (!tensor || tensor->type != GGML_TYPE_F32 || tensor->shape != shape) {
        file.fail("is a damaged calibration: there is no F32 tensor " + std::string(name) + " of " +
                  shape_text(shape));
    }
    std::vector<float> values(tensor->bytes / sizeof(float));
    std::memcpy(values.data(), file.data(*tensor), tensor->bytes);
    return values;
}

std::vector<LayerCodecs> read_bits(const GgufFile& file, const TensorEntry& tensor, int layers) {
    const std::array<std::int64_t, GGML_MAX_DIMS> shape{2, layers, 1, 1};
    if (tensor.type != GGML_TYPE_I8 || tensor.shape != shape) {
        file.fail("is a damaged calibration: tensor " + tensor.name + " is not I8 of " +
                  shape_text(shape));
    }
    const std::byte* const bits = file.data(tensor);
    std::vector<LayerCodecs> codecs;
    for (std::size_t layer = 0; layer < static_cast<std::size_t>(layers); ++layer) {
        try {
            codecs.push_back(codecs_of_bits(std::to_integer<int>(bits[2 * layer]),
                                            std::to_integer<int>(bits[2 * layer + 1])));
        } catch (const InvalidArgument& error) {
            file.fail("is a damaged calibration: layer " + std::to_string(layer) + ": " +
                      error.what());
        }
    }
    return codecs;
}

void check_version(const GgufFile& file) {
    const std::string type = file.text(kTypeKey).value_or("");
    if (type != kType) {
        file.fail("is not a calibration: metadata " + std::string(kTypeKey) +
                  (type.empty() ? " is missing" : " is '" + type + "'") +
                  "; innerkv calibrate makes one");
    }
    const std::int64_t version = file.integer(kVersionKey).value_or(0);
    if (version != kVersion) {
        file.fail("is a calibration of version " + std::to_string(version) +
                  "; this program reads version " + std::to_string(kVersion) +
                  ", make it anew with innerkv calibrate");
    }
}

MetadataPtr make_metadata(const Calibration& calibration) {
    MetadataPtr metadata(gguf_init_empty());
    const auto text = [&](const char* key, const std::string& value) {
        gguf_set_val_str(metadata.get(), key, value.c_str());
    };
    const auto number = [&](const char* key, int value) {
        gguf_set_val_u32(metadata.get(), key, static_cast<std::uint32_t>(value));
    };
    text(kTypeKey, kType);
    gguf_set_val_u32(metadata.get(), kVersionKey, kVersion);
    text(kArchitectureKey, calibration.architecture);
    text(kModelKey, calibration.model);
    text(kModelHashKey, calibration.model_hash);
    text(kTextHashKey, calibration.text_hash);
    gguf_set_val_u64(metadata.get(), kTokensKey, static_cast<std::uint64_t>(calibration.tokens));
    number(kLayersKey, calibration.layers);
    number(kKvHeadsKey, calibration.kv_heads);
    number(kHeadDimKey, calibration.head_dim);
    text(kHashKey, hash_of(calibration));
    return metadata;
}

void add_tensor(gguf_context* metadata, ggml_context* context, const char* name,
                const Calibration& calibration, const std::vector<float>& values) {
    ggml_tensor* const tensor = ggml_new_tensor_3d(context, GGML_TYPE_F32, calibration.head_dim,
                                                   calibration.kv_heads, calibration.layers);
    ggml_set_name(tensor, name);
    // ggml's interface is not const; the values are only read.
    tensor->data = const_cast<float*>(values.data());
    gguf_add_tensor(metadata, tensor);
}

void add_bits(gguf_context* metadata, ggml_context* context, std::vector<std::int8_t>& bits) {
    ggml_tensor* const tensor =
        ggml_new_tensor_2d(context, GGML_TYPE_I8, 2, static_cast<std::int64_t>(bits.size() / 2));
    ggml_set_name(tensor, kBitsTensor);
    tensor->data = bits.data();
    gguf_add_tensor(metadata, tensor);
}

void check_layer_codecs(const Calibration& calibration) {
    const std::vector<LayerCodecs>& layers = calibration.layer_codecs;
    if (layers.size() != static_cast<std::size_t>(calibration.layers)) {
        throw InvalidArgument("a calibration has codecs of " + std::to_string(layers.size()) +
                              " layers; its model has " + std::to_string(calibration.layers));
    }
    for (const LayerCodecs& layer : layers) {
        if (layer != codecs_of_bits(layer.k.bits, layer.v.bits)) {
            throw InvalidArgument("a calibration cannot be written: its codecs are not those of "
                                  "codecs_of_bits");
        }
    }
}

void check_complete(const Calibration& calibration) {
    const std::size_t size = static_cast<std::size_t>(calibration.layers) *
                             static_cast<std::size_t>(calibration.kv_heads) *
                             static_cast<std::size_t>(calibration.head_dim);
    const bool has_codecs = !calibration.layer_codecs.empty();
    if (has_codecs) {
        check_layer_codecs(calibration);
    }
    const bool nothing_else = calibration.norm.empty() && calibration.centre.empty();
    if (has_codecs && size > 0 && nothing_else) {
        return;
    }
    if (size == 0 || calibration.norm.size() != size || calibration.centre.size() != size) {
        throw InvalidArgument("a calibration has " + std::to_string(calibration.norm.size()) +
                              " norms and " + std::to_string(calibration.centre.size()) +
                              " centres; layers * KV heads * channels = " + std::to_string(size) +
                              " of each are needed");
    }
    if (const std::string fault = find_fault(calibration); !fault.empty()) {
        throw InvalidArgument("a calibration cannot be written: " + fault);
    }
}

/// What the path names in the end, links followed; nothing but a regular file is ever replaced, least of
/// all a device.
std::string replaceable_file(const std::string& path) {
    std::string target = link_target(path);
    std::error_code error;
    const std::filesystem::file_type type = std::filesystem::status(target, error).type();
    if (type != std::filesystem::file_type::not_found &&
        type != std::filesystem::file_type::regular) {
        throw Error(path + ": is not a regular file; a calibration is written to one");
    }
    return target;
}

/// Where the file is written before it appears under its name; no other program's, and no input.
std::string part_of(const std::string& target) {
    return target + "." + std::to_string(::getpid()) + ".part";
}

[[noreturn]] void refuse_output(const std::string& path, const std::string& reason) {
    throw Error(path + ": cannot be written" + (reason.empty() ? "" : ": " + reason));
}

/// False: errno or ggml's log says why.
bool write_part(const gguf_context* metadata, const std::string& part) {
    errno = 0;
    std::FILE* const file = std::fopen(part.c_str(), "wbx"); // only a file that is not there yet
    if (!file) {
        return false;
    }
    const bool written = gguf_write_to_file_ptr(metadata, file, /*only_meta=*/false);
    const int error = errno;
    const bool closed = std::fclose(file) == 0;
    if (!written) {
        errno = error;
    }
    return written && closed;
}

} // namespace

bool is_calibration(const std::string& path) {
    install_log();
    const GgufFile file(path);
    return file.has(kVersionKey);
}

std::shared_ptr<const Calibration> read_calibration(const std::string& path) {
    install_log();
    const GgufFile file(path);
    check_version(file);
    auto calibration = std::make_shared<Calibration>();
    calibration->path = path;
    calibration->architecture = required_text(file, kArchitectureKey);
    calibration->model = required_text(file, kModelKey);
    calibration->model_hash = required_text(file, kModelHashKey);
    calibration->text_hash = required_text(file, kTextHashKey);
    calibration->tokens = required_count(file, kTokensKey, std::int64_t{1} << 40);
    calibration->layers = static_cast<int>(required_count(file, kLayersKey, kMostOfAnything));
    calibration->kv_heads = static_cast<int>(required_count(file, kKvHeadsKey, kMostOfAnything));
    calibration->head_dim = static_cast<int>(required_count(file, kHeadDimKey, kMostOfAnything));
    const TensorEntry* const bits = file.find_tensor(kBitsTensor);
    if (bits) {
        calibration->layer_codecs = read_bits(file, *bits, calibration->layers);
    }
    if (!bits || file.find_tensor(kNormTensor) || file.find_tensor(kCentreTensor)) {
        calibration->norm = read_tensor(file, kNormTensor, *calibration);
        calibration->centre = read_tensor(file, kCentreTensor, *calibration);
    }
    if (const std::string fault = find_fault(*calibration); !fault.empty()) {
        file.fail("is a damaged calibration: " + fault);
    }
    if (required_text(file, kHashKey) != hash_of(*calibration)) {
        file.fail("is a damaged calibration: its contents are not those that " +
                  std::string(kHashKey) + " was made from; make it anew with innerkv calibrate");
    }
    return calibration;
}

void require_writable(const std::string& path) {
    const std::string reason = write_obstacle(part_of(replaceable_file(path)));
    if (!reason.empty()) {
        refuse_output(path, reason);
    }
}

void write_calibration(const Calibration& calibration, const std::string& path) {
    check_complete(calibration);
    const std::string target = replaceable_file(path);
    const MetadataPtr metadata = make_metadata(calibration);
    const ContextPtr context = make_context(3);
    std::vector<std::int8_t> bits = bits_of(calibration);
    if (!bits.empty()) {
        add_bits(metadata.get(), context.get(), bits);
    }
    if (calibration.has_transforms()) {
        add_tensor(metadata.get(), context.get(), kNormTensor, calibration, calibration.norm);
        add_tensor(metadata.get(), context.get(), kCentreTensor, calibration, calibration.centre);
    }
    const std::string part = part_of(target);
    const CaughtLog log;
    if (write_part(metadata.get(), part) && std::rename(part.c_str(), target.c_str()) == 0) {
        return;
    }
    const std::string reason = errno != 0 ? std::strerror(errno) : log.first_error();
    std::error_code error;
    std::filesystem::remove(part, error);
    refuse_output(path, reason);
}

} // namespace innerkv::runner
