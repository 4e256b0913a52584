// SPDX-License-Identifier: Apache-2.0
// Launches on a stream that does not wait for the default stream find all that calls before them wrote.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "both_caches.h"

namespace innerkv::test {
namespace {

class DeviceStreams : public OnDevice {
protected:
    void SetUp() override {
        OnDevice::SetUp();
        if (!IsSkipped())
            expect_success(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    }
    void TearDown() override {
        if (stream_ != nullptr) expect_success(cudaStreamDestroy(stream_));
    }
    void wait() const { expect_success(cudaStreamSynchronize(stream_)); }

    static CacheConfig config() {
        CacheConfig config = CacheConfig::from_preset(find_preset("base"), 2, 2, 64);
        config.max_tokens = 1500;
        config.max_sequences = 2;
        config.sliding_window = {0, 300};
        return config;
    }
    void append(cuda::DeviceCache& cache, const BothCaches& rows, int most) const {
        for (int layer = 0; layer < 2; ++layer)
            cache.append(rows.device_append(layer, most, stream_));
    }

    cudaStream_t stream_ = nullptr;
};

TEST_F(DeviceStreams, AttentionRightAfterItsObjectsAreMade) {
    Batch batch(shape_of(find_preset("base").format(64), 4, 2));
    SequenceSpec spec;
    spec.quantized = 32 * 60;
    batch.add(spec);
    const DeviceBatch device(batch);
    const Result result = collect(batch, [&] {
        expect_success(cudaDeviceSynchronize());
        const QueryBlock& block = batch.blocks[0];
        const cuda::SequenceQueries queries[] = {{block.sequence, block.first_position, 1}};
        const cuda::DeviceSequences sequences(batch.shape, queries);
        cuda::Attention attention(batch.shape, device.limits());
        cuda::AttentionCall call = device.call();
        call.sequences = sequences.data();
        call.stream = stream_;
        attention.run(call);
        wait();
        device.fetch(batch);
    });
    EXPECT_LT(largest_error(result, reference(batch)), 0.02);
}

TEST_F(DeviceStreams, AppendsRightAfterACacheIsMade) {
    BothCaches rows(config(), 500); // for its memory, and the host's cache
    rows.write_rows({400, 130}, 400);
    expect_success(cudaDeviceSynchronize());
    cuda::DeviceCache cache(config());
    for (int slot = 0; slot < 2; ++slot) cache.reserve(cache.create(), 500);
    append(cache, rows, 400);
    wait();
    rows.append_to_host({400, 130});
    cache.verify();
    for (int slot = 0; slot < 2; ++slot)
        for (int layer = 0; layer < 2; ++layer)
            EXPECT_TRUE(contents(config(), cache.fetch(slot).view(layer)) ==
                        contents(rows.host, rows.ids[static_cast<std::size_t>(slot)], layer));
}

TEST_F(DeviceStreams, AppendsRightAfterSlotsChange) {
    BothCaches both(config(), 700);
    /// Rows first: what `change` writes is last.
    const auto step = [&](const std::vector<int>& counts, const std::function<void()>& change) {
        const int most = *std::max_element(counts.begin(), counts.end());
        both.write_rows(counts, most);
        expect_success(cudaDeviceSynchronize());
        change();
        append(both.device, both, most);
        wait();
        both.append_to_host(counts);
    };
    step({300, 200}, [] {});
    both.host.truncate(both.ids[0], 280);
    both.rewind({280, 200});
    step({40, 10}, [&] { both.device.truncate(0, 280); });
    both.reorder_host({1, 1});
    step({20, 100}, [&] { both.device.reorder(std::vector{1, 1}); });
    both.reorder_host({1, 0});
    step({5, 6}, [&] { both.device.reorder(std::vector{1, 0}); });
    step({50, 1}, [&] {
        const SequenceView views[] = {both.host.view(0, both.ids[1]),
                                      both.host.view(1, both.ids[1])};
        both.device.remove(1);
        EXPECT_EQ(both.device.load(views), 1);
        both.device.reserve(1, 700);
    });
    both.expect_same();
}

TEST_F(DeviceStreams, AppendsRightAfterVerify) {
    BothCaches both(config(), 700);
    both.append({300, 200});
    both.poke(1, 200, 0, 0, NAN);
    both.write_rows({1, 1}, 1);
    expect_success(cudaDeviceSynchronize());
    append(both.device, both, 1);
    wait();
    both.poke(1, 200, 0, 0, 1.0f);
    both.write_rows({0, 1}, 1);
    expect_success(cudaDeviceSynchronize());
    EXPECT_THROW(both.device.verify(), InvalidArgument);
    append(both.device, both, 1);
    wait();
    both.append_to_host({1, 1});
    both.expect_same();
}

} // namespace
} // namespace innerkv::test
