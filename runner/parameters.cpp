// SPDX-License-Identifier: Apache-2.0
#include "parameters.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "innerkv/format.h"

namespace innerkv::runner {
namespace {

constexpr Architecture kArchitectures[] = {
    // Mistral models say "llama" too.
    {.name = "llama", .interleaved_rope = true, .rope_factors = true, .extra_biases = true},
    {.name = "qwen2", .output_bias = true},
    {.name = "qwen3", .query_key_norm = true},
    {.name = "gemma2",
     .activation = Activation::gelu,
     .window_period = 2,
     .default_window = 4096,
     .scale_by_width_layers = 46,
     .attention_soft_cap = 50.0f,
     .logit_soft_cap = 30.0f,
     .reads_logit_soft_cap = true,
     .partial_rope = true,
     .post_norm = true,
     .scaled_embedding = true,
     .always_tied = true},
    {.name = "gemma3",
     .activation = Activation::gelu,
     .window_period = 6,
     .scale_by_width_layers = 62,
     .reads_logit_soft_cap = true,
     .partial_rope = true,
     .local_rope = true,
     .query_key_norm = true,
     .post_norm = true,
     .scaled_embedding = true},
};

constexpr std::int64_t kMaxLayers = 1024;
constexpr std::int64_t kMaxHeads = 1024;
constexpr std::int64_t kMaxWidth = 1 << 20;
constexpr std::int64_t kMaxVocabulary = 1 << 24;
constexpr std::int64_t kMaxContext = 1 << 30;

/// Reads the keys "<architecture>.<name>".
class Reader {
public:
    Reader(const GgufFile& file, const Architecture& architecture)
        : file_(file), prefix_(std::string(architecture.name) + ".") {}

    std::string key(const char* name) const { return prefix_ + name; }
    bool has(const char* name) const { return file_.has(key(name)); }

    int integer(const char* name, std::int64_t low, std::int64_t high,
                std::optional<std::int64_t> otherwise = {}) const {
        const std::optional<std::int64_t> value = file_.integer(key(name));
        if (!value && !otherwise) {
            file_.fail("metadata " + key(name) + " is missing");
        }
        return checked(name, value.value_or(otherwise.value_or(0)), low, high);
    }

    float number(const char* name, double low, double high,
                 std::optional<double> otherwise = {}) const {
        const std::optional<double> value = file_.number(key(name));
        if (!value && !otherwise) {
            file_.fail("metadata " + key(name) + " is missing");
        }
        const double number = value ? *value : *otherwise;
        if (!(number >= low && number <= high)) {
            file_.fail("metadata " + key(name) + " is " + std::to_string(number) +
                       ", outside of what a model can have");
        }
        return static_cast<float>(number);
    }

    /// A number, or an array of one number a layer: [layers].
    std::vector<int> per_layer(const char* name, int layers, std::int64_t high) const {
        const std::vector<std::int64_t> values = file_.integers(key(name));
        if (values.empty()) {
            file_.fail("metadata " + key(name) + " is missing");
        }
        if (file_.is_array(key(name)) && values.size() != static_cast<std::size_t>(layers)) {
            file_.fail("metadata " + key(name) + " has " + std::to_string(values.size()) +
                       " elements for " + std::to_string(layers) + " layers");
        }
        std::vector<int> result(static_cast<std::size_t>(layers));
        for (std::size_t i = 0; i < result.size(); ++i) {
            result[i] = checked(name, values[values.size() == 1 ? 0 : i], 1, high);
        }
        return result;
    }

    /// The same for every layer, or refused.
    int uniform(const char* name, int layers, std::int64_t high) const {
        const std::vector<int> values = per_layer(name, layers, high);
        if (std::adjacent_find(values.begin(), values.end(), std::not_equal_to<>()) !=
            values.end()) {
            file_.fail("metadata " + key(name) +
                       " differs between layers; only models with equal layers are supported");
        }
        return values.front();
    }

private:
    int checked(const char* name, std::int64_t value, std::int64_t low, std::int64_t high) const {
        if (value < low || value > high) {
            file_.fail("metadata " + key(name) + " is " + std::to_string(value) + "; " +
                       std::to_string(low) + " to " + std::to_string(high) + " is supported");
        }
        return static_cast<int>(value);
    }

    const GgufFile& file_;
    std::string prefix_;
};

const Architecture& find_architecture(const GgufFile& file) {
    const std::optional<std::string> name = file.text("general.architecture");
    if (!name) {
        file.fail("metadata general.architecture is missing; is this a language model?");
    }
    std::string known;
    for (const Architecture& architecture : kArchitectures) {
        if (architecture.name == *name) {
            return architecture;
        }
        known += (known.empty() ? "" : ", ") + std::string(architecture.name);
    }
    file.fail("architecture '" + *name + "' is not supported; supported are " + known);
}

void refuse_unsupported(const GgufFile& file, const Reader& reader) {
    if (const auto splits = file.integer("split.count"); splits.value_or(1) > 1) {
        file.fail("is one of " + std::to_string(*splits) +
                  " parts; join them with llama-gguf-split --merge");
    }
    if (file.integer(reader.key("expert_count")).value_or(0) > 0) {
        file.fail("has a mixture of experts, which is not supported");
    }
    if (reader.has("attention.kv_lora_rank") || reader.has("attention.key_length_mla")) {
        file.fail("has multi-head latent attention (MLA), which is not supported");
    }
    if (reader.has("attention.key_length_swa") || reader.has("attention.value_length_swa")) {
        file.fail("has other head dimensions in layers with a sliding window, which is not "
                  "supported");
    }
}

void read_heads(const GgufFile& file, const Reader& reader, Parameters& model) {
    model.q_heads = reader.uniform("attention.head_count", model.layers, kMaxHeads);
    model.kv_heads = reader.has("attention.head_count_kv")
                         ? reader.uniform("attention.head_count_kv", model.layers, kMaxHeads)
                         : model.q_heads;
    if (model.q_heads % model.kv_heads != 0) {
        file.fail("has " + std::to_string(model.q_heads) + " query heads for " +
                  std::to_string(model.kv_heads) + " KV heads; a multiple is supported");
    }
    const int split = model.embedding_dim / model.q_heads;
    model.head_dim = reader.integer("attention.key_length", 1, kMaxWidth, split);
    const int value_dim = reader.integer("attention.value_length", 1, kMaxWidth, split);
    if (model.head_dim != value_dim) {
        file.fail("has " + std::to_string(model.head_dim) + " channels in a key head and " +
                  std::to_string(value_dim) + " in a value head; only equal ones are supported");
    }
    if (std::find(std::begin(kHeadDims), std::end(kHeadDims), model.head_dim) ==
        std::end(kHeadDims)) {
        std::string known;
        for (const int dim : kHeadDims) {
            known += (known.empty() ? "" : ", ") + std::to_string(dim);
        }
        file.fail("has head dimension " + std::to_string(model.head_dim) + "; supported are " +
                  known);
    }
}

void read_windows(const GgufFile& file, const Reader& reader, Parameters& model) {
    const Architecture& architecture = *model.architecture;
    model.sliding_window.assign(static_cast<std::size_t>(model.layers), 0);
    if (architecture.window_period == 0) {
        return;
    }
    const int window =
        reader.integer("attention.sliding_window", 0, kMaxContext, architecture.default_window);
    const std::string pattern_key = reader.key("attention.sliding_window_pattern");
    std::vector<std::int64_t> pattern = file.integers(pattern_key);
    const bool listed = file.is_array(pattern_key);
    if (listed && pattern.size() != model.sliding_window.size()) {
        file.fail("metadata " + pattern_key + " has " + std::to_string(pattern.size()) +
                  " elements for " + std::to_string(model.layers) + " layers");
    }
    if (pattern.empty()) {
        pattern = {architecture.window_period};
    }
    if (!listed && pattern[0] < 0) {
        file.fail("metadata " + pattern_key + " is negative");
    }
    for (std::size_t i = 0; i < model.sliding_window.size(); ++i) {
        const auto layer = static_cast<std::int64_t>(i);
        const bool local =
            listed ? pattern[i] != 0 : pattern[0] == 0 || layer % pattern[0] < pattern[0] - 1;
        model.sliding_window[i] = local ? window : 0;
    }
}

void read_rope(const GgufFile& file, const Reader& reader, Parameters& model) {
    const Architecture& architecture = *model.architecture;
    RopeParameters& rope = model.rope;
    rope.dims = reader.integer("rope.dimension_count", 2, model.head_dim, model.head_dim);
    if (rope.dims % 2 != 0 || (!architecture.partial_rope && rope.dims != model.head_dim)) {
        file.fail("metadata " + reader.key("rope.dimension_count") + " is " +
                  std::to_string(rope.dims) + " for head dimension " +
                  std::to_string(model.head_dim));
    }
    rope.base = reader.number("rope.freq_base", 1.0, 1e12, 10000.0);
    const std::string type = file.text(reader.key("rope.scaling.type")).value_or("linear");
    if (type != "none" && type != "linear" && type != "yarn") {
        file.fail("has rope scaling '" + type + "'; supported are none, linear, yarn");
    }
    const char* const factor_key =
        reader.has("rope.scaling.factor") ? "rope.scaling.factor" : "rope.scale_linear";
    const float factor = reader.number(factor_key, 0.0, 1e6, 0.0);
    const float trained_scale = factor == 0.0f ? 1.0f : 1.0f / factor;
    rope.scale = type == "none" ? 1.0f : trained_scale;
    rope.local_base = architecture.local_rope ? 10000.0f : rope.base;
    rope.local_base = reader.number("rope.freq_base_swa", 1.0, 1e12, double{rope.local_base});
    rope.local_scale = architecture.local_rope ? 1.0f : trained_scale;
    rope.original_context = reader.integer("rope.scaling.original_context_length", 1, kMaxContext,
                                           model.context_length);
    rope.attention_factor = reader.number("rope.scaling.attn_factor", 1e-6, 1e6, 1.0);
    if (type == "yarn") {
        if (trained_scale > 1.0f) {
            file.fail("has a yarn scaling factor below 1, which is not supported");
        }
        // ggml_rope_ext itself multiplies by YaRN's 1 + 0.1 log(factor): nothing more here.
        rope.ext_factor = 1.0f;
    }
}

void read_scales(const Reader& reader, Parameters& model) {
    const Architecture& architecture = *model.architecture;
    model.norm_epsilon = reader.number("attention.layer_norm_rms_epsilon", 0.0, 1.0);
    const int scaled_dim = model.layers == architecture.scale_by_width_layers
                               ? model.embedding_dim / model.q_heads
                               : model.head_dim;
    model.attention_scale = 1.0f / std::sqrt(static_cast<float>(scaled_dim));
    if (architecture.attention_soft_cap > 0.0f) {
        model.attention_soft_cap = reader.number("attn_logit_softcapping", 0.0, 1e6,
                                                 double{architecture.attention_soft_cap});
    }
    if (architecture.reads_logit_soft_cap) {
        model.logit_soft_cap =
            reader.number("final_logit_softcapping", 0.0, 1e6, double{architecture.logit_soft_cap});
    }
}

} // namespace

std::span<const Architecture> architectures() { return kArchitectures; }

Parameters read_parameters(const GgufFile& file) {
    Parameters model;
    model.architecture = &find_architecture(file);
    const Reader reader(file, *model.architecture);
    refuse_unsupported(file, reader);
    model.layers = reader.integer("block_count", 1, kMaxLayers);
    model.embedding_dim = reader.integer("embedding_length", 1, kMaxWidth);
    model.feed_forward_dim = reader.per_layer("feed_forward_length", model.layers, kMaxWidth);
    model.context_length = reader.integer("context_length", 1, kMaxContext);
    read_heads(file, reader, model);
    read_windows(file, reader, model);
    read_rope(file, reader, model);
    read_scales(reader, model);
    const std::size_t tokens = file.texts("tokenizer.ggml.tokens").size();
    if (tokens == 0 || tokens > kMaxVocabulary) {
        file.fail("has no usable vocabulary: metadata tokenizer.ggml.tokens holds " +
                  std::to_string(tokens) + " tokens");
    }
    model.vocabulary_size = static_cast<int>(tokens);
    return model;
}

} // namespace innerkv::runner
