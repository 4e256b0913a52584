// SPDX-License-Identifier: Apache-2.0
// Makes a faulty model from a good one.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "ggml.h"
#include "gguf.h"

namespace innerkv::runner::test {

class GgufEditor {
public:
    explicit GgufEditor(const std::string& path);

    /// The metadata of the file to be written.
    gguf_context* metadata() { return metadata_.get(); }
    void set(const char* key, std::uint32_t value) { gguf_set_val_u32(metadata(), key, value); }
    void set(const char* key, const char* value) { gguf_set_val_str(metadata(), key, value); }
    void set(const char* key, float value) { gguf_set_val_f32(metadata(), key, value); }

    /// Called for every tensor before it is written; may change its name and shape; false: left out.
    using Edit = std::function<bool(ggml_tensor&)>;
    void write(const std::string& path, const Edit& edit = {});
    /// For an edit: a matrix' type, the data are to be written anew.
    static void set_type(ggml_tensor& matrix, ggml_type type);

private:
    struct FreeMetadata {
        void operator()(gguf_context* context) const { gguf_free(context); }
    };
    struct FreeTensors {
        void operator()(ggml_context* context) const { ggml_free(context); }
    };
    std::unique_ptr<gguf_context, FreeMetadata> metadata_;
    std::unique_ptr<ggml_context, FreeTensors> tensors_;
};

} // namespace innerkv::runner::test
