// SPDX-License-Identifier: Apache-2.0
// Every contender, ours and ggml's, computes the attention it is timed for.
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "attention_bench.h"
#include "cases.h"
#include "contender.h"
#include "innerkv/attention.h"
#include "innerkv/error.h"
#include "processor.h"

namespace innerkv::bench {
namespace {

/// Enough for quantized pages; neither a multiple of a page nor of ggml's padding.
constexpr std::int64_t kContext = 777;

std::vector<float> exact_batch(const AttentionCase& attention) {
    std::vector<float> exact;
    for (int sequence = 0; sequence < attention.batch; ++sequence) {
        const std::vector<float> one = exact_attention(attention, sequence);
        exact.insert(exact.end(), one.begin(), one.end());
    }
    return exact;
}

/// Of the judged tokens of all sequences.
std::vector<float> run_once(const AttentionCase& attention, Contender& contender) {
    contender.wake();
    contender.run();
    contender.rest();
    std::vector<float> output;
    for (int sequence = 0; sequence < attention.batch; ++sequence) {
        const std::vector<float> one = judged_output(attention, contender.output(), sequence);
        output.insert(output.end(), one.begin(), one.end());
    }
    return output;
}

TEST(InnerkvContender, EveryPresetIsNearTheExactResult) {
    const AttentionCase attention = small_case(kContext);
    const std::vector<float> exact = exact_batch(attention);
    for (const int threads : {1, 3}) {
        ThreadPool pool(threads);
        for (const Preset& preset : presets()) {
            SCOPED_TRACE(std::string(preset.name) + ", " + std::to_string(threads) + " threads");
            const auto contender = make_innerkv_contender(attention, preset.name, "", pool);
            EXPECT_EQ(contender->name(), "innerkv:" + std::string(preset.name));
            const std::vector<float> output = run_once(attention, *contender);
            ASSERT_EQ(output.size(), exact.size());
            EXPECT_GT(cosine(output, exact), preset.k.quantized() ? 0.8 : 0.999999);
            EXPECT_LT(relative_error(std::span(output).first(attention.query_elements()),
                                     contender->expected_output(0)),
                      preset.k.quantized() ? 0.01 : 1e-4);
        }
    }
}

TEST(InnerkvContender, BytesAreThoseOfTheCache) {
    AttentionCase attention = small_case(kContext);
    attention.batch = 1;
    ThreadPool pool(1);
    // 777 tokens: 32 in the sink, 20 pages, 105 recent ones; 2 KV heads.
    const auto base = make_innerkv_contender(attention, "base", "", pool);
    EXPECT_EQ(base->bytes_read(), 2 * (20 * 1792 + (32 + 105) * 2 * 64 * 2));
    const auto f16 = make_innerkv_contender(attention, "f16", "", pool);
    EXPECT_EQ(f16->bytes_read(), 2u * 777 * 2 * 64 * 2);
}

/// All but the last token is the first sequence's.
TEST(InnerkvContender, ForksAreNearTheExactResult) {
    AttentionCase attention = small_case(kContext);
    attention.batch = 4;
    attention.shared = true;
    const std::vector<float> exact = exact_batch(attention);
    ThreadPool pool(2);
    for (const char* preset : {"base", "f16"}) {
        const auto contender = make_innerkv_contender(attention, preset, "", pool);
        EXPECT_EQ(contender->name(), "innerkv:" + std::string(preset) + ":shared");
        const std::vector<float> output = run_once(attention, *contender);
        ASSERT_EQ(output.size(), exact.size());
        const auto size = static_cast<std::ptrdiff_t>(attention.query_elements());
        for (std::ptrdiff_t at = 0; at < 4; ++at) {
            const std::span<const float> one(output.begin() + at * size,
                                             output.begin() + (at + 1) * size);
            const std::span<const float> right(exact.begin() + at * size,
                                               exact.begin() + (at + 1) * size);
            EXPECT_GT(cosine(one, right), preset[0] == 'b' ? 0.8 : 0.999999);
        }
    }
    // 20 pages and 4 fp16 ones that all have, and each its own last fp16 page of 9 tokens.
    EXPECT_EQ(make_innerkv_contender(attention, "base", "", pool)->bytes_read(),
              2 * (20 * 1792 + (32 + 96 + 4 * 9) * 2 * 64 * 2));
}

/// A prompt's chunk, and sequences of unequal lengths: ours and ggml's.
TEST(Contenders, ChunksAndUnequalLengthsAreNearTheExactResult) {
    AttentionCase chunk = small_case(kContext);
    chunk.tokens = 37;
    AttentionCase ragged = small_case(kContext);
    ragged.batch = 3;
    ragged.ragged = true;
    ThreadPool pool(2);
    for (const AttentionCase& attention : {chunk, ragged}) {
        SCOPED_TRACE(attention.tokens);
        const std::vector<float> exact = exact_batch(attention);
        const auto base = make_innerkv_contender(attention, "base", "", pool);
        const std::vector<float> output = run_once(attention, *base);
        EXPECT_GT(cosine(output, exact), 0.8);
        const std::vector<float> expected = base->expected_output(0);
        EXPECT_LT(relative_error(std::span(output).first(expected.size()), expected), 0.01);
        const auto f16 = make_innerkv_contender(attention, "f16", "", pool);
        EXPECT_GT(cosine(run_once(attention, *f16), exact), 0.999999);
        EXPECT_EQ(f16->bytes_read(),
                  2u * 2 * 64 * 2 * static_cast<std::size_t>(attention.total_context()));
        for (const char* name : {"ggml:f16", "ggml-rows:f16"}) {
            const auto peer = make_peer(attention, name, 2);
            EXPECT_LT(relative_error(run_once(attention, *peer), exact), 2e-2) << name;
            EXPECT_EQ(peer->bytes_read(), f16->bytes_read());
        }
    }
}

TEST(Contenders, BytesAreKnownBeforehand) {
    const AttentionCase small = small_case(kContext);
    ThreadPool pool(1);
    for (const Preset& preset : presets())
        EXPECT_GE(innerkv_contender_bytes(small, preset.name),
                  make_innerkv_contender(small, preset.name, "", pool)->bytes_read())
            << preset.name;
    // Windows, the room for a chunk and tables are little beside a million tokens.
    const AttentionCase large = small_case(1 << 20);
    // K and V, sequences, tokens, heads, channels
    const double values = 2.0 * 2 * (1 << 20) * 2 * 64;
    for (const Preset& preset : presets()) {
        const double bytes = values / 8 * preset.format(64).bits_per_value();
        const auto planned = static_cast<double>(innerkv_contender_bytes(large, preset.name));
        EXPECT_GE(planned, bytes) << preset.name;
        EXPECT_LE(planned, 1.1 * bytes) << preset.name;
    }
    // Sequences and tokens of the mask in fp16; queries and outputs in fp32.
    const double rest = 2.0 * (1 << 20) * 2 + 2.0 * 2 * static_cast<double>(large.q_heads) * 64 * 4;
    EXPECT_EQ(static_cast<double>(peer_bytes(large, "ggml:f16")), values * 2 + rest);
    EXPECT_EQ(static_cast<double>(peer_bytes(large, "ggml-rows:q8_0")), values / 32 * 34 + rest);
    EXPECT_THROW(innerkv_contender_bytes(small, "no-preset"), InvalidArgument);
    EXPECT_THROW(peer_bytes(small, "ggml:no-type"), InvalidArgument);
}

TEST(GgmlPeer, EveryTypeIsNearTheExactResult) {
    const std::map<std::string, double> largest_errors{
        {"f32", 2e-2},  {"f16", 2e-2}, {"bf16", 2e-2}, {"q8_0", 3e-2},  {"q5_0", 0.10},
        {"q5_1", 0.10}, {"q4_0", 0.2}, {"q4_1", 0.2},  {"iq4_nl", 0.2},
    };
    AttentionCase attention = small_case(kContext);
    for (const int batch : {1, 2}) {
        attention.batch = batch;
        const std::vector<float> exact = exact_batch(attention);
        for (const std::string& name : peer_names()) {
            SCOPED_TRACE(name + ", batch " + std::to_string(batch));
            const std::string type = name.substr(name.find(':') + 1);
            ASSERT_TRUE(largest_errors.contains(type));
            const auto peer = make_peer(attention, name, batch);
            EXPECT_EQ(peer->name(), name);
            EXPECT_LT(relative_error(run_once(attention, *peer), exact), largest_errors.at(type));
        }
    }
}

TEST(GgmlPeer, LayoutsHoldTheSame) {
    const AttentionCase attention = small_case(kContext);
    for (const std::string type : {"f16", "q4_0"}) {
        const std::vector<float> heads =
            run_once(attention, *make_peer(attention, "ggml:" + type, 1));
        EXPECT_EQ(run_once(attention, *make_peer(attention, "ggml-rows:" + type, 1)), heads)
            << type;
    }
}

TEST(GgmlPeer, BytesAreThoseOfItsTypes) {
    AttentionCase attention = small_case(kContext);
    attention.batch = 1;
    const std::size_t values = 2u * 777 * 2 * 64;
    EXPECT_EQ(make_peer(attention, "ggml:f16", 1)->bytes_read(), values * 2);
    EXPECT_EQ(make_peer(attention, "ggml:q8_0", 1)->bytes_read(), values / 32 * 34);
    EXPECT_EQ(make_peer(attention, "ggml-rows:q4_0", 1)->bytes_read(), values / 32 * 18);
}

TEST(GgmlPeer, UnknownPeersAndShapesAreRefused) {
    AttentionCase attention = small_case(kContext);
    for (const char* name : {"ggml", "ggml:", "ggml:q3_9", "llama:f16", ""})
        EXPECT_THROW(make_peer(attention, name, 1), InvalidArgument) << name;
    attention.head_dim = 80;
    EXPECT_THROW(make_peer(attention, "ggml:q8_0", 1), InvalidArgument);
    EXPECT_NO_THROW(make_peer(attention, "ggml:f16", 1));
}

TEST(Isa, EveryAvailableOneHasADotInstruction) {
    ThreadPool pool(1);
    pool.wake();
    for (const std::string_view isa : available_isas()) {
        EXPECT_EQ(select_isa(isa), isa);
        for (const int rows : {1, 4, 5, 8, 9, 64})
            EXPECT_GT(dot_rate(pool, dot_instruction(isa, rows)), 0) << isa << ", " << rows;
    }
    EXPECT_THROW(dot_instruction("vax", 1), InvalidArgument);
}

TEST(AttentionBench, FieldsAgreeWithEachOther) {
    AttentionBenchOptions options;
    options.attention = small_case(kContext);
    options.presets = {"base", "k8v8"};
    options.peers = {"ggml:f16"};
    options.repeats = 3;
    options.cold = true;
    options.memory_bytes = 1 << 22;
    std::vector<std::string> stages;
    options.progress = [&](const std::string& what, int, int) {
        if (stages.empty() || stages.back() != what) stages.push_back(what);
        return true;
    };
    const AttentionBenchResult bench = run_attention_bench(options);
    EXPECT_EQ(bench.isa, available_isas().front());
    EXPECT_EQ(bench.rounds, 3);
    EXPECT_EQ(stages.back(), "measuring");
    EXPECT_GT(bench.read_bandwidth_gb_per_s, 0);
    EXPECT_GT(bench.dot_gmac_per_s, 0);
    ASSERT_EQ(bench.results.size(), 3u);
    EXPECT_EQ(bench.results[0].ratio, 1);
    EXPECT_EQ(bench.floor_us, bench.results[0].floor_us);
    for (const ContenderResult& result : bench.results) {
        SCOPED_TRACE(result.name);
        EXPECT_LE(result.min_us, result.median_us);
        EXPECT_DOUBLE_EQ(result.ratio, result.median_us / bench.results[0].median_us);
        EXPECT_NEAR(result.gb_per_s * result.median_us * 1e3,
                    static_cast<double>(result.bytes_read), 1);
        EXPECT_NEAR(result.percent_of_read_bandwidth,
                    100 * result.gb_per_s / bench.read_bandwidth_gb_per_s, 1e-9);
        EXPECT_GE(result.floor_us * bench.read_bandwidth_gb_per_s * 1e3,
                  static_cast<double>(result.bytes_read) * 0.999);
        EXPECT_DOUBLE_EQ(result.times_floor * result.floor_us, result.median_us);
        EXPECT_DOUBLE_EQ(result.min_times_floor * result.floor_us, result.min_us);
    }
    EXPECT_LT(bench.results[2].arithmetic_error, 0); // a peer's cache cannot be read
    EXPECT_GT(bench.results[0].append_us, 0);
    EXPECT_EQ(bench.results[2].append_us, -1);
    for (const int ours : {0, 1})
        EXPECT_GE(bench.results[static_cast<std::size_t>(ours)].floor_us * bench.dot_gmac_per_s *
                      1e3,
                  options.attention.multiply_accumulates() * 0.999);
}

TEST(AttentionBench, StopsWhileCachesAreFilled) {
    AttentionBenchOptions options;
    options.attention = small_case(1 << 16);
    options.presets = {"base"};
    options.peers = {"ggml:f16"};
    int calls = 0;
    options.progress = [&](const std::string&, int, int) { return ++calls < 3; };
    EXPECT_EQ(run_attention_bench(options).rounds, 0);
    EXPECT_EQ(calls, 3);
    options.presets.clear();
    EXPECT_EQ(run_attention_bench(options).rounds, 0);
    EXPECT_EQ(calls, 4);
}

TEST(AttentionBench, StopsWhenAsked) {
    AttentionBenchOptions options;
    options.attention = small_case(kContext);
    options.presets = {"base"};
    options.repeats = 1000000;
    options.memory_bytes = 1 << 22;
    options.progress = [](const std::string& what, int done, int) {
        return what != "measuring" || done < 2;
    };
    EXPECT_EQ(run_attention_bench(options).rounds, 2);
}

} // namespace
} // namespace innerkv::bench
