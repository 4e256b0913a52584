// SPDX-License-Identifier: Apache-2.0
// Compares a cache with the model: pages, contents, transforms, counts.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "innerkv/codec.h"
#include "model.h"
#include "page_model.h"
#include "test_cache.h"

namespace innerkv::test {
namespace {

/// Elements may differ by their bounds; the bound itself is what half a step of the codec gives.
void expect_within(std::span<const double> expected, std::span<const double> bounds,
                   std::span<const float> got, const char* side) {
    for (std::size_t i = 0; i < expected.size(); ++i) {
        const double error = std::abs(expected[i] - static_cast<double>(got[i]));
        // Written so that NaN fails.
        if (error <= bounds[i]) continue;
        ADD_FAILURE() << side << " element " << i << ": " << got[i] << " for " << expected[i]
                      << ", allowed " << bounds[i];
        return;
    }
}

void expect_close(const float* got, const std::vector<double>& expected, const char* name) {
    ASSERT_EQ(got != nullptr, !expected.empty()) << name;
    for (std::size_t c = 0; c < expected.size(); ++c)
        ASSERT_NEAR(static_cast<double>(got[c]), expected[c], 1e-5 * (1.0 + std::abs(expected[c])))
            << name << " channel " << c;
}

} // namespace

ModelTransform Model::transform_of(const ModelLayer& layer, int head, std::int64_t first) const {
    ModelTransform transform;
    if (layer.transform) transform = (*layer.transform)[static_cast<std::size_t>(head)];
    if (layer.centres.empty()) return transform;
    const std::vector<double>& values =
        layer.centres.at((first - config_.sink_tokens) / config_.transform.centre_epoch)->values;
    const auto from = values.begin() + std::ptrdiff_t{head} * config_.format.head_dim;
    transform.centre.assign(from, from + config_.format.head_dim);
    return transform;
}

void Model::compare(const Cache& cache) {
    page_at_.clear();
    compare_usage(cache);
    for (auto& [id, sequence] : sequences) {
        for (int index = 0; index < config_.layers; ++index) {
            SCOPED_TRACE("sequence " + std::to_string(static_cast<int>(id)) + ", layer " +
                         std::to_string(index));
            compare_layer(cache, id, index, sequence.layers[static_cast<std::size_t>(index)]);
            if (testing::Test::HasFailure()) return;
        }
    }
}

void Model::compare_usage(const Cache& cache) const {
    const CacheUsage usage = cache.usage();
    std::int64_t quantized_pages = 0;
    std::size_t quantized_bytes = 0;
    for (const auto& [bytes, pages] : quantized_alive_) {
        quantized_pages += pages;
        quantized_bytes += static_cast<std::size_t>(pages) * bytes;
    }
    EXPECT_EQ(usage.quantized_pages, quantized_pages);
    EXPECT_EQ(usage.f16_pages, f16_alive_);
    std::set<const void*> transforms;
    for (const auto& [id, sequence] : sequences)
        for (int index = 0; index < config_.layers; ++index)
            if (calibrates(index) && sequence.layers[static_cast<std::size_t>(index)].transform)
                transforms.insert(sequence.layers[static_cast<std::size_t>(index)].transform.get());
    const TransformPolicy& policy = config_.transform;
    const int arrays = (policy.norm == KeyNormPolicy::prefill) +
                       (policy.norm == KeyNormPolicy::balanced) + policy.value_centre;
    const auto heads = static_cast<std::size_t>(config_.kv_heads);
    const auto dim = static_cast<std::size_t>(config_.format.head_dim);
    EXPECT_EQ(usage.bytes_in_use,
              heads * (quantized_bytes +
                       static_cast<std::size_t>(f16_alive_) * 2 * kPageTokens * dim * 2 +
                       transforms.size() * static_cast<std::size_t>(arrays) * dim * sizeof(float)) +
                  static_cast<std::size_t>(centres_alive_) * ((heads * dim * 2 + 63) / 64 * 64));
}

void Model::note_page(const std::byte* data, const ModelPagePtr& page) {
    ASSERT_EQ(reinterpret_cast<std::uintptr_t>(data) % kPageAlignment, 0u);
    const auto [found, fresh] = page_at_.emplace(data, page.get());
    ASSERT_EQ(found->second, page.get()) << "one page for two contents, or two for one";
    (void)fresh;
}

void Model::compare_layer(const Cache& cache, SequenceId id, int index, ModelLayer& layer) {
    ASSERT_EQ(cache.length(id, index), layer.length());
    const SequenceView view = cache.view(index, id);
    ASSERT_EQ(view.length, layer.length());
    const std::int64_t sink_end = std::min<std::int64_t>(layer.length(), config_.sink_tokens);
    const auto expect_run = [](const PageRun& run, std::int64_t first, std::int64_t end,
                               const char* name) {
        ASSERT_EQ(run.tokens, std::max<std::int64_t>(0, end - first)) << name;
        if (run.tokens > 0) {
            ASSERT_EQ(run.first_token, first) << name;
        }
    };
    expect_run(view.sink, std::min<std::int64_t>(kPageTokens * layer.sink_dropped, sink_end),
               sink_end, "sink");
    expect_run(view.quantized, layer.quantized_first, layer.recent_first, "quantized");
    expect_run(view.recent, layer.recent_first, layer.length(), "recent");
    compare_transforms(view, layer, index);
    compare_centres(view.centres, layer, index);
    if (testing::Test::HasFatalFailure()) return;
    compare_f16(view.sink, layer, layer.sink);
    compare_f16(view.recent, layer, layer.recent);
    compare_quantized(view.quantized, layer, index);
}

void Model::compare_f16(const PageRun& run, const ModelLayer& layer,
                        const std::vector<ModelPagePtr>& pages) {
    ASSERT_EQ(run.pages.size(), pages.size());
    const int dim = config_.format.head_dim;
    for (std::size_t i = 0; i < pages.size(); ++i) note_page(run.pages[i], pages[i]);
    for (std::int64_t t = 0; t < run.tokens; ++t) {
        const ModelToken& token = layer.tokens[static_cast<std::size_t>(run.first_token + t)];
        const std::byte* group = run.pages[static_cast<std::size_t>(t / kPageTokens)];
        const int row = static_cast<int>(t % kPageTokens);
        for (int head = 0; head < config_.kv_heads; ++head) {
            const std::byte* page = group + static_cast<std::size_t>(head) * run.head_stride;
            const std::size_t bytes = static_cast<std::size_t>(dim) * sizeof(std::uint16_t);
            const auto same = [&](bool key, const std::vector<std::uint16_t>& expected) {
                return std::memcmp(f16_row(page, key, row, dim), expected.data() + head * dim,
                                   bytes) == 0;
            };
            ASSERT_TRUE(same(true, token.k)) << "K of token " << run.first_token + t;
            ASSERT_TRUE(same(false, token.v)) << "V of token " << run.first_token + t;
        }
    }
}

void Model::compare_quantized(const PageRun& run, ModelLayer& layer, int index) {
    ASSERT_EQ(run.pages.size(), layer.quantized.size());
    for (std::size_t i = 0; i < run.pages.size(); ++i) {
        note_page(run.pages[i], layer.quantized[i]);
        std::vector<std::byte>& seen = layer.quantized[i]->bytes;
        const std::vector<std::byte> group = heads_of(run, i, config_.kv_heads, page_bytes(index));
        if (seen.empty()) {
            ASSERT_EQ(run.page_bytes, page_bytes(index));
            compare_page(group.data(), layer, index,
                         run.first_token + kPageTokens * static_cast<std::int64_t>(i));
            seen = group;
        }
        ASSERT_EQ(seen, group) << "page " << i << " changed";
    }
}

void Model::compare_page(const std::byte* group, const ModelLayer& layer, int index,
                         std::int64_t first) const {
    const PageFormat layer_format = format(index);
    const PageFormat padded{layer_format.k, layer_format.v, layer_format.padded_dim()};
    std::vector<float> k(static_cast<std::size_t>(kPageTokens * padded.head_dim));
    std::vector<float> v(k.size());
    for (int head = 0; head < config_.kv_heads; ++head) {
        const ExpectedPage expected = expected_page(layer_format, transform_of(layer, head, first),
                                                    layer.tokens, first, head);
        const std::byte* page = group + static_cast<std::size_t>(head) * padded.page_bytes();
        dequantize_page(padded, page, k.data(), padded.head_dim, v.data(), padded.head_dim);
        expect_within(expected.k.values, expected.k.bounds, k, "K");
        expect_within(expected.v.values, expected.v.bounds, v, "V");
    }
}

void Model::compare_transforms(const SequenceView& view, ModelLayer& layer, int index) const {
    const std::size_t heads =
        layer.transform && quantizes(index) ? static_cast<std::size_t>(config_.kv_heads) : 0;
    ASSERT_EQ(view.transforms.size(), heads);
    for (std::size_t head = 0; head < heads; ++head) {
        ModelTransform& expected = (*layer.transform)[head];
        const KeyTransform& got = view.transforms[head];
        if (expected.norm_is_close && !got.norm) expected.norm.clear();
        expect_close(got.norm, expected.norm, "norm");
        expect_close(got.centre, expected.centre, "centre");
        expect_close(got.value_centre, expected.value_centre, "value centre");
        ASSERT_EQ(got.rotate, expected.rotate);
    }
}

void Model::compare_centres(const CentreRun& centres, ModelLayer& layer, int index) const {
    if (!has_epochs(index) || layer.quantized.empty()) {
        ASSERT_TRUE(centres.epochs.empty());
        return;
    }
    const int tokens = config_.transform.centre_epoch;
    const std::int64_t before = layer.quantized_first - config_.sink_tokens;
    ASSERT_EQ(centres.epoch_pages, tokens / kPageTokens);
    ASSERT_EQ(centres.first_page, before % tokens / kPageTokens);
    ASSERT_EQ(centres.epochs.size(), layer.centres.size());
    ASSERT_EQ(layer.centres.begin()->first, before / tokens);
    const std::byte* const* at = centres.epochs.data();
    for (auto& [epoch, centre] : layer.centres) {
        const std::byte* from = *at++;
        for (double& value : centre->values) {
            std::uint16_t bits = 0;
            std::memcpy(&bits, from, sizeof bits);
            from += sizeof bits;
            const double got = from_f16(bits);
            const double rounding = std::abs(value) * 0x1p-11 + 0x1p-24;
            ASSERT_NEAR(got, value, centre->compared ? 0.0 : 1.01 * rounding) << "epoch " << epoch;
            value = got;
        }
        centre->compared = true;
    }
}

void Model::adopt_cut_page(const PageRun& run, ModelLayer& layer, int index, std::int64_t first,
                           int kept) const {
    const PageFormat layer_format = format(index);
    const int dim = config_.format.head_dim;
    // fp16 rounding, and a codec's largest level may stand above what fp16 holds.
    const auto rounding = [](double value) { return std::abs(value) * 0x1p-10 + 1e-6; };
    std::vector<ModelToken> adopted(layer.tokens.begin() + first,
                                    layer.tokens.begin() + first + kept);
    for (int head = 0; head < config_.kv_heads; ++head) {
        const ModelTransform transform = transform_of(layer, head, first);
        const ExpectedPage page = expected_page(layer_format, transform, layer.tokens, first, head);
        const std::vector<double> k_bounds = row_bounds(layer_format, transform.rotate, page.k);
        const std::vector<double> v_bounds = row_bounds(layer_format, transform.rotate, page.v);
        const std::byte* group = run.pages[0] + static_cast<std::size_t>(head) * run.head_stride;
        for (int t = 0; t < kept; ++t) {
            const ModelToken& before = layer.tokens[static_cast<std::size_t>(first + t)];
            for (int c = 0; c < dim; ++c) {
                const auto at = static_cast<std::size_t>(head * dim + c);
                const auto row = static_cast<std::size_t>(t);
                const std::uint16_t k = f16_row(group, true, t, dim)[c];
                const std::uint16_t v = f16_row(group, false, t, dim)[c];
                const auto channel = static_cast<std::size_t>(c);
                const std::size_t element = row * static_cast<std::size_t>(dim) + channel;
                const double norm = transform.norm.empty() ? 1.0 : transform.norm[channel];
                const double k_bound = k_bounds[element] * norm;
                const double v_bound = v_bounds[element];
                ASSERT_LE(std::abs(from_f16(k) - from_f16(before.k[at])),
                          k_bound + rounding(from_f16(k)));
                ASSERT_LE(std::abs(from_f16(v) - from_f16(before.v[at])),
                          v_bound + rounding(from_f16(v)));
                adopted[row].k[at] = k;
                adopted[row].v[at] = v;
            }
        }
    }
    std::copy(adopted.begin(), adopted.end(), layer.tokens.begin() + first);
}

} // namespace innerkv::test
