// SPDX-License-Identifier: Apache-2.0
#include "model.h"

#include <map>

#include "log.h"

namespace innerkv::runner {
namespace {

/// The type most bytes of the layers' matrices have.
std::string main_weight_type(const GgufFile& file) {
    std::map<ggml_type, std::size_t> bytes;
    for (const TensorEntry& tensor : file.tensors()) {
        if (tensor.name.starts_with("blk.") && tensor.shape[1] > 1) {
            bytes[tensor.type] += tensor.bytes;
        }
    }
    ggml_type main = GGML_TYPE_F32;
    std::size_t most = 0;
    for (const auto& [type, count] : bytes) {
        if (count > most) {
            most = count;
            main = type;
        }
    }
    return type_name(main);
}

ModelInfo make_info(const GgufFile& file, const Parameters& parameters) {
    ModelInfo info;
    info.path = file.path();
    info.name = file.text("general.name").value_or("");
    info.architecture = parameters.architecture->name;
    info.weight_type = main_weight_type(file);
    info.file_bytes = file.mapping().bytes().size();
    for (const TensorEntry& tensor : file.tensors()) {
        std::uint64_t count = 1;
        for (const std::int64_t extent : tensor.shape) {
            count *= static_cast<std::uint64_t>(extent);
        }
        info.parameters += count;
    }
    info.layers = parameters.layers;
    info.q_heads = parameters.q_heads;
    info.kv_heads = parameters.kv_heads;
    info.head_dim = parameters.head_dim;
    info.embedding_dim = parameters.embedding_dim;
    info.vocabulary_size = parameters.vocabulary_size;
    info.context_length = parameters.context_length;
    info.sliding_window = parameters.sliding_window;
    info.has_chat_template = file.text("tokenizer.chat_template").has_value();
    return info;
}

} // namespace

ModelInfo inspect_model(const std::string& path) {
    install_log();
    const GgufFile file(path);
    return make_info(file, read_parameters(file));
}

Model::Impl::Impl(const std::string& path)
    : file(path), parameters(read_parameters(file)), info(make_info(file, parameters)),
      vocabulary(file), weights(file, parameters) {}

Model::Model() = default;
Model::~Model() = default;

std::shared_ptr<Model> Model::load(const std::string& path) {
    install_log();
    std::shared_ptr<Model> model(new Model());
    model->impl_ = std::make_unique<Impl>(path);
    return model;
}

const ModelInfo& Model::info() const { return impl_->info; }
std::size_t Model::copied_bytes() const { return impl_->weights.copied_bytes(); }

std::vector<Token> Model::tokenize(std::string_view text, bool bos, bool special) const {
    return impl_->vocabulary.tokenize(text, bos, special);
}

std::string Model::piece(Token token) const { return impl_->vocabulary.piece(token); }

bool Model::is_end(Token token) const { return impl_->vocabulary.is_end(token); }

std::optional<Token> Model::bos() const { return impl_->vocabulary.bos(); }

std::string Model::chat_prompt(std::span<const ChatMessage> messages) const {
    return impl_->vocabulary.chat_prompt(messages);
}

} // namespace innerkv::runner
