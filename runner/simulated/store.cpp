// SPDX-License-Identifier: Apache-2.0
#include "store.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "innerkv/codec.h"

namespace innerkv::runner::simulated {
namespace {

std::uint16_t saturated_f16(float value) {
    return f16_from_float(std::clamp(value, -kLargestF16, kLargestF16));
}

/// Tokens from `first` on that a sliding window still shows at `length`.
std::int64_t first_visible(int sliding_window, std::int64_t length) {
    return sliding_window == 0 ? 0 : std::max<std::int64_t>(0, length - sliding_window);
}

} // namespace

Store::Store(const ModelInfo& info, Definition cache)
    : cache_(std::move(cache)), kv_heads_(info.kv_heads), head_dim_(info.head_dim),
      layers_(static_cast<std::size_t>(info.layers)) {
    cache_.k.codec->check(head_dim_);
    cache_.v.codec->check(head_dim_);
    for (std::size_t layer = 0; layer < info.sliding_window.size(); ++layer) {
        layers_[layer].sliding_window = info.sliding_window[layer];
    }
    clear();
}

/// As far as no more rows are rounded for the last of the tokens than for the first. Rows that are rounded
/// at once may all come together: attention is causal.
int Store::step(std::int64_t position, int tokens) const {
    if (cache_.k.window.at_once() && cache_.v.window.at_once()) {
        return tokens;
    }
    const Rounded first = due(position + 1);
    int count = 1;
    while (count < tokens) {
        const Rounded next = due(position + count + 1);
        if (next.k != first.k || next.v != first.v) {
            break;
        }
        ++count;
    }
    return count;
}

void Store::reserve(int tokens) {
    for (Layer& layer : layers_) {
        const auto pages =
            static_cast<std::size_t>((layer.length + tokens + kPageTokens - 1) / kPageTokens);
        layer.pages.reserve(pages);
        layer.table.reserve(pages);
        while (keeps_originals() && layer.originals.size() < pages) {
            layer.originals.push_back(make_page());
        }
        while (layer.pages.size() < pages) {
            layer.pages.push_back(make_page());
            layer.table.push_back(layer.pages.back().get());
        }
    }
}

int Store::start_append(int layer, const AppendRows& rows) {
    append_ = {&layers_[static_cast<std::size_t>(layer)], rows.tokens, rows.k, rows.v};
    return kv_heads_;
}

void Store::run_part(int part) {
    for (const bool keys : {true, false}) {
        store(part, keys);
        round(part, keys);
    }
}

void Store::commit() {
    append_.layer->length += append_.tokens;
    append_.layer->rounded = due(append_.layer->length);
    append_ = {};
}

/// A part that succeeded before another failed has rounded what was due with the tokens that do not come.
void Store::drop() noexcept {
    if (append_.layer != nullptr) {
        const Layer& layer = *append_.layer;
        const Rounded then = due(layer.length + 1);
        restore(layer, true, layer.rounded.k, then.k);
        restore(layer, false, layer.rounded.v, then.v);
    }
    append_ = {};
}

SequenceView Store::view(int layer) const {
    const Layer& from = layers_[static_cast<std::size_t>(layer)];
    SequenceView view;
    view.length = from.length;
    view.recent = {.pages = from.table,
                   .head_stride = format().page_bytes(),
                   .first_token = 0,
                   .tokens = from.length};
    return view;
}

void Store::truncate(std::int64_t length) {
    for (Layer& layer : layers_) {
        layer.length = std::min(layer.length, length);
        const Rounded then = due(layer.length);
        restore(layer, true, then.k, layer.rounded.k);
        restore(layer, false, then.v, layer.rounded.v);
        layer.rounded = then;
    }
}

void Store::clear() {
    for (Layer& layer : layers_) {
        layer.length = 0;
        layer.rounded = {cache_.k.window.sink, cache_.v.window.sink};
    }
}

CacheReport Store::report(std::int64_t length) const {
    CacheReport report;
    report.tokens = length;
    report.bits_per_value =
        (cache_.k.codec->bits(head_dim_) + cache_.v.codec->bits(head_dim_)) / 2.0;
    const double values = static_cast<double>(kv_heads_) * head_dim_;
    double bits = 0.0;
    std::int64_t rounded_rows = 0;
    for (const Layer& layer : layers_) {
        const std::int64_t first = first_visible(layer.sliding_window, layer.length);
        const std::int64_t tokens = layer.length - first;
        const auto side_bits = [&](const Side& side, std::int64_t end) {
            const std::int64_t rounded =
                std::max<std::int64_t>(0, end - std::max<std::int64_t>(first, side.window.sink));
            rounded_rows += rounded;
            return static_cast<double>(rounded) * side.codec->bits(head_dim_) +
                   static_cast<double>(tokens - rounded) * 16.0;
        };
        bits +=
            values * (side_bits(cache_.k, layer.rounded.k) + side_bits(cache_.v, layer.rounded.v));
        report.f16_bytes += static_cast<std::size_t>(4.0 * values * static_cast<double>(tokens));
    }
    report.quantized_pages = (rounded_rows + 2 * kPageTokens - 1) / (2 * kPageTokens);
    report.bytes = static_cast<std::size_t>(bits / 8.0);
    return report;
}

Store::Page Store::make_page() const {
    return Page(new (std::align_val_t{kPageAlignment})
                    std::byte[static_cast<std::size_t>(kv_heads_) * format().page_bytes()]);
}

bool Store::keeps_originals() const {
    return !cache_.k.window.at_once() || !cache_.v.window.at_once();
}

std::uint16_t* Store::row(const std::vector<Page>& pages, int head, bool keys,
                          std::int64_t token) const {
    std::byte* const page = pages[static_cast<std::size_t>(token / kPageTokens)].get() +
                            static_cast<std::size_t>(head) * format().page_bytes();
    const std::int64_t index = token % kPageTokens + (keys ? 0 : kPageTokens);
    return reinterpret_cast<std::uint16_t*>(page) + index * head_dim_;
}

/// New rows go into their pages; those that are rounded at once from fp32.
void Store::store(int head, bool keys) const {
    const Rows& from = keys ? append_.k : append_.v;
    const Side& side = keys ? cache_.k : cache_.v;
    const auto channels = static_cast<std::size_t>(head_dim_);
    std::vector<float> values(channels);
    for (int token = 0; token < append_.tokens; ++token) {
        const auto* in = static_cast<const float*>(from.data) + token * from.token_stride +
                         head * from.head_stride;
        for (std::size_t c = 0; c < channels; ++c) {
            // Written so that NaN fails.
            if (!(std::abs(in[c]) <= kLargestF16)) {
                throw InvalidArgument(std::string("append: ") + (keys ? "K" : "V") + " of token " +
                                      std::to_string(append_.layer->length + token) +
                                      " is not finite or beyond fp16");
            }
            values[c] = in[c];
        }
        if (side.window.at_once()) {
            side.codec->round(values, head_dim_);
        }
        const std::int64_t position = append_.layer->length + token;
        std::uint16_t* const out = row(append_.layer->pages, head, keys, position);
        std::transform(values.begin(), values.end(), out, saturated_f16);
        if (!side.window.at_once()) {
            std::copy_n(out, channels, row(append_.layer->originals, head, keys, position));
        }
    }
}

/// Rows whose time has come.
void Store::round(int head, bool keys) const {
    const Side& side = keys ? cache_.k : cache_.v;
    if (side.window.at_once()) {
        return;
    }
    const Layer& layer = *append_.layer;
    const Rounded until = due(layer.length + 1);
    const std::int64_t begin = keys ? layer.rounded.k : layer.rounded.v;
    const std::int64_t end = keys ? until.k : until.v;
    const auto channels = static_cast<std::size_t>(head_dim_);
    std::vector<float> values(static_cast<std::size_t>(end - begin) * channels);
    for (std::int64_t token = begin; token < end; ++token) {
        const std::uint16_t* const in = row(layer.originals, head, keys, token);
        std::transform(in, in + channels,
                       values.begin() + static_cast<std::ptrdiff_t>(token - begin) * head_dim_,
                       float_from_f16);
    }
    side.codec->round(values, head_dim_);
    for (std::int64_t token = begin; token < end; ++token) {
        const auto from = values.begin() + static_cast<std::ptrdiff_t>(token - begin) * head_dim_;
        std::transform(from, from + head_dim_, row(layer.pages, head, keys, token), saturated_f16);
    }
}

/// Rows of the layer's tokens, as they came.
void Store::restore(const Layer& layer, bool keys, std::int64_t begin,
                    std::int64_t end) const noexcept {
    if ((keys ? cache_.k : cache_.v).window.at_once()) {
        return;
    }
    for (int head = 0; head < kv_heads_; ++head) {
        for (std::int64_t token = begin; token < std::min(end, layer.length); ++token) {
            std::copy_n(row(layer.originals, head, keys, token), head_dim_,
                        row(layer.pages, head, keys, token));
        }
    }
}

Store::Rounded Store::due(std::int64_t length) const {
    return {cache_.k.window.end(length), cache_.v.window.end(length)};
}

} // namespace innerkv::runner::simulated
