// SPDX-License-Identifier: Apache-2.0
// Random operations on a cache and on the model, compared after each. Seeds are fixed; a failure prints
// its case and seed.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <limits>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "innerkv/error.h"
#include "model.h"

namespace innerkv::test {
namespace {

struct RandomCase {
    std::string name;
    CacheConfig config;
    int runs = 0; ///< operation sequences
};
void PrintTo(const RandomCase& tested, std::ostream* out) { *out << tested.name; }

CacheConfig shape(std::string_view preset, int head_dim, int sink, int recent) {
    CacheConfig config = CacheConfig::from_preset(find_preset(preset), 2, 2, head_dim);
    config.transform = {};
    config.sink_tokens = sink;
    config.recent_tokens = recent;
    config.transform.norm = KeyNormPolicy::none;
    config.max_tokens = 1500;
    config.max_sequences = 4;
    config.max_append = 96;
    return config;
}

CacheConfig with_transform(CacheConfig config, bool norm, bool centre, bool rotate,
                           bool value_centre, int calibration_tokens) {
    config.transform = {norm ? KeyNormPolicy::prefill : KeyNormPolicy::none, centre, rotate,
                        value_centre, calibration_tokens};
    return config;
}

CacheConfig with_norm(CacheConfig config, KeyNormPolicy norm, bool centre, int calibration_tokens) {
    config.transform = {norm, centre, false, false, calibration_tokens};
    return config;
}

CacheConfig with_epochs(CacheConfig config, int tokens) {
    config.transform.centre_epoch = tokens;
    return config;
}

/// Other steps in every layer and head; the last head has centres alone.
CacheConfig with_calibrated(CacheConfig config) {
    static std::deque<std::vector<float>> arrays;
    Random random(77);
    const auto array = [&](float low, float high) {
        auto& values = arrays.emplace_back(static_cast<std::size_t>(config.format.head_dim));
        for (float& value : values) value = low + (high - low) * (random.unit() + 1.0f) / 2.0f;
        return values.data();
    };
    const int heads = config.layers * config.kv_heads;
    for (int head = 0; head < heads; ++head) {
        const auto size = static_cast<float>(head + 1);
        KeyTransform transform;
        if (head < heads - 1) transform.norm = array(0.3f * size, size);
        transform.centre = array(-size, 2.0f * size);
        transform.value_centre = array(-2.0f * size, size);
        transform.rotate = head % 2 == 1 && head < heads - 1;
        config.calibrated.push_back(transform);
    }
    config.transform.norm = KeyNormPolicy::calibrated;
    return config;
}

CacheConfig with_windows(CacheConfig config, std::vector<int> windows) {
    config.layers = static_cast<int>(windows.size());
    config.sliding_window = std::move(windows);
    return config;
}

CacheConfig with_pool(CacheConfig config, int max_tokens, int max_sequences, int max_append) {
    config.max_tokens = max_tokens;
    config.max_sequences = max_sequences;
    config.max_append = max_append;
    return config;
}

/// As many layers as there are pairs of bits, of keys and of values.
CacheConfig by_layer(CacheConfig config, const std::vector<std::pair<int, int>>& bits) {
    config.layers = static_cast<int>(bits.size());
    for (const auto& [k, v] : bits) config.layer_codecs.push_back(codecs_of_bits(k, v));
    return config;
}

CacheConfig exact(CacheConfig config) {
    config.exact_prefill = true;
    return config;
}

std::vector<RandomCase> random_cases() {
    const CacheConfig base64 = shape("base", 64, 32, 96);
    const CacheConfig base80 = shape("base", 80, 4, 32);
    const CacheConfig hybrid64 = shape("hybrid", 64, 0, 64);
    return {
        {"base", base64, 200},
        {"base_norm", with_transform(base64, true, false, false, false, 128), 200},
        {"base_all_steps", with_transform(base80, true, true, true, true, 40), 120},
        {"base_balanced", with_norm(base64, KeyNormPolicy::balanced, true, 100), 200},
        {"balanced_windows",
         with_norm(with_windows(shape("k4v4", 64, 4, 32), {0, 150, 40}), KeyNormPolicy::balanced,
                   false, 64),
         200},
        {"short_epochs", with_epochs(with_transform(base64, false, true, true, false, 1), 64), 200},
        {"epochs_and_windows",
         with_epochs(with_transform(with_windows(shape("k8v8", 64, 32, 32), {0, 100, 300}), true,
                                    true, false, false, 50),
                     96),
         200},
        {"epochs_small_pool",
         with_epochs(with_transform(with_pool(hybrid64, 300, 3, 64), false, true, false, false, 1),
                     32),
         250},
        {"base_rotation_alone", with_transform(base80, false, false, true, false, 1), 100},
        {"base_calibrated", with_calibrated(base80), 100},
        {"calibrated_windows",
         with_calibrated(with_windows(shape("k8v8", 64, 32, 64), {0, 150, 40})), 100},
        {"hybrid_small_pool", with_pool(hybrid64, 300, 3, 64), 250},
        {"hybrid_centres", with_transform(hybrid64, false, true, false, true, 64), 200},
        {"k8v8_long_sink", shape("k8v8", 128, 64, 128), 150},
        {"f16", shape("f16", 64, 32, 96), 200},
        {"f16_windows", with_windows(shape("f16", 80, 40, 32), {0, 50, 1}), 200},
        {"windows", with_windows(shape("base", 64, 32, 32), {0, 100, 20}), 200},
        {"windows_no_sink", with_windows(shape("k8v8", 64, 0, 64), {200, 66, 65}), 200},
        {"windows_norm_small_pool",
         with_pool(
             with_windows(with_transform(shape("base", 64, 4, 32), true, false, false, false, 100),
                          {150, 40, 0}),
             600, 2, 200),
         200},
        {"exact_prefill", exact(with_transform(base64, true, false, false, false, 64)), 200},
        {"exact_prefill_windows",
         exact(with_pool(with_windows(shape("base", 64, 40, 32), {0, 60}), 400, 3, 64)), 150},
        {"no_recent_window", shape("base", 64, 0, 0), 200},
        {"by_layer", by_layer(base64, {{3, 2}, {4, 4}, {2, 3}}), 200},
        {"by_layer_all_steps",
         by_layer(with_epochs(with_norm(base80, KeyNormPolicy::balanced, true, 40), 64),
                  {{2, 2}, {8, 4}}),
         120},
        {"by_layer_windows_small_pool",
         by_layer(with_pool(with_windows(shape("base", 64, 4, 32), {150, 40, 0, 200}), 400, 3, 64),
                  {{2, 4}, {3, 3}, {4, 2}, {4, 4}}),
         250},
        {"by_layer_calibrated", by_layer(with_calibrated(base80), {{4, 2}, {2, 2}}), 100},
        {"by_layer_exact_prefill", by_layer(exact(base64), {{3, 2}, {4, 3}}), 150},
    };
}

/// One cache and its model under one random sequence of operations.
class RandomRun {
public:
    RandomRun(const CacheConfig& config, std::uint64_t seed)
        : config_(config), random_(seed), cache_(config), model_(config) {}

    void operations(int count) {
        for (int i = 0; i < count && !testing::Test::HasFailure(); ++i) {
            operation();
            model_.compare(cache_);
        }
        while (!model_.sequences.empty()) remove(any());
        EXPECT_EQ(cache_.usage().quantized_pages, 0);
        EXPECT_EQ(cache_.usage().f16_pages, 0);
        EXPECT_EQ(cache_.usage().bytes_in_use, 0u);
    }

private:
    void operation() {
        if (model_.sequences.empty()) return create();
        const int kind = random_.between(1, 100);
        if (kind <= 6)
            create();
        else if (kind <= 62)
            append_all_layers();
        else if (kind <= 68)
            append_batch();
        else if (kind <= 76)
            truncate();
        else if (kind <= 82)
            fork();
        else if (kind <= 85)
            remove(any());
        else if (kind <= 88)
            settle();
        else if (kind <= 91)
            reserve();
        else if (kind <= 94)
            dropped_append();
        else if (kind <= 97)
            bad_value();
        else
            bad_arguments();
    }

    SequenceId any() {
        const int skip = random_.between(0, static_cast<int>(model_.sequences.size()) - 1);
        return std::next(model_.sequences.begin(), skip)->first;
    }
    int any_layer() { return random_.between(0, config_.layers - 1); }
    int any_count() {
        if (random_.one_in(3)) return random_.between(1, 3);
        return random_.one_in(2) ? random_.between(1, 200) : 32 * random_.between(1, 5);
    }

    TestRows rows(int tokens, int side) {
        const auto type = static_cast<RowType>(random_.between(0, 2));
        const auto order = static_cast<TestRows::Order>(random_.between(0, 1));
        const int heads = side == 2 ? config_.kv_heads * random_.between(1, 3) : config_.kv_heads;
        return TestRows(random_, tokens, heads, config_.format.head_dim, side, type, order);
    }

    /// With queries, or now and then without.
    static AppendRows entry(SequenceId id, const TestRows& k, const TestRows& v,
                            const std::optional<TestRows>& q) {
        AppendRows entry{id, k.tokens(), k.rows(), v.rows()};
        if (!q) return entry;
        entry.q = q->rows();
        entry.q_heads = q->heads();
        return entry;
    }
    std::optional<TestRows> queries(int tokens) {
        if (random_.one_in(20)) return std::nullopt;
        return rows(tokens, 2);
    }

    void create() {
        if (full()) {
            EXPECT_THROW(cache_.create(), OutOfPages);
        } else {
            model_.create(cache_.create());
        }
    }

    bool full() const {
        return model_.sequences.size() == static_cast<std::size_t>(config_.max_sequences);
    }

    void fork() {
        const SequenceId parent = any();
        if (full()) {
            EXPECT_THROW(cache_.fork(parent), OutOfPages);
        } else {
            model_.fork(parent, cache_.fork(parent));
        }
    }

    void remove(SequenceId id) {
        cache_.remove(id);
        model_.remove(id);
        removed_.push_back(id);
    }

    /// False where the pool was too small, which the model must have known.
    bool append(int layer, const std::vector<SequenceId>& ids, const std::vector<int>& tokens) {
        std::vector<TestRows> k;
        std::vector<TestRows> v;
        std::vector<std::optional<TestRows>> q;
        std::vector<AppendRows> batch;
        std::vector<ModelNeed> needs;
        ModelNeed total;
        for (std::size_t i = 0; i < ids.size(); ++i) {
            k.push_back(rows(tokens[i], 0));
            v.push_back(rows(tokens[i], 1));
            q.push_back(queries(tokens[i]));
            batch.push_back(entry(ids[i], k.back(), v.back(), q.back()));
            needs.push_back(model_.append_need(ids[i], layer, tokens[i]));
            total += needs.back();
        }
        if (!model_.fits(total)) {
            EXPECT_THROW(cache_.append(layer, batch), OutOfPages);
            return false;
        }
        cache_.append(layer, batch);
        for (std::size_t i = 0; i < ids.size(); ++i)
            model_.append(ids[i], layer, k[i], v[i], q[i] ? &*q[i] : nullptr, needs[i].copies);
        return true;
    }

    void append_all_layers() {
        const SequenceId id = any();
        const int tokens = any_count();
        const int layers = random_.one_in(10) ? random_.between(1, config_.layers) : config_.layers;
        for (int layer = 0; layer < layers; ++layer)
            if (!append(layer, {id}, {tokens})) return;
    }

    void append_batch() {
        std::vector<SequenceId> ids;
        std::vector<int> tokens;
        for (const auto& [id, sequence] : model_.sequences) {
            if (random_.one_in(4)) continue;
            ids.push_back(id);
            tokens.push_back(random_.one_in(5) ? 0 : any_count());
        }
        append(any_layer(), ids, tokens);
    }

    void truncate() {
        const SequenceId id = any();
        std::int64_t longest = 0;
        for (int layer = 0; layer < config_.layers; ++layer)
            longest = std::max(longest, cache_.length(id, layer));
        std::int64_t length = random_.between(0, static_cast<int>(longest) + 2);
        if (random_.one_in(2)) length = std::max<std::int64_t>(0, longest - random_.between(0, 60));
        if (!model_.can_truncate(id, length)) {
            EXPECT_THROW(cache_.truncate(id, length), InvalidArgument);
        } else if (!model_.fits(model_.truncate_need(id, length))) {
            EXPECT_THROW(cache_.truncate(id, length), OutOfPages);
        } else {
            cache_.truncate(id, length);
            model_.truncate(id, length, cache_);
        }
    }

    void settle() {
        const SequenceId id = any();
        if (!model_.fits(model_.settle_need(id))) {
            EXPECT_THROW(cache_.settle(id), OutOfPages);
        } else {
            cache_.settle(id);
            model_.settle(id);
        }
    }

    /// What reserve promised must then fit, however it is cut.
    void reserve() {
        const SequenceId id = any();
        int tokens = any_count();
        try {
            cache_.reserve(id, tokens);
        } catch (const OutOfPages&) {
            return;
        }
        while (tokens > 0) {
            const int part = std::min({tokens, config_.max_append, any_count()});
            for (int layer = 0; layer < config_.layers; ++layer)
                ASSERT_TRUE(append(layer, {id}, {part})) << "reserved tokens did not fit";
            tokens -= part;
        }
    }

    void dropped_append() {
        const SequenceId id = any();
        const int layer = any_layer();
        const int tokens = any_count();
        if (!model_.fits(model_.append_need(id, layer, tokens))) return;
        const TestRows k = rows(tokens, 0);
        const TestRows v = rows(tokens, 1);
        const std::optional<TestRows> q = queries(tokens);
        const AppendRows batch[] = {entry(id, k, v, q)};
        Append append = cache_.begin_append(layer, batch);
        const int parts = random_.between(0, append.parts());
        for (int part = 0; part < parts; ++part) append.run(part);
        EXPECT_THROW(cache_.begin_append(layer, batch), InvalidArgument);
        EXPECT_THROW(cache_.truncate(id, 0), InvalidArgument);
        if (parts < append.parts()) {
            EXPECT_FALSE(append.commit());
        }
    }

    void bad_value() {
        const SequenceId id = any();
        const int layer = any_layer();
        const int tokens = any_count();
        if (!model_.fits(model_.append_need(id, layer, tokens))) return;
        TestRows k(random_, tokens, config_.kv_heads, config_.format.head_dim, 0);
        TestRows v(random_, tokens, config_.kv_heads, config_.format.head_dim, 1);
        const float faults[] = {std::numeric_limits<float>::quiet_NaN(),
                                std::numeric_limits<float>::infinity(), -65520.0f, 1e30f};
        const int token = random_.between(0, tokens - 1);
        const int head = random_.between(0, config_.kv_heads - 1);
        const int channel = random_.between(0, config_.format.head_dim - 1);
        const bool key = random_.one_in(2);
        (key ? k : v).poke(token, head, channel, faults[random_.between(0, 3)]);
        const std::string place =
            std::string(key ? "K" : "V") + " of sequence " + std::to_string(static_cast<int>(id)) +
            ", layer " + std::to_string(layer) + ", token " +
            std::to_string(cache_.length(id, layer) + token) + ", KV head " + std::to_string(head) +
            ", channel " + std::to_string(channel) + " ";
        const AppendRows batch[] = {{id, tokens, k.rows(), v.rows()}};
        try {
            cache_.append(layer, batch);
            ADD_FAILURE() << "accepted: " << place;
        } catch (const InvalidArgument& error) {
            EXPECT_NE(std::string(error.what()).find(place), std::string::npos) << error.what();
        }
    }

    void bad_arguments() {
        const SequenceId id = any();
        const TestRows k = rows(2, 0);
        const AppendRows good{id, 2, k.rows(), k.rows()};
        const auto refused = [&](const AppendRows& entry) {
            const AppendRows batch[] = {entry};
            EXPECT_THROW(cache_.append(0, batch), InvalidArgument);
        };
        AppendRows bad = good;
        bad.k.token_stride = config_.format.head_dim - 1;
        refused(bad);
        bad = good;
        bad.v.head_stride = 0;
        refused(bad);
        bad = good;
        bad.v.data = nullptr;
        refused(bad);
        bad = good;
        bad.q = k.rows();
        bad.q_heads = 2 * config_.kv_heads + (config_.kv_heads > 1 ? 1 : 0);
        if (config_.kv_heads > 1) refused(bad);
        bad.q_heads = 0;
        refused(bad);
        bad.q_heads = config_.kv_heads;
        bad.q.token_stride = 1;
        refused(bad);
        bad = good;
        bad.tokens = -1;
        refused(bad);
        bad = good;
        bad.sequence = removed_.empty() ? SequenceId{1 << 30} : removed_.back();
        refused(bad);
        EXPECT_THROW(cache_.remove(bad.sequence), InvalidArgument);
        EXPECT_THROW(cache_.fork(bad.sequence), InvalidArgument);
        EXPECT_THROW(cache_.truncate(bad.sequence, 0), InvalidArgument);
        EXPECT_THROW(cache_.settle(bad.sequence), InvalidArgument);
        EXPECT_THROW(cache_.view(0, bad.sequence), InvalidArgument);
        EXPECT_THROW(cache_.truncate(id, -1), InvalidArgument);
        EXPECT_THROW(cache_.view(config_.layers, id), InvalidArgument);
        const AppendRows twice[] = {good, good};
        EXPECT_THROW(cache_.append(0, twice), InvalidArgument);
        const AppendRows once[] = {good};
        EXPECT_THROW(cache_.append(-1, once), InvalidArgument);
    }

    CacheConfig config_;
    Random random_;
    Cache cache_;
    Model model_;
    std::vector<SequenceId> removed_;
};

class RandomOperations : public testing::TestWithParam<RandomCase> {};

/// AddressSanitizer takes three times as long, and what it looks for shows in fewer runs.
#ifdef __SANITIZE_ADDRESS__
constexpr int kShare = 4;
#else
constexpr int kShare = 1;
#endif

TEST_P(RandomOperations, AgreeWithTheModel) {
    for (int seed = 1; seed <= GetParam().runs / kShare; ++seed) {
        SCOPED_TRACE("case " + GetParam().name + ", seed " + std::to_string(seed));
        RandomRun run(GetParam().config, static_cast<std::uint64_t>(seed));
        run.operations(25);
        if (HasFailure()) return;
    }
}

INSTANTIATE_TEST_SUITE_P(Cache, RandomOperations, testing::ValuesIn(random_cases()),
                         [](const auto& tested) { return tested.param.name; });

} // namespace
} // namespace innerkv::test
