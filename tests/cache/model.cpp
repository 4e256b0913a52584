// SPDX-License-Identifier: Apache-2.0
// What the model predicts; comparing is in compare.cpp.
#include "model.h"

#include <algorithm>
#include <cmath>

#include "innerkv/plan.h"
#include "page_model.h"

namespace innerkv::test {
namespace {

std::vector<double> doubles(const float* values, int count) {
    return values ? std::vector<double>(values, values + count) : std::vector<double>();
}

/// Of an epoch: fp16, filled up to 64 bytes.
std::size_t centre_bytes(const CacheConfig& config) {
    const auto bytes = static_cast<std::size_t>(2 * config.kv_heads * config.format.head_dim);
    return (bytes + 63) / 64 * 64;
}

/// The config's layers whose pages have so many bytes, alone: their pages have a pool of their own.
CacheConfig layers_with(const CacheConfig& config, std::size_t page_bytes) {
    CacheConfig alone = config;
    alone.layers = 0;
    alone.layer_codecs.clear();
    alone.sliding_window.clear();
    alone.calibrated.clear();
    alone.transform = {};
    for (int index = 0; index < config.layers; ++index) {
        const PageFormat format = config.layer_format(index);
        if (format.page_bytes() != page_bytes) continue;
        alone.format = format;
        ++alone.layers;
        if (!config.sliding_window.empty())
            alone.sliding_window.push_back(config.sliding_window[static_cast<std::size_t>(index)]);
    }
    return alone;
}

/// The first page that only this list holds, or pages.size().
std::size_t own_page(const std::vector<ModelPagePtr>& pages) {
    const auto own = std::find_if(pages.begin(), pages.end(),
                                  [](const ModelPagePtr& page) { return page.use_count() == 1; });
    return static_cast<std::size_t>(own - pages.begin());
}

} // namespace

ModelNeed& ModelNeed::operator+=(const ModelNeed& other) {
    for (const auto& [bytes, pages] : other.quantized) quantized[bytes] += pages;
    f16 += other.f16;
    centres += other.centres;
    return *this;
}

Model::Model(const CacheConfig& config) : config_(config) {
    const CachePlan plan = plan_cache(config);
    const PageFormat f16{kF16, kF16, config.format.head_dim};
    const auto heads = static_cast<std::size_t>(config.kv_heads);
    for (int index = 0; index < config.layers; ++index) {
        const std::size_t bytes = page_bytes(index);
        if (quantized_capacity_.contains(bytes)) continue;
        const CachePlan alone = plan_cache(layers_with(config, bytes));
        quantized_capacity_[bytes] =
            static_cast<std::int64_t>(alone.quantized_bytes / (heads * bytes));
    }
    f16_capacity_ = static_cast<std::int64_t>(plan.f16_bytes / (heads * f16.page_bytes()));
    centre_capacity_ = static_cast<std::int64_t>(plan.centre_bytes / centre_bytes(config));
}

PageFormat Model::format(int index) const {
    if (config_.layer_codecs.empty()) return config_.format;
    const LayerCodecs& codecs = config_.layer_codecs[static_cast<std::size_t>(index)];
    return {codecs.k, codecs.v, config_.format.head_dim};
}

int Model::window(int index) const {
    return config_.sliding_window.empty() ? 0
                                          : config_.sliding_window[static_cast<std::size_t>(index)];
}

/// A page is dropped before it is old enough where the window is no longer than the recent one.
bool Model::quantizes(int index) const {
    const bool drops_first = window(index) > 0 && window(index) <= config_.recent_tokens + 1;
    return config_.format.quantized() && !drops_first;
}

bool Model::calibrates(int index) const {
    const TransformPolicy& policy = config_.transform;
    const bool wanted = policy.norm == KeyNormPolicy::prefill ||
                        policy.norm == KeyNormPolicy::balanced || policy.value_centre;
    return wanted && quantizes(index);
}

bool Model::has_epochs(int index) const { return config_.transform.centre && quantizes(index); }

/// An epoch gets its centre when its first page leaves the recent window, unless none of its pages stays.
std::vector<std::int64_t> Model::new_epochs(const Settling& settling, const ModelLayer& layer,
                                            int index) const {
    std::vector<std::int64_t> epochs;
    if (!has_epochs(index)) return epochs;
    const std::int64_t dropped =
        layer.quantized_first + kPageTokens * (settling.drop_quantized + settling.drop_recent);
    const std::int64_t settled =
        layer.recent_first + kPageTokens * (settling.drop_recent + settling.quantize);
    const int tokens = config_.transform.centre_epoch;
    for (std::int64_t epoch = 0; config_.sink_tokens + epoch * tokens < settled; ++epoch) {
        const std::int64_t first = config_.sink_tokens + epoch * tokens;
        if (first >= layer.recent_first && first + tokens > dropped) epochs.push_back(epoch);
    }
    return epochs;
}

std::shared_ptr<ModelCentre> Model::centre_of(const ModelLayer& layer, std::int64_t epoch) {
    auto centre = std::make_shared<ModelCentre>(centres_alive_);
    const auto count = static_cast<std::size_t>(config_.recent_tokens + kPageTokens);
    const auto first =
        static_cast<std::size_t>(config_.sink_tokens + epoch * config_.transform.centre_epoch);
    centre->values.resize(static_cast<std::size_t>(config_.kv_heads * config_.format.head_dim));
    for (std::size_t i = 0; i < centre->values.size(); ++i)
        for (std::size_t t = 0; t < count; ++t)
            centre->values[i] +=
                from_f16(layer.tokens[first + t].k[i]) / static_cast<double>(count);
    return centre;
}

/// Those of epochs that are wholly dropped, or that begin where the recent window does.
void Model::drop_centres(ModelLayer& layer) const {
    std::erase_if(layer.centres, [&](const auto& entry) {
        const int tokens = config_.transform.centre_epoch;
        const std::int64_t first = config_.sink_tokens + entry.first * tokens;
        return first >= layer.recent_first || first + tokens <= layer.quantized_first;
    });
}

bool Model::starts_page(std::int64_t position) const {
    const int sink = config_.sink_tokens;
    return (position < sink ? position : position - sink) % kPageTokens == 0;
}

ModelPagePtr Model::new_f16_page() { return std::make_shared<ModelPage>(f16_alive_); }

bool Model::fits(const ModelNeed& need) const {
    const auto fits_class = [this](const auto& entry) {
        const auto& [bytes, pages] = entry;
        const auto alive = quantized_alive_.find(bytes);
        return (alive == quantized_alive_.end() ? 0 : alive->second) + pages <=
               quantized_capacity_.at(bytes);
    };
    return std::all_of(need.quantized.begin(), need.quantized.end(), fits_class) &&
           f16_alive_ + need.f16 <= f16_capacity_ &&
           centres_alive_ + need.centres <= centre_capacity_;
}

void Model::create(SequenceId id) {
    ModelSequence sequence;
    sequence.settles = !config_.exact_prefill;
    for (int index = 0; index < config_.layers; ++index) {
        ModelLayer layer;
        layer.quantized_first = layer.recent_first = config_.sink_tokens;
        const bool calibrated = config_.transform.norm == KeyNormPolicy::calibrated;
        if (config_.format.quantized() && !calibrates(index) &&
            (calibrated || config_.transform.rotate)) {
            layer.transform = std::make_shared<std::vector<ModelTransform>>();
            for (int head = 0; head < config_.kv_heads; ++head) {
                ModelTransform transform;
                transform.rotate = config_.transform.rotate;
                if (calibrated) {
                    const KeyTransform& given =
                        config_
                            .calibrated[static_cast<std::size_t>(index * config_.kv_heads + head)];
                    transform.norm = doubles(given.norm, config_.format.head_dim);
                    transform.centre = doubles(given.centre, config_.format.head_dim);
                    transform.value_centre = doubles(given.value_centre, config_.format.head_dim);
                    transform.rotate = given.rotate;
                }
                layer.transform->push_back(transform);
            }
        }
        sequence.layers.push_back(std::move(layer));
    }
    sequences[id] = std::move(sequence);
}

void Model::fork(SequenceId parent, SequenceId child) { sequences[child] = sequences.at(parent); }

Model::Settling Model::settling(const ModelLayer& layer, int index) const {
    Settling result;
    const std::int64_t length = layer.length();
    if (calibrates(index) && !layer.transform) {
        const int needed =
            config_.sink_tokens + config_.transform.calibration_tokens + config_.recent_tokens;
        if (length < needed) return result;
        result.calibrate = true;
    }
    std::int64_t recent_first = layer.recent_first;
    if (window(index) > 0) {
        // The next query stands at `length`; `end` is the token behind a page.
        const auto outside = [&](std::int64_t end) { return end <= length - window(index) + 1; };
        const auto sink_end = [&](int page) {
            return std::min(config_.sink_tokens, kPageTokens * (page + 1));
        };
        const int sink_pages = (config_.sink_tokens + kPageTokens - 1) / kPageTokens;
        for (int page = layer.sink_dropped; page < sink_pages && outside(sink_end(page)); ++page)
            ++result.drop_sink;
        std::int64_t first = layer.quantized_first;
        for (; first < layer.recent_first && outside(first + kPageTokens); first += kPageTokens)
            ++result.drop_quantized;
        for (; first >= layer.recent_first && outside(first + kPageTokens); first += kPageTokens) {
            ++result.drop_recent;
            recent_first += kPageTokens;
        }
    }
    if (!config_.format.quantized()) return result;
    for (; length - recent_first >= config_.recent_tokens + kPageTokens;
         recent_first += kPageTokens)
        ++result.quantize;
    return result;
}

void Model::apply(const Settling& settling, ModelLayer& layer, int index) {
    for (const std::int64_t epoch : new_epochs(settling, layer, index))
        layer.centres[epoch] = centre_of(layer, epoch);
    if (settling.calibrate) {
        layer.transform = std::make_shared<std::vector<ModelTransform>>();
        for (int head = 0; head < config_.kv_heads; ++head)
            layer.transform->push_back(calibrate_head(layer, head));
        layer.query_power.clear();
    }
    const auto drop_front = [](std::vector<ModelPagePtr>& pages, int count) {
        pages.erase(pages.begin(), pages.begin() + count);
    };
    drop_front(layer.sink, settling.drop_sink);
    layer.sink_dropped += settling.drop_sink;
    drop_front(layer.quantized, settling.drop_quantized);
    drop_front(layer.recent, settling.drop_recent + settling.quantize);
    layer.quantized_first += kPageTokens * (settling.drop_quantized + settling.drop_recent);
    layer.recent_first += kPageTokens * (settling.drop_recent + settling.quantize);
    drop_centres(layer);
    for (int i = 0; i < settling.quantize; ++i)
        layer.quantized.push_back(std::make_shared<ModelPage>(quantized_alive_[page_bytes(index)]));
}

ModelTransform Model::calibrate_head(const ModelLayer& layer, int head) const {
    const TransformPolicy& policy = config_.transform;
    const auto dim = static_cast<std::size_t>(config_.format.head_dim);
    const auto count = static_cast<std::size_t>(policy.calibration_tokens);
    const auto value = [&](bool key, std::size_t t, std::size_t c) {
        const ModelToken& token = layer.tokens[static_cast<std::size_t>(config_.sink_tokens) + t];
        return from_f16((key ? token.k : token.v)[static_cast<std::size_t>(head) * dim + c]);
    };
    ModelTransform transform;
    transform.rotate = policy.rotate;
    if (policy.norm == KeyNormPolicy::balanced) balance(layer, head, transform);
    double most = 0.0;
    double least = 1e30;
    for (std::size_t c = 0; c < dim; ++c) {
        double key_mean = 0.0;
        double value_mean = 0.0;
        for (std::size_t t = 0; t < count; ++t) {
            key_mean += value(true, t, c) / static_cast<double>(count);
            value_mean += value(false, t, c) / static_cast<double>(count);
        }
        double largest = 0.0;
        for (std::size_t t = 0; t < count; ++t)
            largest =
                std::max(largest, std::abs(value(true, t, c) - (policy.centre ? key_mean : 0.0)));
        if (policy.value_centre) transform.value_centre.push_back(value_mean);
        const bool silent = largest < 1e-9;
        if (policy.norm == KeyNormPolicy::prefill)
            transform.norm.push_back(silent ? 1.0 : std::sqrt(largest));
        if (silent) continue;
        most = std::max(most, std::sqrt(largest));
        least = std::min(least, std::sqrt(largest));
    }
    if (policy.norm != KeyNormPolicy::prefill) return transform;
    const double threshold = static_cast<double>(policy.norm_threshold);
    transform.norm_is_close = std::abs(most / least - threshold) < 1e-3;
    if (most < threshold * least && !transform.norm_is_close) transform.norm.clear();
    return transform;
}

namespace {

double lower_median(std::vector<double> values) {
    std::erase_if(values, [](double value) { return value <= 0.0; });
    std::sort(values.begin(), values.end());
    return values.empty() ? 0.0 : values[(values.size() - 1) / 2];
}

} // namespace

/// The formulas of TransformPolicy (cache.h) for KeyNormPolicy::balanced.
void Model::balance(const ModelLayer& layer, int head, ModelTransform& transform) const {
    const auto dim = static_cast<std::size_t>(config_.format.head_dim);
    const std::size_t first = static_cast<std::size_t>(head) * dim;
    const auto tokens =
        std::span(layer.tokens)
            .subspan(static_cast<std::size_t>(config_.sink_tokens),
                     static_cast<std::size_t>(config_.transform.calibration_tokens));
    std::vector<double> power(dim);
    std::vector<double> largest(dim);
    for (std::size_t c = 0; c < dim; ++c) {
        double mean = 0.0;
        for (const ModelToken& token : tokens)
            mean += from_f16(token.k[first + c]) / static_cast<double>(tokens.size());
        if (!config_.transform.centre) mean = 0.0;
        for (const ModelToken& token : tokens) {
            const double key = from_f16(token.k[first + c]) - mean;
            power[c] += key * key;
            largest[c] = std::max(largest[c], std::abs(key));
        }
    }
    if (layer.query_power.empty()) {
        const double bound = 4.0 * lower_median(largest);
        for (const double m : largest) transform.norm.push_back(m > bound ? m / bound : 1.0);
        return;
    }
    std::vector<double> ratio(dim);
    for (std::size_t c = 0; c < dim; ++c)
        if (layer.query_power[first + c] > 0.0)
            ratio[c] = std::pow(power[c] / layer.query_power[first + c], 0.25);
    const double median = lower_median(ratio);
    for (const double r : ratio) {
        const double n = r > 0.0 ? r / median : 1.0;
        transform.norm.push_back(n > 1.4 ? n / 1.4 : n < 1.0 / 1.4 ? n * 1.4 : 1.0);
    }
}

void Model::add_queries(ModelLayer& layer, const TestRows& q, int token) const {
    const int dim = config_.format.head_dim;
    const int group = q.heads() / config_.kv_heads;
    layer.query_power.resize(static_cast<std::size_t>(config_.kv_heads * dim));
    for (int head = 0; head < q.heads(); ++head)
        for (int c = 0; c < dim; ++c) {
            const double value = q.value(token, head, c);
            layer.query_power[static_cast<std::size_t>(head / group * dim + c)] += value * value;
        }
}

ModelNeed Model::append_need(SequenceId id, int layer, int tokens) const {
    const ModelSequence& sequence = sequences.at(id);
    const ModelLayer& state = sequence.layers[static_cast<std::size_t>(layer)];
    ModelNeed need;
    if (sequence.settles) {
        const Settling plan = settling(state, layer);
        need.quantized[page_bytes(layer)] = plan.quantize;
        need.centres = static_cast<std::int64_t>(new_epochs(plan, state, layer).size());
    }
    for (int i = 0; i < tokens; ++i)
        if (starts_page(state.length() + i)) ++need.f16;
    if (tokens > 0 && !starts_page(state.length())) {
        const auto& list = state.length() < config_.sink_tokens ? state.sink : state.recent;
        need.copies = list.back().use_count() > 1;
        if (need.copies) ++need.f16;
    }
    return need;
}

void Model::append(SequenceId id, int layer, const TestRows& k, const TestRows& v,
                   const TestRows* q, bool copies) {
    ModelSequence& sequence = sequences.at(id);
    ModelLayer& state = sequence.layers[static_cast<std::size_t>(layer)];
    if (sequence.settles) apply(settling(state, layer), state, layer);
    const int heads = config_.kv_heads;
    const int dim = config_.format.head_dim;
    if (copies)
        (state.length() < config_.sink_tokens ? state.sink : state.recent).back() = new_f16_page();
    for (int t = 0; t < k.tokens(); ++t) {
        const std::int64_t position = state.length();
        if (starts_page(position))
            (position < config_.sink_tokens ? state.sink : state.recent).push_back(new_f16_page());
        const std::int64_t behind_sink = position - config_.sink_tokens;
        if (q && config_.transform.norm == KeyNormPolicy::balanced && quantizes(layer) &&
            !state.transform && behind_sink >= 0 &&
            behind_sink < config_.transform.calibration_tokens)
            add_queries(state, *q, t);
        ModelToken token;
        for (int head = 0; head < heads; ++head) {
            token.k.insert(token.k.end(), k.expected(t, head), k.expected(t, head) + dim);
            token.v.insert(token.v.end(), v.expected(t, head), v.expected(t, head) + dim);
        }
        state.tokens.push_back(std::move(token));
    }
}

/// Layer by layer, each taking its pages before it gives back those that no fork shares.
ModelNeed Model::settle_need(SequenceId id) const {
    ModelNeed need;
    ModelNeed held;
    for (int index = 0; index < config_.layers; ++index) {
        const ModelLayer& layer = sequences.at(id).layers[static_cast<std::size_t>(index)];
        const Settling plan = settling(layer, index);
        std::int64_t& quantized = held.quantized[page_bytes(index)];
        std::int64_t& most_quantized = need.quantized[page_bytes(index)];
        quantized += plan.quantize;
        held.centres += static_cast<std::int64_t>(new_epochs(plan, layer, index).size());
        most_quantized = std::max(most_quantized, quantized);
        need.centres = std::max(need.centres, held.centres);
        for (int page = 0; page < plan.drop_quantized; ++page)
            if (layer.quantized[static_cast<std::size_t>(page)].use_count() == 1) --quantized;
        const std::int64_t dropped =
            layer.quantized_first + kPageTokens * (plan.drop_quantized + plan.drop_recent);
        for (const auto& [epoch, centre] : layer.centres)
            if (config_.sink_tokens + (epoch + 1) * config_.transform.centre_epoch <= dropped &&
                centre.use_count() == 1)
                --held.centres;
    }
    return need;
}

void Model::settle(SequenceId id) {
    ModelSequence& sequence = sequences.at(id);
    for (int index = 0; index < config_.layers; ++index) {
        ModelLayer& layer = sequence.layers[static_cast<std::size_t>(index)];
        apply(settling(layer, index), layer, index);
    }
    sequence.settles = true;
}

bool Model::can_truncate(SequenceId id, std::int64_t length) const {
    for (int index = 0; index < config_.layers; ++index) {
        const ModelLayer& layer = sequences.at(id).layers[static_cast<std::size_t>(index)];
        if (layer.length() <= length || length == 0) continue;
        const std::int64_t dropped =
            layer.quantized_first > config_.sink_tokens
                ? layer.quantized_first
                : std::min(config_.sink_tokens, kPageTokens * layer.sink_dropped);
        if (dropped == 0) continue;
        // Every token that the query at `length` sees must be there, and none is invented.
        const std::int64_t first_seen = std::max<std::int64_t>(0, length - window(index) + 1);
        if (first_seen < dropped || length < dropped) return false;
    }
    return true;
}

ModelNeed Model::truncate_need(SequenceId id, std::int64_t length) const {
    ModelNeed need;
    for (const ModelLayer& layer : sequences.at(id).layers) {
        if (layer.length() <= length || length <= layer.quantized_first) continue;
        if (length >= layer.recent_first || starts_page(length)) continue;
        if (own_page(layer.recent) == layer.recent.size()) ++need.f16;
    }
    return need;
}

void Model::truncate(SequenceId id, std::int64_t length, const Cache& cache) {
    ModelSequence& sequence = sequences.at(id);
    for (int index = 0; index < config_.layers; ++index) {
        ModelLayer& layer = sequence.layers[static_cast<std::size_t>(index)];
        if (layer.length() > length) cut_layer(layer, length, index, id, cache);
    }
}

void Model::cut_layer(ModelLayer& layer, std::int64_t length, int index, SequenceId id,
                      const Cache& cache) {
    if (length <= config_.sink_tokens) {
        const auto pages = static_cast<int>((length + kPageTokens - 1) / kPageTokens);
        if (length == 0) layer.sink_dropped = 0;
        layer.sink.resize(static_cast<std::size_t>(pages - layer.sink_dropped));
        layer.quantized.clear();
        layer.recent.clear();
        layer.quantized_first = layer.recent_first = config_.sink_tokens;
        layer.centres.clear();
        layer.query_power.clear();
    } else if (length >= layer.recent_first) {
        layer.recent.resize(static_cast<std::size_t>(
            (length - layer.recent_first + kPageTokens - 1) / kPageTokens));
    } else {
        const auto whole = (length - layer.quantized_first) / kPageTokens;
        const auto kept = static_cast<int>((length - layer.quantized_first) % kPageTokens);
        const std::size_t own = own_page(layer.recent);
        ModelPagePtr page = own < layer.recent.size() ? layer.recent[own] : nullptr;
        layer.recent.clear();
        layer.quantized.resize(static_cast<std::size_t>(whole));
        layer.recent_first = layer.quantized_first + kPageTokens * whole;
        if (kept > 0) {
            layer.recent.push_back(page ? page : new_f16_page());
            adopt_cut_page(cache.view(index, id).recent, layer, index, layer.recent_first, kept);
        }
        drop_centres(layer);
    }
    layer.tokens.resize(static_cast<std::size_t>(length));
}

} // namespace innerkv::test
