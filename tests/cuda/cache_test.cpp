// SPDX-License-Identifier: Apache-2.0
// A device cache holds, byte for byte, what the host's holds that got the same rows: every preset, policy, head
// dimension, type of rows and way to cut a prompt.
#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "both_caches.h"

namespace innerkv::test {
namespace {

CacheConfig config_of(std::string_view preset, int head_dim) {
    CacheConfig config = CacheConfig::from_preset(find_preset(preset), 2, 2, head_dim);
    config.max_tokens = 2400;
    config.max_sequences = 3;
    config.max_append = 400;
    return config;
}

using Format = std::tuple<std::string_view, int>;
class DeviceCacheFormats : public OnDevice, public testing::WithParamInterface<Format> {};
INSTANTIATE_TEST_SUITE_P(All, DeviceCacheFormats,
                         testing::Combine(testing::ValuesIn(preset_names()),
                                          testing::ValuesIn(kHeadDims)),
                         [](const auto& test) {
                             return std::string(std::get<0>(test.param)) + "_" +
                                    std::to_string(std::get<1>(test.param));
                         });

TEST_P(DeviceCacheFormats, SameBytes) {
    BothCaches both(config_of(std::get<0>(GetParam()), std::get<1>(GetParam())), 700);
    both.append({400, 0, 37});
    both.append({1, 250, 300});
    both.append({0, 60, 1});
    for (int step = 0; step < 40; ++step) both.append({2, 1, 3});
    both.expect_same();
    both.append({200, 300, 200});
    both.append({1, 1, 1});
    both.expect_same();
}

class DeviceCachePolicies : public OnDevice {};

TEST_F(DeviceCachePolicies, SameBytes) {
    for (const char* preset : {"base", "hybrid", "k8v8"})
        for (const KeyNormPolicy norm :
             {KeyNormPolicy::none, KeyNormPolicy::prefill, KeyNormPolicy::balanced})
            for (int bits = 0; bits < 8; ++bits) {
                SCOPED_TRACE(testing::Message()
                             << preset << ", norm " << static_cast<int>(norm) << ", " << bits);
                CacheConfig config = config_of(preset, 80);
                config.transform.norm = norm;
                config.transform.centre = (bits & 1) != 0;
                config.transform.rotate = (bits & 2) != 0;
                config.transform.value_centre = (bits & 4) != 0;
                config.transform.centre_epoch = 64;
                BothCaches both(config, 500);
                both.append({300, 100, 400});
                both.append({150, 300, 30});
                both.append({1, 1, 1});
                both.expect_same();
            }
}

TEST_F(DeviceCachePolicies, Calibrated) {
    CacheConfig config = config_of("base", 64);
    std::vector<float> values(3 * 64);
    for (std::size_t i = 0; i < values.size(); ++i)
        values[i] = 0.5f + 0.01f * static_cast<float>(i);
    config.transform = {};
    config.transform.norm = KeyNormPolicy::calibrated;
    for (int head = 0; head < 4; ++head)
        config.calibrated.push_back({head == 1 ? nullptr : values.data(),
                                     head == 2 ? nullptr : values.data() + 64, values.data() + 128,
                                     true});
    BothCaches both(config, 500);
    both.append({300, 100, 400});
    both.append({150, 300, 30});
    both.append({1, 1, 1});
    for (std::size_t slot = 0; slot < 3; ++slot) {
        const cuda::HostSequence fetched = both.device.fetch(static_cast<int>(slot));
        // Heads without a centre have one of zeros: other transforms, the same pages.
        const Contents expected = contents(both.host, both.ids[slot], 1);
        const Contents result = contents(config, fetched.view(1));
        EXPECT_TRUE(result.quantized == expected.quantized);
        EXPECT_TRUE(result.f16_rows == expected.f16_rows);
    }
}

TEST_F(DeviceCachePolicies, WithoutNormWhereChannelsAreAlike) {
    CacheConfig config = config_of("base", 64);
    config.transform.norm = KeyNormPolicy::prefill;
    config.transform.norm_threshold = 1e6f;
    BothCaches both(config, 500);
    both.append_all(250);
    both.expect_same();
}

class DeviceCacheWindows : public OnDevice {};

TEST_F(DeviceCacheWindows, SameBytes) {
    for (const int window : {20, 97, 128, 200, 513})
        for (const int step : {1, 33, 400}) {
            SCOPED_TRACE(testing::Message() << window << ", " << step);
            CacheConfig config = config_of("base", 64);
            config.max_sequences = 1;
            config.sliding_window = {window, 0};
            BothCaches both(config, 900);
            both.append_all(step);
            both.expect_same();
        }
}

TEST_F(DeviceCacheWindows, OtherSinksAndRecentWindows) {
    for (const auto& [sink, recent] : {std::pair{0, 0}, {0, 96}, {5, 32}, {64, 160}}) {
        SCOPED_TRACE(testing::Message() << sink << ", " << recent);
        CacheConfig config = config_of("k4v4", 128);
        config.sink_tokens = sink;
        config.recent_tokens = recent;
        BothCaches both(config, 450);
        both.append_all(77);
        both.expect_same();
    }
}

class DeviceCacheRows : public OnDevice {};

TEST_F(DeviceCacheRows, InF16AndBf16) {
    for (const RowType type : {RowType::f16, RowType::bf16}) {
        BothCaches both(config_of("base", 128), 500, type);
        both.append_all(123);
        both.expect_same();
    }
}

/// One step, appends to both layers and attention on the last, captured once and replayed as sequences grow.
TEST_F(DeviceCacheRows, AStepInAGraph) {
    constexpr int kSteps = 150;
    BothCaches both(config_of("base", 128), 400 + kSteps);
    both.append({400, 250, 0});
    const AttentionShape shape = shape_of(both.config.format, 8, 2);
    cuda::Attention attention(shape, {0, 3, 1, 0});
    const std::size_t elements = 3 * 8 * 128;
    std::vector<float> q(elements);
    std::mt19937 random(5);
    gaussian(random, q);
    const DeviceBuffer queries(q.data(), elements * sizeof(float));
    const DeviceBuffer out(elements * sizeof(float));
    cuda::AttentionCall call;
    call.sequences = both.device.sequences(1);
    call.count = 3;
    call.q = queries.as();
    call.out = out.as();
    call.q_head_stride = call.out_head_stride = 128;
    call.q_token_stride = call.out_token_stride = 8 * 128;
    call.q_sequence_stride = call.out_sequence_stride = 8 * 128;
    const std::vector<int> one(3, 1);
    both.write_rows(one, 1);
    const Graph graph([&](cuda::Stream stream) {
        for (int layer = 0; layer < 2; ++layer)
            both.device.append(both.device_append(layer, 1, stream));
        call.stream = stream;
        attention.run(call);
    });
    for (int step = 0; step < kSteps; ++step) {
        both.write_rows(one, 1);
        graph.replay();
        both.append_to_host(one);
    }
    both.device.verify();
    both.expect_same();

    std::vector<float> result(elements);
    out.read(result.data(), elements * sizeof(float));
    for (std::size_t slot = 0; slot < 3; ++slot) {
        Batch batch(shape);
        SequenceSpec nothing;
        nothing.sink = nothing.recent = 0;
        batch.add(nothing);
        const SequenceView view = both.host.view(1, both.ids[slot]);
        batch.blocks[0].sequence = &view;
        batch.blocks[0].first_position = view.length - 1;
        std::copy_n(q.data() + slot * 8 * 128, 8 * 128, batch.memory[0].data());
        batch.blocks[0].q = batch.memory[0].data();
        batch.blocks[0].q_head_stride = 128;
        const Result expected = reference(batch);
        const Result on_device = collect(batch, [&] {
            for (int head = 0; head < 8; ++head) {
                std::copy_n(result.data() + slot * 8 * 128 + static_cast<std::size_t>(head) * 128,
                            128, batch.blocks[0].out + head * batch.blocks[0].out_head_stride);
                batch.blocks[0].log_sum_exp[head] =
                    expected.log_sum_exp[static_cast<std::size_t>(head)];
            }
        });
        EXPECT_LT(mean_error(on_device, expected), 0.01) << slot;
    }
}

class DeviceCacheTransfers : public OnDevice {};

/// Host to device, further there, and back.
TEST_F(DeviceCacheTransfers, ASequenceGoesOnWhereItIsLoaded) {
    for (const char* preset : {"base", "hybrid", "f16"}) {
        SCOPED_TRACE(preset);
        CacheConfig config = config_of(preset, 128);
        config.sliding_window = {0, 300};
        BothCaches both(config, 800);
        both.append({400, 300, 280});
        both.append({200, 10, 31});
        both.append({1, 1, 1});
        for (int slot = 0; slot < 3; ++slot) {
            const SequenceId id = both.ids[static_cast<std::size_t>(slot)];
            const SequenceView views[] = {both.host.view(0, id), both.host.view(1, id)};
            both.device.remove(slot);
            EXPECT_EQ(both.device.load(views), slot);
            both.device.reserve(slot, 800);
        }
        both.expect_same();
        both.append({150, 200, 300});
        both.append({1, 2, 3});
        both.expect_same();
    }
}

/// Cut on the host, within quantized pages, and on the device, behind them: they keep more quantized pages than they
/// had at that length when they grew.
TEST_F(DeviceCacheTransfers, TruncatedSequencesAreLoaded) {
    for (const char* preset : {"base", "f16"}) {
        SCOPED_TRACE(preset);
        CacheConfig config = config_of(preset, 64);
        config.sliding_window = {0, 500};
        config.max_tokens = 2800;
        BothCaches both(config, 900);
        both.append({400, 300, 360});
        both.append({1, 1, 1});
        const std::vector<int> lengths = {140, 200, 260};
        for (std::size_t slot = 0; slot < 3; ++slot) {
            both.host.truncate(both.ids[slot], lengths[slot]);
            if (slot > 0) both.device.truncate(static_cast<int>(slot), lengths[slot]);
        }
        both.rewind(lengths);
        const SequenceView cut_on_host[] = {both.host.view(0, both.ids[0]),
                                            both.host.view(1, both.ids[0])};
        const cuda::HostSequence fetched = both.device.fetch(1);
        const SequenceView cut_on_device[] = {fetched.view(0), fetched.view(1)};
        both.device.remove(0);
        EXPECT_EQ(both.device.load(cut_on_host), 0);
        both.device.remove(1);
        EXPECT_EQ(both.device.load(cut_on_device), 1);
        both.expect_same();
        for (int slot = 0; slot < 3; ++slot) both.device.reserve(slot, 900);
        both.append({250, 200, 300});
        both.append({1, 2, 3});
        both.expect_same();
    }
}

TEST_F(DeviceCacheTransfers, TruncateWithinTheRecentWindow) {
    BothCaches both(config_of("base", 64), 700);
    both.append({400, 100, 10});
    const int lengths[] = {380, 60, 5};
    for (int slot = 0; slot < 3; ++slot) {
        both.device.truncate(slot, lengths[slot]);
        both.host.truncate(both.ids[static_cast<std::size_t>(slot)], lengths[slot]);
    }
    both.expect_same();
    both.append({100, 300, 300});
    both.append({1, 1, 1});
    both.expect_same();
}

} // namespace
} // namespace innerkv::test
