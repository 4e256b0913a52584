// SPDX-License-Identifier: Apache-2.0
// GGUF models decoding on the innerkv cache, on ggml and llama.cpp; this header shows neither, so that
// the program needs neither.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "innerkv/attention.h"
#include "innerkv/cache.h"
#include "innerkv/error.h"

namespace innerkv::runner {

using Token = std::int32_t;

inline constexpr int kMaxThreads = 512; ///< of a session: as many as ggml takes

/// Cores that this process may run on, kMaxThreads at most.
int available_cores();

/// A model file cannot be used: missing, broken, an architecture or a shape that is not supported.
class ModelError : public Error {
public:
    using Error::Error;
};

/// What the metadata say; enough to plan memory.
struct ModelInfo {
    std::string path;
    std::string name;
    std::string architecture;
    std::string weight_type; ///< e.g. "Q4_1"
    std::uint64_t file_bytes = 0;
    std::uint64_t parameters = 0;
    int layers = 0;
    int q_heads = 0;
    int kv_heads = 0;
    int head_dim = 0;
    int embedding_dim = 0;
    int vocabulary_size = 0;
    int context_length = 0;          ///< the longest context the model was trained for
    std::vector<int> sliding_window; ///< per layer; 0: none
    bool has_chat_template = false;
};

/// Reads metadata alone; throws ModelError.
ModelInfo inspect_model(const std::string& path);

struct ChatMessage {
    std::string role; ///< "system", "user", "assistant"
    std::string content;
};

/// Weights (mmap'ed) and vocabulary; shared by sessions.
class Model {
public:
    static std::shared_ptr<Model> load(const std::string& path);
    ~Model();

    const ModelInfo& info() const;
    /// Of weights that were copied into a layout that is multiplied faster; the rest is the file's own pages.
    std::size_t copied_bytes() const;

    /// `special`: text such as "<|im_end|>" becomes one token. `bos`: add the model's first token
    /// where its vocabulary asks for one.
    std::vector<Token> tokenize(std::string_view text, bool bos, bool special) const;
    /// Bytes of one token; may be part of a UTF-8 character.
    std::string piece(Token token) const;
    bool is_end(Token token) const;
    std::optional<Token> bos() const;
    /// The prompt in the model's own chat template, the assistant's turn opened; throws ModelError
    /// where there is none.
    std::string chat_prompt(std::span<const ChatMessage> messages) const;

private:
    friend struct ModelAccess; // the runner's own: model.h
    struct Impl;
    Model();
    std::unique_ptr<Impl> impl_;
};

struct Calibration; // calibration.h

struct SessionOptions {
    Preset preset;             ///< see find_preset; windows and codecs may be edited
    TransformPolicy transform; ///< norm is taken from the preset by make_options
    /// Codecs by layer in place of the preset's, one pair for each of the model's layers; empty: the preset's.
    std::vector<LayerCodecs> layer_codecs;
    /// Settings of the key transform that the contender's name gives, such as "norm", whatever their values.
    std::vector<std::string> named_transform;
    bool queries = true;        ///< the cache is shown queries, which `balanced` weighs
    int context = 0;            ///< tokens the cache is made for
    int threads = 0;            ///< 0: all cores
    int chunk = 512;            ///< prompt tokens a graph processes at once; a multiple of 32
    bool exact_prefill = false; ///< keep the whole prompt fp16 until it is complete
    /// Chunks of 32 tokens and more multiply by weights expanded to fp32, one weight at a time, where that is faster
    /// (types q4_0 to q8_0). It takes 4 bytes for each element of the largest of a layer's weights. false: as in
    /// decoding, where activations are rounded to 8 bits.
    bool expand_weights = true;
    /// The session is never cut back: libllama then keeps no more than a model's sliding windows need.
    bool forward_only = false;
    Arithmetic arithmetic = Arithmetic::integer;
    std::string isa; ///< empty: automatic
    /// Somebody else's cache instead of the preset's, as rival_names() has them; empty: none. Norms,
    /// arithmetic and, where libllama runs it, isa have no meaning then.
    std::string rival;
    /// Key transforms of all sequences, in place of `transform`, or codecs by layer, or both; null: none. Of this
    /// very model, and for presets that quantize.
    std::shared_ptr<const Calibration> calibration;
};

/// The contender is a preset, paper:PRESET (the preset with the InnerQ paper's codecs) or a rival. Throws
/// InvalidArgument listing the names there are.
SessionOptions make_options(std::string_view contender, int context);

/// Whether a session of `length` tokens, whole pages of them, that has read up to a page more and is cut back to
/// them has the cache that it had then. Not where what is read would quantize other tokens than the next token
/// does: sinks or steps that are no whole pages, no recent window, or a key norm that is yet to be taken.
bool cuts_exactly(const SessionOptions& options, std::int64_t length);

/// Caches of others: sim:TYPE is simulated in our forward pass, llama:TYPE is libllama itself
/// (docs/rivals.md). A name's optional parts are in brackets.
std::vector<std::string> rival_names();

/// The cache config that a session of this model would have, for presets.
CacheConfig cache_config(const ModelInfo& info, const SessionOptions& options);

struct CacheReport {
    std::int64_t tokens = 0;
    std::size_t bytes =
        0; ///< in use: pages, windows, transforms; what they would be where simulated
    std::int64_t quantized_pages = 0; ///< of all layers; 0: windows hold everything
    std::size_t f16_bytes = 0;        ///< what an f16 cache of the same tokens takes
    /// Of the format, CacheConfig::bits_per_value: everything in a page counts, scales, zero-points and padding
    /// (of rivals, their blocks with minima and norms); windows and the transforms of a sequence don't.
    double bits_per_value = 0.0;
};

/// One sequence decoding on one model. Not for several threads at once.
///
/// Where processing fails inside (a model whose keys or values are not finite, memory), the session has the
/// tokens that it had before the chunk that failed, and no logits. In layers that had processed some of the
/// chunk they are as after truncate(): what had left the recent window by then stays quantized. The session
/// is empty where they cannot be had back: a sliding window has dropped some, or memory is short.
class Session {
public:
    /// Throws InvalidArgument (a context beyond the model's, ...) before anything large is allocated.
    Session(std::shared_ptr<Model> model, const SessionOptions& options);
    ~Session();

    const SessionOptions& options() const;
    std::int64_t length() const;

    /// Called with tokens done so far; false: stop after this chunk.
    using Progress = std::function<bool(std::int64_t done, std::int64_t total)>;

    /// Processes tokens and keeps the last one's logits. Every token attends as in decoding: to the
    /// quantized history beyond its windows. With exact_prefill, the prompt is settled at its end.
    /// Throws InvalidArgument where the context is too small, before any token is processed.
    void prompt(std::span<const Token> tokens, const Progress& progress = {});
    /// One token; logits() then tells the next.
    void decode(Token token);
    /// [vocabulary_size] of the last token processed; empty after truncate(), clear(), a prompt that
    /// was stopped, or a failure.
    std::span<const float> logits() const;

    /// Processes tokens with logits of each: `rows` gets [n, vocabulary_size] for tokens first .. first
    /// + n - 1, chunk by chunk; only tokens from `first_row` on have theirs computed. Both count from
    /// the start of `tokens`.
    using Rows = std::function<void(std::int64_t first, std::span<const float> logits)>;
    void evaluate(std::span<const Token> tokens, std::int64_t first_row, const Rows& rows,
                  const Progress& progress = {});

    void truncate(std::int64_t length);
    void clear();
    CacheReport cache_report() const;
    /// What the cache holds in one layer; valid until the session changes.
    SequenceView view(int layer) const;

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

struct SamplerOptions {
    float temperature = 0.0f; ///< 0: the most likely token
    int top_k = 40;
    float top_p = 0.95f;
    float min_p = 0.05f;
    std::uint32_t seed = 0;
};

class Sampler {
public:
    Sampler(const Model& model, const SamplerOptions& options);
    ~Sampler();
    Token sample(std::span<const float> logits);

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

/// Silences or forwards what ggml and llama.cpp log; default: silent.
void set_log(std::function<void(std::string_view)> sink);

} // namespace innerkv::runner
