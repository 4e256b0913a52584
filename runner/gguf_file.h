// SPDX-License-Identifier: Apache-2.0
// A GGUF file: metadata whose types are checked on every read, and a tensor directory that has been
// checked against the file's size. Nothing in it is trusted.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "ggml.h"
#include "gguf.h"
#include "mapped_file.h"

namespace innerkv::runner {

struct TensorEntry {
    std::string name;
    ggml_type type = GGML_TYPE_F32;
    std::array<std::int64_t, GGML_MAX_DIMS> shape{}; ///< innermost first; 1 beyond the last
    std::size_t offset = 0;                          ///< in the file
    std::size_t bytes = 0;
};

struct FreeMetadata {
    void operator()(gguf_context* context) const { gguf_free(context); }
};
using MetadataPtr = std::unique_ptr<gguf_context, FreeMetadata>;

class GgufFile {
public:
    /// Maps the file and reads its directory. Throws ModelError naming the fault.
    explicit GgufFile(const std::string& path);

    const std::string& path() const { return path_; }
    const MappedFile& mapping() const { return mapping_; }
    const gguf_context* metadata() const { return metadata_.get(); }

    bool has(const std::string& key) const { return find(key) >= 0; }
    /// Empty where the key is absent; ModelError where its value has another type.
    std::optional<std::int64_t> integer(const std::string& key) const;
    std::optional<double> number(const std::string& key) const;
    std::optional<std::string> text(const std::string& key) const;
    /// An integer or an array of integers (booleans count); empty: absent.
    std::vector<std::int64_t> integers(const std::string& key) const;
    bool is_array(const std::string& key) const;
    /// Elements of an array of strings; empty: absent.
    std::vector<std::string_view> texts(const std::string& key) const;

    const std::vector<TensorEntry>& tensors() const { return tensors_; }
    /// Null where there is no tensor of that name.
    const TensorEntry* find_tensor(const std::string& name) const;
    const std::byte* data(const TensorEntry& tensor) const {
        return mapping_.bytes().data() + tensor.offset;
    }

    /// Throws ModelError: path, then `what`.
    [[noreturn]] void fail(const std::string& what) const;

private:
    std::int64_t find(const std::string& key) const;
    void check_keys() const;
    void read_tensors();
    [[noreturn]] void fail_type(const std::string& key, const char* expected) const;

    std::string path_;
    MappedFile mapping_;
    MetadataPtr metadata_;
    std::vector<TensorEntry> tensors_;
    std::unordered_map<std::string, std::size_t> tensor_index_;
};

/// "Q4_1" of GGML_TYPE_Q4_1.
std::string type_name(ggml_type type);
/// "[576, 1536]", innermost first as GGUF tools print it.
std::string shape_text(const std::array<std::int64_t, GGML_MAX_DIMS>& shape);

} // namespace innerkv::runner
