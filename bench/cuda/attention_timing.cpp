// SPDX-License-Identifier: Apache-2.0
// Attention on a device in microseconds, the second-level cache cold: a table by preset, batch and context. The last
// `tokens` tokens of a context ask: 1 as in decoding, more as in a prompt's chunk, which then is fp16.
//
//     cuda_attention_timing [preset,...] [q_heads] [kv_heads] [head_dim] [tokens] [batchxcontext,...]
//
// Pages are quantized from Gaussian rows, a few of them, copied to as many places as the context has. Two figures
// (device_timer.h): events around a replay of a CUDA graph that holds one call, and the time of a call inside a graph.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "device_timer.h"
#include "innerkv/codec.h"
#include "innerkv/cuda.h"
#include "statistics.h"

namespace {

using namespace innerkv;
using bench::check;
using bench::median;

struct Case {
    int batch;
    std::int64_t context;
};

/// "8x32768"
Case case_of(const std::string& text) {
    std::istringstream from(text);
    Case result{};
    char by = 0;
    if (!(from >> result.batch >> by >> result.context) || !from.eof() || by != 'x' ||
        result.batch < 1 || result.context < 256)
        throw std::runtime_error("\"" + text +
                                 "\" is no case; one is BATCHxCONTEXT, of at least 256 tokens");
    return result;
}

std::vector<std::string> split(const std::string& list) {
    std::istringstream from(list);
    std::vector<std::string> parts;
    for (std::string part; std::getline(from, part, ',');) parts.push_back(part);
    return parts;
}

/// Host pages that sequences are made of.
struct Pages {
    std::vector<std::vector<unsigned char>> memory;
    std::vector<const std::byte*> at;

    Pages(const PageFormat& format, int kv_heads, int count) {
        std::mt19937 random(1);
        std::normal_distribution<float> normal;
        const auto values = static_cast<std::size_t>(kPageTokens * format.head_dim);
        std::vector<float> k(values);
        std::vector<float> v(values);
        for (int i = 0; i < count; ++i) {
            auto& page =
                memory.emplace_back(format.page_bytes() * static_cast<std::size_t>(kv_heads) + 64);
            auto* aligned = reinterpret_cast<std::byte*>(
                (reinterpret_cast<std::uintptr_t>(page.data()) + 63) / 64 * 64);
            for (int head = 0; head < kv_heads; ++head) {
                std::generate(k.begin(), k.end(), [&] { return normal(random); });
                std::generate(v.begin(), v.end(), [&] { return normal(random); });
                quantize_page(format, k.data(), format.head_dim, v.data(), format.head_dim,
                              aligned + static_cast<std::size_t>(head) * format.page_bytes());
            }
            at.push_back(aligned);
        }
    }
};

PageRun run_of(const Pages& pages, const PageFormat& format, std::int64_t first,
               std::int64_t tokens, std::vector<const std::byte*>& table) {
    for (std::int64_t page = 0; page < (tokens + 31) / 32; ++page)
        table.push_back(pages.at[static_cast<std::size_t>(page) % pages.at.size()]);
    return {table, format.page_bytes(), first, tokens};
}

struct Heads {
    int query;
    int key_value;
    int dim;
};

void time_case(const Preset& preset, const Heads& heads, int tokens, const Case& tested,
               const bench::DeviceTimer& timer, double bandwidth) {
    const auto [q_heads, kv_heads, head_dim] = heads;
    AttentionShape shape;
    shape.q_heads = q_heads;
    shape.kv_heads = kv_heads;
    shape.format = preset.format(head_dim);
    const PageFormat windows{kF16, kF16, head_dim};
    const bool all_f16 = !shape.format.quantized();
    const Pages quantized(shape.format, kv_heads, 16);
    const Pages dense(windows, kv_heads, 4);
    std::vector<const std::byte*> tables[3];
    SequenceView view;
    const std::int64_t recent =
        all_f16 ? tested.context - 32 : 96 + (tokens / 32 * 32) + tested.context % 32;
    view.sink = run_of(dense, windows, 0, 32, tables[0]);
    if (!all_f16)
        view.quantized =
            run_of(quantized, shape.format, 32, tested.context - 32 - recent, tables[1]);
    view.recent = run_of(dense, windows, tested.context - recent, recent, tables[2]);
    view.length = tested.context;
    std::vector<float> norm(static_cast<std::size_t>(head_dim), 1.0f);
    std::vector<KeyTransform> transforms(static_cast<std::size_t>(kv_heads),
                                         {norm.data(), nullptr, nullptr, true});
    std::vector<std::byte> centre(static_cast<std::size_t>(kv_heads * head_dim) * 2);
    const std::vector<const std::byte*> epochs(static_cast<std::size_t>(tested.context / 256 + 1),
                                               centre.data());
    if (!all_f16) {
        view.transforms = transforms;
        view.centres = {epochs, 8, 0};
    }
    const std::vector<cuda::SequenceQueries> asked(static_cast<std::size_t>(tested.batch),
                                                   {&view, tested.context - tokens, tokens});
    const cuda::DeviceSequences sequences(shape, asked);
    cuda::Attention attention(
        shape, {0, tested.batch, tokens, 0, tokens > 1 ? tested.batch * tested.context : 0});
    const auto elements = static_cast<std::size_t>(tested.batch * tokens * q_heads * head_dim);
    std::mt19937 random(2);
    std::normal_distribution<float> normal;
    std::vector<std::uint16_t> host(elements);
    for (auto& value : host) value = f16_from_float(normal(random));
    std::uint16_t* q = nullptr;
    std::uint16_t* out = nullptr;
    check(cudaMalloc(&q, elements * 2));
    check(cudaMalloc(&out, elements * 2));
    check(cudaMemcpy(q, host.data(), elements * 2, cudaMemcpyHostToDevice));
    cuda::AttentionCall call;
    call.sequences = sequences.data();
    call.count = tested.batch;
    call.q = q;
    call.out = out;
    call.q_type = call.out_type = RowType::f16;
    call.q_head_stride = call.out_head_stride = head_dim;
    call.q_token_stride = call.out_token_stride = q_heads * head_dim;
    call.q_sequence_stride = call.out_sequence_stride = tokens * q_heads * head_dim;
    call.stream = timer.stream();
    const auto work = [&] { attention.run(call); };
    const bench::DeviceGraph graph = timer.capture(work);
    std::vector<double> samples(31);
    for (double& sample : samples) sample = timer.time_us(graph);
    const double events = median(samples);
    const double inside = timer.time_inside_graph_us(work);
    const double bytes =
        static_cast<double>(tested.batch) * kv_heads *
        (static_cast<double>(view.quantized.pages.size() * shape.format.page_bytes()) +
         static_cast<double>((32 + recent) * 4 * head_dim));
    std::printf("%-7s %3d x %-7ld events %7.1f us  alone %7.1f us  %8.2f MB  %6.0f GB/s  %4.1f%%",
                std::string(preset.name).c_str(), tested.batch, static_cast<long>(tested.context),
                events, inside, bytes / 1e6, bytes / inside / 1e3,
                1e8 * bytes / inside / bandwidth);
    if (tokens > 1) { // two products, each a multiplication and an addition a channel
        const double seen = static_cast<double>(tested.context) - 0.5 * (tokens - 1);
        std::printf("  %4.0f TFLOP/s", 4.0 * static_cast<double>(elements) * seen / events / 1e6);
    }
    std::printf("\n");
    std::fflush(stdout);
    check(cudaFree(q));
    check(cudaFree(out));
}

} // namespace

int main(int argc, char** argv) try {
    const std::vector<std::string> presets = split(argc > 1 ? argv[1] : "base");
    const auto number = [&](int index, int otherwise) {
        if (argc <= index) return otherwise;
        const std::string text = argv[index];
        std::istringstream from(text);
        int value = 0;
        if (!(from >> value) || !from.eof() || value < 1)
            throw std::runtime_error("argument " + std::to_string(index) + ", \"" + text +
                                     "\", is no whole number from 1 on");
        return value;
    };
    if (argc > 7)
        throw std::runtime_error("too many arguments; they are [preset,...] [q_heads] [kv_heads] "
                                 "[head_dim] [tokens] [batchxcontext,...]");
    for (const std::string& name : presets) static_cast<void>(find_preset(name));
    const Heads heads{number(2, 32), number(3, 8), number(4, 128)};
    const int tokens = number(5, 1);
    if (heads.query % heads.key_value != 0)
        throw std::runtime_error(std::to_string(heads.query) + " query heads are no multiple of " +
                                 std::to_string(heads.key_value) + " KV heads");
    const char* usual = tokens > 1 ? "1x8192,1x32768,1x131072,4x32768"
                                   : "1x8192,1x32768,1x131072,8x8192,8x32768,32x8192";
    std::vector<Case> cases;
    for (const std::string& text : split(argc > 6 ? argv[6] : usual))
        cases.push_back(case_of(text));
    for (const Case& tested : cases) {
        if (tested.batch > cuda::kMaxSequences)
            throw std::runtime_error(std::to_string(tested.batch) +
                                     " sequences; supported are 1 to " +
                                     std::to_string(cuda::kMaxSequences));
        if (tokens + 160 > tested.context)
            throw std::runtime_error(std::to_string(tokens) + " tokens of a context of " +
                                     std::to_string(tested.context) + "; it must be 160 longer");
    }
    if (cuda::devices().empty()) throw std::runtime_error(cuda::unavailable_reason());
    const bench::DeviceTimer timer;
    const double bandwidth = timer.read_bandwidth();
    std::printf("%s, %d query heads on %d, %d channels; reading %.0f GB/s\n",
                cuda::devices().at(0).name.c_str(), heads.query, heads.key_value, heads.dim,
                bandwidth / 1e9);
    for (const std::string& name : presets)
        for (const Case& tested : cases)
            time_case(find_preset(name), heads, tokens, tested, timer, bandwidth);
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
