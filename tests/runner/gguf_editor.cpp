// SPDX-License-Identifier: Apache-2.0
#include "gguf_editor.h"

#include <stdexcept>

namespace innerkv::runner::test {

GgufEditor::GgufEditor(const std::string& path) : metadata_(gguf_init_empty()) {
    ggml_context* tensors = nullptr;
    const gguf_init_params params{/*.no_alloc =*/false, /*.ctx =*/&tensors};
    const std::unique_ptr<gguf_context, FreeMetadata> source(
        gguf_init_from_file(path.c_str(), params));
    tensors_.reset(tensors);
    if (!source) {
        throw std::runtime_error("cannot read " + path);
    }
    gguf_set_kv(metadata_.get(), source.get());
}

void GgufEditor::write(const std::string& path, const Edit& edit) {
    ggml_tensor* tensor = ggml_get_first_tensor(tensors_.get());
    // the first is the block that holds the data of the others
    while ((tensor = ggml_get_next_tensor(tensors_.get(), tensor)) != nullptr) {
        if (!edit || edit(*tensor)) {
            gguf_add_tensor(metadata_.get(), tensor);
        }
    }
    if (!gguf_write_to_file(metadata_.get(), path.c_str(), /*only_meta=*/false)) {
        throw std::runtime_error("cannot write " + path);
    }
}

void GgufEditor::set_type(ggml_tensor& matrix, ggml_type type) {
    matrix.type = type;
    matrix.nb[0] = ggml_type_size(type);
    matrix.nb[1] = ggml_row_size(type, matrix.ne[0]);
    matrix.nb[2] = matrix.nb[3] = matrix.nb[1] * static_cast<std::size_t>(matrix.ne[1]);
}

} // namespace innerkv::runner::test
