// SPDX-License-Identifier: Apache-2.0
#include "device_bench.h"

#include <algorithm>
#include <memory>

#include "check.h"
#include "contender.h"
#include "device_timer.h"
#include "innerkv/codec.h"
#include "innerkv/cuda_cache.h"
#include "statistics.h"

namespace innerkv::bench {
namespace {

/// What one append brings: a chunk that asks is one append.
int append_tokens(const AttentionCase& attention) { return std::max(512, attention.tokens); }
constexpr double kGigabyte = 1e9;

/// Elements in device memory.
template <typename T>
class DeviceArray {
public:
    explicit DeviceArray(std::size_t count) : count_(count) {
        void* memory = nullptr;
        check(cudaMalloc(&memory, count * sizeof(T)), "allocating rows");
        memory_.reset(static_cast<T*>(memory));
    }
    T* get() const { return memory_.get(); }
    void write(const std::vector<T>& from) {
        check(cudaMemcpy(get(), from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice),
              "writing rows");
    }
    std::vector<T> read() const {
        std::vector<T> to(count_);
        check(cudaMemcpy(to.data(), get(), count_ * sizeof(T), cudaMemcpyDeviceToHost),
              "reading rows");
        return to;
    }

private:
    struct Free {
        void operator()(T* memory) const { cudaFree(memory); }
    };
    std::size_t count_;
    std::unique_ptr<T, Free> memory_;
};

CacheConfig config_of(const AttentionCase& attention, const Preset& preset) {
    CacheConfig config =
        CacheConfig::from_preset(preset, 1, attention.kv_heads, attention.head_dim);
    config.max_tokens = attention.context * attention.batch;
    config.max_sequences = attention.batch;
    config.max_append = append_tokens(attention);
    return config;
}

AttentionShape shape_of(const AttentionCase& attention, const Preset& preset) {
    AttentionShape shape;
    shape.q_heads = attention.q_heads;
    shape.kv_heads = attention.kv_heads;
    shape.format = preset.format(attention.head_dim);
    return shape;
}

cuda::AttentionLimits limits_of(const AttentionCase& attention) {
    cuda::AttentionLimits limits;
    limits.max_sequences = attention.batch;
    limits.max_query_tokens = attention.tokens;
    if (attention.tokens > 1) limits.max_history_tokens = attention.batch * attention.context;
    return limits;
}

class DeviceContender final : public Contender {
public:
    DeviceContender(const AttentionCase& attention, const Preset& preset, const DeviceTimer& timer,
                    const Checkpoint& checkpoint)
        : attention_(attention), preset_(preset), timer_(timer),
          cache_(config_of(attention, preset)), shape_(shape_of(attention, preset)),
          kernel_(shape_, limits_of(attention)), k_(chunk_elements()), v_(chunk_elements()),
          q_(sequences() * attention.query_elements()),
          out_(sequences() * attention.query_elements()) {
        for (int slot = 0; slot < attention_.batch; ++slot) {
            cache_.create();
            cache_.reserve(slot, attention_.context);
        }
        // The last tokens by themselves: what a decode step finds, or a prompt's chunk, which is fp16 then.
        append(0, attention_.context - attention_.tokens, checkpoint);
        append(attention_.context - attention_.tokens, attention_.context, checkpoint);
        cache_.verify();
        std::vector<float> queries;
        for (int slot = 0; slot < attention_.batch; ++slot)
            for (const float value : make_queries(attention_, slot)) queries.push_back(value);
        q_.write(queries);
        graph_ = std::make_unique<DeviceGraph>(timer_.capture([&] { kernel_.run(call()); }));
    }

    std::string name() const override { return "innerkv:" + std::string(preset_.name); }

    std::size_t bytes_read() const override {
        const cuda::HostSequence fetched = cache_.fetch(0);
        const SequenceView view = fetched.view(0);
        const std::size_t row =
            PageFormat{kF16, kF16, attention_.head_dim}.page_bytes() / kPageTokens;
        const auto f16_tokens = static_cast<std::size_t>(view.sink.tokens + view.recent.tokens);
        return sequences() * static_cast<std::size_t>(attention_.kv_heads) *
               (view.quantized.pages.size() * shape_.format.page_bytes() + f16_tokens * row);
    }

    void run() override {
        kernel_.run(call());
        check(cudaStreamSynchronize(timer_.stream()), "attention");
        output_ = out_.read();
    }
    std::span<const float> output() const override { return output_; }

    double time_us() const { return timer_.time_us(*graph_); }

    int integer_rows() const override {
        return shape_.format.k.quantized() ? attention_.rows() : 0;
    }

    /// Attention of a sequence on what the cache holds, of the judged tokens.
    std::vector<float> expected_output(int sequence) const override {
        const cuda::HostSequence fetched = cache_.fetch(sequence);
        const SequenceView view = fetched.view(0);
        const std::vector<float> queries = make_queries(attention_, sequence);
        std::vector<float> out(sequences() * queries.size()); // the batch's, as it is judged
        float* own = out.data() + static_cast<std::size_t>(sequence) * queries.size();
        const auto token_elements = static_cast<std::ptrdiff_t>(attention_.token_elements());
        for (const int token : judged_tokens(attention_)) {
            QueryBlock block;
            block.sequence = &view;
            block.q = queries.data() + token * token_elements;
            block.out = own + token * token_elements;
            block.q_token_stride = block.out_token_stride = token_elements;
            block.q_head_stride = block.out_head_stride = attention_.head_dim;
            block.first_position = attention_.first_position(sequence) + token;
            attention_reference(shape_, {&block, 1});
        }
        return judged_output(attention_, out, sequence);
    }

    /// Of 32 tokens, a page being quantized meanwhile.
    double append_us() override {
        constexpr int kAppends = 32;
        AttentionCase one = attention_;
        one.batch = one.tokens = 1;
        one.context = std::int64_t{kPageTokens} * kAppends;
        cuda::DeviceCache cache(config_of(one, preset_));
        cache.reserve(cache.create(), one.context);
        const DeviceGraph graph = timer_.capture([&] { cache.append(append_call(kPageTokens)); });
        double least = -1;
        for (int append = 0; append < kAppends; ++append) {
            const double taken = timer_.time_us(graph);
            // Before the last ones nothing, or several pages, may fall due.
            if (append >= kAppends / 2 && (least < 0 || taken < least)) least = taken;
        }
        cache.verify();
        return least;
    }

private:
    std::size_t sequences() const { return static_cast<std::size_t>(attention_.batch); }
    std::size_t chunk_elements() const {
        return sequences() * static_cast<std::size_t>(append_tokens(attention_)) *
               attention_.row_elements();
    }

    /// The first tokens of k_ and v_, for every slot.
    cuda::DeviceAppend append_call(int tokens) const {
        const auto row = static_cast<std::ptrdiff_t>(attention_.row_elements());
        cuda::DeviceAppend append;
        append.max_tokens = tokens;
        append.k = {k_.get(), RowType::f16, tokens * row, row, attention_.head_dim};
        append.v = {v_.get(), RowType::f16, tokens * row, row, attention_.head_dim};
        append.stream = timer_.stream();
        return append;
    }

    /// Tokens first .. end - 1 of every sequence.
    void append(std::int64_t first, std::int64_t end, const Checkpoint& checkpoint) {
        std::vector<float> rows[2];
        std::vector<std::uint16_t> halves[2];
        while (first < end) {
            checkpoint();
            const std::int64_t tokens =
                std::min<std::int64_t>(append_tokens(attention_), end - first);
            const std::size_t count = static_cast<std::size_t>(tokens) * attention_.row_elements();
            for (int side = 0; side < 2; ++side) {
                rows[side].resize(count);
                halves[side].clear();
            }
            for (int slot = 0; slot < attention_.batch; ++slot) {
                make_rows(attention_, slot, first, tokens, rows[0].data(), rows[1].data());
                for (int side = 0; side < 2; ++side)
                    for (const float value : rows[side])
                        halves[side].push_back(f16_from_float(value));
            }
            check(cudaStreamSynchronize(timer_.stream()), "filling a cache");
            k_.write(halves[0]);
            v_.write(halves[1]);
            cache_.append(append_call(static_cast<int>(tokens)));
            first += tokens;
        }
    }

    cuda::AttentionCall call() const {
        cuda::AttentionCall call;
        call.sequences = cache_.sequences(0);
        call.count = attention_.batch;
        call.q = q_.get();
        call.out = out_.get();
        call.q_head_stride = call.out_head_stride = attention_.head_dim;
        call.q_token_stride = call.out_token_stride =
            static_cast<std::ptrdiff_t>(attention_.token_elements());
        call.q_sequence_stride = call.out_sequence_stride =
            static_cast<std::ptrdiff_t>(attention_.query_elements());
        call.stream = timer_.stream();
        return call;
    }

    AttentionCase attention_;
    const Preset& preset_;
    const DeviceTimer& timer_;
    cuda::DeviceCache cache_;
    AttentionShape shape_;
    cuda::Attention kernel_;
    DeviceArray<std::uint16_t> k_; ///< [sequence, token, kv_head, head_dim]: what is appended next
    DeviceArray<std::uint16_t> v_;
    DeviceArray<float> q_; ///< [sequence, token, q_head, head_dim]
    DeviceArray<float> out_;
    std::vector<float> output_;
    std::unique_ptr<DeviceGraph> graph_;
};

using Contenders = std::vector<std::unique_ptr<DeviceContender>>;

/// False where the caller wants no more.
bool report(const AttentionBenchOptions& options, const std::string& what, int done, int total) {
    return !options.progress || options.progress(what, done, total);
}

struct Stopped {};

AttentionBenchResult measure(const AttentionBenchOptions& options) {
    const DeviceTimer timer;
    AttentionBenchResult bench;
    bench.isa = cuda::devices().at(0).name;
    int driver = 0;
    check(cudaDriverGetVersion(&driver), "asking for the driver's version");
    const auto version = [](int number) {
        return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
    };
    bench.cuda = "driver for " + version(driver) + ", runtime " + version(CUDART_VERSION);
    bench.dot_instruction = "mma.m16n8k32";
    Contenders contenders;
    for (const std::string& preset : options.presets)
        contenders.push_back(
            std::make_unique<DeviceContender>(options.attention, find_preset(preset), timer, [&] {
                if (!report(options, "filling caches", static_cast<int>(contenders.size()),
                            static_cast<int>(options.presets.size())))
                    throw Stopped();
            }));
    const std::vector<ExactOutput> exact = exact_outputs(options.attention);
    for (const auto& contender : contenders)
        bench.results.push_back(judge(options.attention, *contender, exact));
    bench.read_bandwidth_gb_per_s = timer.read_bandwidth() / kGigabyte;
    bench.dot_gmac_per_s = timer.dot_rate() / kGigabyte;
    std::vector<std::vector<double>> samples(contenders.size());
    for (; bench.rounds < options.repeats; ++bench.rounds) {
        if (!report(options, "measuring", bench.rounds, options.repeats)) break;
        for (std::size_t i = 0; i < contenders.size(); ++i)
            samples[i].push_back(contenders[i]->time_us());
    }
    if (bench.rounds == 0) throw Stopped();
    for (std::size_t i = 0; i < contenders.size(); ++i) {
        add_times(bench, options.attention, samples[i], bench.results[i]);
        bench.results[i].ratio = bench.results[i].median_us / bench.results[0].median_us;
        bench.results[i].append_us = contenders[i]->append_us();
    }
    bench.floor_us = bench.results.front().floor_us;
    return bench;
}

} // namespace

AttentionBenchResult run_device_attention_bench(const AttentionBenchOptions& options) {
    if (cuda::devices().empty()) throw cuda::Unavailable("cuda: " + cuda::unavailable_reason());
    try {
        return measure(options);
    } catch (const Stopped&) {
        return {};
    }
}

} // namespace innerkv::bench
