// SPDX-License-Identifier: Apache-2.0
// libllama with a quantized cache of its own, for comparison.
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>

#include "backend.h"
#include "engine.h"
#include "innerkv/error.h"
#include "innerkv/plan.h"
#include "llama.h"
#include "log.h"
#include "rivals.h"

namespace innerkv::runner {
namespace {

constexpr std::uint32_t kPolling = 50; ///< between graphs, as llama.cpp's programs do

constexpr const char* kRotationOff = "LLAMA_ATTN_ROT_DISABLE";

/// An environment variable for as long as the object lives: libllama reads this one when a context is
/// made, and has no parameter for it.
class Environment {
public:
    Environment(const char* name, const char* value) : name_(name) {
        if (const char* const before = std::getenv(name)) {
            before_ = before;
        }
        ::setenv(name, value, 1);
    }
    ~Environment() {
        if (before_) {
            ::setenv(name_, before_->c_str(), 1);
        } else {
            ::unsetenv(name_);
        }
    }
    Environment(const Environment&) = delete;
    Environment& operator=(const Environment&) = delete;

private:
    const char* name_;
    std::optional<std::string> before_;
};

ggml_type find_type(const std::string& name) {
    for (int type = 0; type < GGML_TYPE_COUNT; ++type) {
        const char* const known = ggml_type_name(static_cast<ggml_type>(type));
        if (known && name == known) {
            return static_cast<ggml_type>(type);
        }
    }
    throw InvalidArgument("ggml has no type '" + name + "'");
}

struct FreeModel {
    void operator()(llama_model* model) const { llama_model_free(model); }
};
struct FreeLlamaContext {
    void operator()(llama_context* context) const { llama_free(context); }
};

class LlamaEngine final : public Engine {
public:
    LlamaEngine(const ModelInfo& info, const SessionOptions& options, const Rival& rival)
        : info_(info), config_(cache_config(info, options)), type_(find_type(rival.type)),
          batch_(options.chunk), pool_(make_thread_pool(options.threads, kPolling)) {
        if (rival.cache.k.codec) {
            rival.cache.k.codec->check(info_.head_dim);
        }
        cpu_device();
        const CaughtLog log;
        model_.reset(llama_model_load_from_file(info.path.c_str(), llama_model_default_params()));
        if (!model_) {
            throw ModelError("libllama cannot load " + info.path + ": " + log.first_error());
        }
        llama_context_params params = llama_context_default_params();
        params.n_ctx = static_cast<std::uint32_t>(options.context);
        params.n_batch = params.n_ubatch = static_cast<std::uint32_t>(options.chunk);
        params.n_threads = params.n_threads_batch = options.threads;
        // true: windows by the mask alone, so that any length can be returned to.
        params.swa_full = !options.forward_only;
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
        params.type_k = params.type_v = type_;
        const Environment rotation(kRotationOff, rival.rotate ? "0" : "1");
        context_.reset(llama_init_from_model(model_.get(), params));
        if (!context_) {
            throw Error("libllama cannot make a context with a cache of " + rival.type + ": " +
                        log.first_error());
        }
        // Without one, threads are started for every graph.
        llama_attach_threadpool(context_.get(), pool_.get(), nullptr);
    }

    std::span<const float> process(std::span<const Token> tokens, std::int64_t position,
                                   int outputs) override {
        const llama_batch& batch = batch_.fill(tokens, position, outputs);
        const CaughtLog log;
        const int status = llama_decode(context_.get(), batch);
        if (status != 0) {
            throw Error("libllama cannot process " + std::to_string(tokens.size()) +
                        " tokens (status " + std::to_string(status) + ") " + log.first_error());
        }
        if (outputs == 0) {
            return {};
        }
        return {llama_get_logits(context_.get()),
                static_cast<std::size_t>(outputs) *
                    static_cast<std::size_t>(info_.vocabulary_size)};
    }

    void settle() override {}

    void truncate(std::int64_t length) override {
        const bool done = llama_memory_seq_rm(llama_get_memory(context_.get()), 0,
                                              static_cast<llama_pos>(length), -1);
        if (!done) {
            throw InvalidArgument("libllama's cache cannot be cut back to " +
                                  std::to_string(length) + " tokens; clear it");
        }
    }

    void clear() override { llama_memory_clear(llama_get_memory(context_.get()), true); }

    SequenceView view(int) const override {
        throw InvalidArgument("a cache inside libllama cannot be viewed; choose a preset");
    }
    CacheReport report(std::int64_t length) const override {
        CacheReport report;
        report.tokens = length;
        report.bits_per_value = 8.0 * static_cast<double>(ggml_type_size(type_)) /
                                static_cast<double>(ggml_blck_size(type_));
        report.f16_bytes = f16_sequence_bytes(config_, length);
        const auto values = static_cast<std::int64_t>(report.f16_bytes / sizeof(ggml_fp16_t));
        report.bytes = ggml_row_size(type_, values);
        if (ggml_is_quantized(type_)) {
            const std::int64_t page_values =
                std::int64_t{2} * kPageTokens * info_.kv_heads * info_.head_dim;
            report.quantized_pages = (values + page_values - 1) / page_values;
        }
        return report;
    }

private:
    /// A batch of one sequence.
    class Batch {
    public:
        explicit Batch(int size) : batch_(llama_batch_init(size, 0, 1)) {}
        ~Batch() { llama_batch_free(batch_); }
        Batch(const Batch&) = delete;
        Batch& operator=(const Batch&) = delete;

        const llama_batch& fill(std::span<const Token> tokens, std::int64_t position, int outputs) {
            const auto count = static_cast<int>(tokens.size());
            batch_.n_tokens = count;
            for (int i = 0; i < count; ++i) {
                batch_.token[i] = tokens[static_cast<std::size_t>(i)];
                batch_.pos[i] = static_cast<llama_pos>(position + i);
                batch_.n_seq_id[i] = 1;
                batch_.seq_id[i][0] = 0;
                batch_.logits[i] = i >= count - outputs ? 1 : 0;
            }
            return batch_;
        }

    private:
        llama_batch batch_;
    };

    ModelInfo info_;
    CacheConfig config_; ///< of fp16, to compare with
    ggml_type type_;
    Batch batch_;
    PoolPtr pool_; ///< outlives the context that uses it
    std::unique_ptr<llama_model, FreeModel> model_;
    std::unique_ptr<llama_context, FreeLlamaContext> context_;
};

} // namespace

std::unique_ptr<Engine> make_llama_engine(const Model& model, const SessionOptions& options) {
    return std::make_unique<LlamaEngine>(model.info(), options, parse_rival(options.rival));
}

} // namespace innerkv::runner
