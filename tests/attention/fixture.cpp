// SPDX-License-Identifier: Apache-2.0
#include "fixture.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>

#include "format/layout.h"
#include "innerkv/codec.h"
#include "transform/transform.h"

namespace innerkv::test {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::size_t index(int value) { return static_cast<std::size_t>(value); }

/// What a transform is there to take out.
void add_offset(const float* size, const float* centre, std::vector<float>& row) {
    for (std::size_t c = 0; c < row.size(); ++c)
        row[c] = row[c] * (size ? size[c] : 1.0f) + (centre ? centre[c] : 0.0f);
}

/// `rows`: [32][head_dim], fp16.
void write_f16_row(const std::vector<float>& row, std::byte* rows, int token) {
    std::byte* to = rows + sizeof(std::uint16_t) * row.size() * index(token);
    for (const float value : row) {
        const std::uint16_t bits = f16_from_float(value);
        std::memcpy(to, &bits, sizeof bits);
        to += sizeof bits;
    }
}

/// NaN for the scales and zero-points of one token's keys.
void poison_key(const PageFormat& format, int token, std::byte* page) {
    const Codec codec = format.k;
    for (int block = 0; block < format.blocks(); ++block) {
        std::byte* scales = page + index(block) * codec.block_bytes() + codec.code_bytes();
        for (int half = 0; half < 2; ++half) {
            const int group = kTileRows * (2 * half + token / kTileRows) + token % kTileRows;
            const std::size_t bytes = codec.scale_bytes() / kGroupsPerBlock;
            std::memset(scales + bytes * index(group), 0xff, bytes);
            if (codec.has_zero_points())
                std::memset(scales + codec.scale_bytes() + bytes * index(group), 0xff, bytes);
        }
    }
}

/// Codes of a token that nobody sees: in its groups of keys, and in the values' groups it shares.
void scramble_codes(const PageFormat& format, int token, std::mt19937& random, std::byte* page) {
    for (int channel = 0; channel < format.padded_dim(); ++channel) {
        const auto code = [&](Codec codec) {
            return static_cast<std::uint8_t>(random() & ((1u << codec.bits) - 1));
        };
        const std::size_t block = index(channel / kBlockChannels);
        const int c = channel % kBlockChannels;
        write_code(format.k, page + block * format.k.block_bytes(),
                   2 * (c / kGroupSize) + token / kTileRows, token % kTileRows, c % kGroupSize,
                   code(format.k));
        write_code(format.v, page + format.v_offset() + block * format.v.block_bytes(),
                   c / kTileRows, c % kTileRows, token, code(format.v));
    }
}

double norm(const std::vector<float>& row) {
    double sum = 0.0;
    for (const float value : row) sum += static_cast<double>(value) * value;
    return std::sqrt(sum);
}

double row_error(const std::vector<float>& row, const std::vector<float>& expected) {
    std::vector<float> difference(row.size());
    for (std::size_t c = 0; c < row.size(); ++c) difference[c] = row[c] - expected[c];
    const double size = norm(expected);
    const double error = size > 0.0 ? norm(difference) / size : norm(difference);
    return std::isfinite(error) ? error : std::numeric_limits<double>::infinity();
}

} // namespace

Memory::Memory(std::size_t bytes)
    : data_(static_cast<std::byte*>(::operator new (bytes, std::align_val_t{kPageAlignment}))) {
    std::memset(data_.get(), 0xff, bytes);
}

void Memory::Free::operator()(std::byte* data) const {
    ::operator delete (data, std::align_val_t{kPageAlignment});
}

void gaussian(std::mt19937& random, std::vector<float>& row) {
    std::normal_distribution<float> normal;
    for (float& value : row) value = normal(random);
}

FillRow scaled(float factor) {
    return [factor](std::mt19937& random, std::vector<float>& row) {
        gaussian(random, row);
        for (float& value : row) value *= factor;
    };
}

FillRow constant(float value) {
    return [value](std::mt19937&, std::vector<float>& row) {
        std::fill(row.begin(), row.end(), value);
    };
}

Sequence::Sequence(const PageFormat& format, int kv_heads, const SequenceSpec& spec, unsigned seed)
    : format_(format), kv_heads_(kv_heads), random_(seed) {
    make_transforms(spec);
    view_.transforms = transforms_;
    make_runs(spec);
}

Sequence::Sequence(const Sequence& parent, std::int64_t shared, const SequenceSpec& spec,
                   unsigned seed)
    : format_(parent.format_), kv_heads_(parent.kv_heads_), parent_(&parent), shared_(shared),
      random_(seed) {
    view_.transforms = parent.view_.transforms;
    make_runs(spec);
}

std::int64_t Sequence::shared_with(const Sequence& fork) const {
    std::int64_t tokens = fork.view_.length;
    const Sequence* sequence = &fork;
    for (; sequence != this && sequence; sequence = sequence->parent_)
        tokens = std::min(tokens, sequence->shared_);
    return sequence ? tokens : 0;
}

void Sequence::make_runs(const SequenceSpec& spec) {
    view_.quantized.first_token = spec.sink + spec.dropped;
    view_.recent.first_token = view_.quantized.first_token + spec.quantized;
    view_.length = view_.recent.first_token + spec.recent;
    if (spec.transform.centre && spec.epoch_pages > 0) make_centres(spec);
    make_run(spec.sink, false, spec, sink_, view_.sink);
    make_run(spec.quantized, true, spec, quantized_, view_.quantized);
    make_run(spec.recent, false, spec, recent_, view_.recent);
}

const std::byte* Sequence::shared_page(const PageRun& view, int first) const {
    if (!parent_) return nullptr;
    const std::int64_t end = view.first_token + first + kPageTokens;
    if (end > shared_ || first + kPageTokens > view.tokens) return nullptr;
    const SequenceView& of = parent_->view_;
    const PageRun& run = &view == &view_.sink        ? of.sink
                         : &view == &view_.quantized ? of.quantized
                                                     : of.recent;
    if (run.first_token != view.first_token || first + kPageTokens > run.tokens) return nullptr;
    return run.pages[index(first / kPageTokens)];
}

void Sequence::make_centres(const SequenceSpec& spec) {
    const std::size_t count = index(format_.head_dim * kv_heads_);
    const int pages = (spec.quantized + kPageTokens - 1) / kPageTokens;
    std::vector<float> row(count);
    for (int page = 0; page < spec.first_page + pages; page += spec.epoch_pages) {
        const int first = std::max(0, page - spec.first_page) * kPageTokens;
        view_.quantized.tokens = spec.quantized;
        if (shared_page(view_.quantized, first)) {
            epochs_.push_back(parent_->epochs_[epochs_.size()]);
            continue;
        }
        Memory& memory = centres_.emplace_back(sizeof(std::uint16_t) * count);
        gaussian(random_, row);
        write_f16_row(row, memory.data(), 0);
        epochs_.push_back(memory.data());
    }
    view_.centres = {epochs_, spec.epoch_pages, spec.first_page};
}

void Sequence::make_transforms(const SequenceSpec& spec) {
    const TransformFlags& flags = spec.transform;
    if (!flags.norm && !flags.centre && !flags.rotate && !flags.value_centre) return;
    std::normal_distribution<float> normal;
    const auto channels = [&](bool present, bool positive) -> const float* {
        if (!present) return nullptr;
        auto& values = channels_.emplace_back(index(format_.head_dim));
        for (float& value : values)
            value = positive ? std::exp(0.3f * normal(random_)) : normal(random_);
        return values.data();
    };
    for (int head = 0; head < kv_heads_; ++head) {
        KeyTransform transform;
        transform.norm = channels(flags.norm, true);
        transform.centre = channels(flags.centre && spec.epoch_pages == 0, false);
        transform.value_centre = channels(flags.value_centre, false);
        transform.rotate = flags.rotate;
        transforms_.push_back(transform);
    }
}

void Sequence::make_run(int tokens, bool quantized, const SequenceSpec& spec, Run& run,
                        PageRun& view) {
    const int head_dim = format_.head_dim;
    const int dim = quantized ? format_.padded_dim() : head_dim;
    const PageFormat stored =
        quantized ? PageFormat{format_.k, format_.v, dim} : PageFormat{kF16, kF16, head_dim};
    constexpr std::size_t kGap = 64;
    view.head_stride = stored.page_bytes() + kGap;
    view.tokens = tokens;
    std::vector<float> row(index(head_dim));
    std::vector<float> k(index(kPageTokens * dim));
    std::vector<float> v(index(kPageTokens * dim));
    std::vector<float> centre(index(head_dim));
    for (int first = 0; first < tokens; first += kPageTokens) {
        if (const std::byte* shared = shared_page(view, first)) {
            run.own.push_back(nullptr);
            run.pages.push_back(shared);
            continue;
        }
        auto& memory = run.memory.emplace_back(view.head_stride * index(kv_heads_));
        run.own.push_back(memory.data());
        run.pages.push_back(memory.data());
        for (int head = 0; head < kv_heads_; ++head) {
            std::byte* page = memory.data() + index(head) * view.head_stride;
            KeyTransform transform =
                view_.transforms.empty() ? KeyTransform{} : view_.transforms[index(head)];
            if (quantized && !epochs_.empty()) {
                const int epoch = (spec.first_page + first / kPageTokens) / spec.epoch_pages;
                const std::byte* from =
                    epochs_[index(epoch)] + sizeof(std::uint16_t) * index(head * head_dim);
                for (std::size_t c = 0; c < centre.size(); ++c) {
                    std::uint16_t bits = 0;
                    std::memcpy(&bits, from + sizeof bits * c, sizeof bits);
                    centre[c] = float_from_f16(bits);
                }
                transform.centre = centre.data();
            }
            for (int token = 0; token < std::min(kPageTokens, tokens - first); ++token) {
                spec.k(random_, row);
                add_offset(transform.norm, transform.centre, row);
                if (quantized)
                    transform_key_row(transform, head_dim, row.data(), k.data() + token * dim);
                else
                    write_f16_row(row, page, token);
                spec.v(random_, row);
                add_offset(nullptr, transform.value_centre, row);
                if (quantized)
                    transform_value_row(transform, head_dim, row.data(), v.data() + token * dim);
                else
                    write_f16_row(row, page + stored.v_offset(), token);
            }
            if (!quantized) continue;
            quantize_page(stored, k.data(), dim, v.data(), dim, page);
            for (int token = tokens - first; token < kPageTokens; ++token)
                poison_key(stored, token, page);
        }
    }
    view.pages = run.pages;
}

void Sequence::poison_run(const PageFormat& stored, const std::vector<bool>& seen, Run& run,
                          const PageRun& view) {
    const std::size_t row_bytes = sizeof(std::uint16_t) * index(stored.head_dim);
    for (std::size_t i = 0; i < run.own.size(); ++i)
        for (int head = 0; head < kv_heads_ && run.own[i]; ++head) {
            std::byte* page = run.own[i] + index(head) * view.head_stride;
            const std::int64_t first = view.first_token + kPageTokens * static_cast<int>(i);
            const auto end =
                std::min<std::int64_t>(first + kPageTokens, view.first_token + view.tokens);
            const auto from = seen.begin();
            if (std::find(from + first, from + end, true) == from + end) {
                std::memset(page, 0xff, stored.page_bytes());
                continue;
            }
            for (int token = 0; token < kPageTokens; ++token) {
                if (first + token < end && seen[static_cast<std::size_t>(first + token)]) continue;
                if (stored.quantized()) {
                    scramble_codes(stored, token, random_, page);
                    poison_key(stored, token, page);
                    continue;
                }
                std::memset(page + row_bytes * index(token), 0xff, row_bytes);
                std::memset(page + row_bytes * index(kPageTokens + token), 0xff, row_bytes);
            }
        }
}

void Sequence::poison_unseen(const std::vector<bool>& seen) {
    const PageFormat f16{kF16, kF16, format_.head_dim};
    poison_run(f16, seen, sink_, view_.sink);
    poison_run({format_.k, format_.v, format_.padded_dim()}, seen, quantized_, view_.quantized);
    poison_run(f16, seen, recent_, view_.recent);
}

void Batch::poison_unseen() {
    for (Sequence& sequence : sequences) {
        const std::int64_t length = sequence.view().length;
        std::vector<bool> seen(static_cast<std::size_t>(length));
        for (const QueryBlock& block : blocks) {
            const auto asks =
                std::find_if(sequences.begin(), sequences.end(), [&block](const Sequence& other) {
                    return block.sequence == &other.view();
                });
            const std::int64_t shared = std::min(length, sequence.shared_with(*asks));
            for (std::int64_t query = block.first_position;
                 query < block.first_position + block.tokens; ++query)
                for (std::int64_t at = 0; at < shared; ++at)
                    if (at <= query &&
                        (shape.sliding_window == 0 || at > query - shape.sliding_window))
                        seen[static_cast<std::size_t>(at)] = true;
        }
        sequence.poison_unseen(seen);
    }
}

void Batch::add(const SequenceSpec& spec, int tokens, const FillRow& q) {
    const auto seed = static_cast<unsigned>(sequences.size() + 1);
    add_queries(sequences.emplace_back(shape.format, shape.kv_heads, spec, seed), tokens, q);
}

void Batch::add_fork(int parent, std::int64_t shared, const SequenceSpec& spec, int tokens,
                     const FillRow& q) {
    const auto seed = static_cast<unsigned>(sequences.size() + 1);
    add_queries(sequences.emplace_back(sequences[index(parent)], shared, spec, seed), tokens, q);
}

void Batch::add_queries(const Sequence& sequence, int tokens, const FillRow& q) {
    // Heads and tokens lie apart, so that strides count and what lies between is NaN.
    const int head_dim = shape.format.head_dim;
    const int head_stride = head_dim + 3;
    const int token_stride = shape.q_heads * head_stride + 5;
    auto& queries = memory.emplace_back(index(tokens * token_stride), kNan);
    auto& out = memory.emplace_back(queries.size(), kNan);
    auto& log_sum_exp = memory.emplace_back(index(tokens * shape.q_heads), kNan);
    std::mt19937 random(static_cast<unsigned>(sequences.size() + 1000));
    std::vector<float> row(index(head_dim));
    for (int token = 0; token < tokens; ++token) {
        for (int head = 0; head < shape.q_heads; ++head) {
            q(random, row);
            std::copy(row.begin(), row.end(),
                      queries.begin() + token * token_stride + head * head_stride);
        }
    }
    QueryBlock block;
    block.sequence = &sequence.view();
    block.q = queries.data();
    block.out = out.data();
    block.log_sum_exp = log_sum_exp.data();
    block.q_token_stride = block.out_token_stride = token_stride;
    block.q_head_stride = block.out_head_stride = head_stride;
    block.first_position = std::max<std::int64_t>(0, sequence.view().length - tokens);
    block.tokens = tokens;
    blocks.push_back(block);
}

Result collect(const Batch& batch, const std::function<void()>& attend) {
    const auto each_row = [&](const auto& visit) {
        for (const QueryBlock& block : batch.blocks)
            for (int token = 0; token < block.tokens; ++token)
                for (int head = 0; head < batch.shape.q_heads; ++head)
                    visit(block.out + token * block.out_token_stride + head * block.out_head_stride,
                          block.log_sum_exp + token * batch.shape.q_heads + head);
    };
    const int head_dim = batch.shape.format.head_dim;
    each_row([&](float* out, float* log_sum_exp) {
        std::fill_n(out, head_dim, kNan);
        *log_sum_exp = kNan;
    });
    attend();
    Result result;
    each_row([&](const float* out, const float* log_sum_exp) {
        result.out.emplace_back(out, out + head_dim);
        result.log_sum_exp.push_back(*log_sum_exp);
    });
    return result;
}

Result reference(const Batch& batch) {
    return collect(batch, [&] { attention_reference(batch.shape, batch.blocks); });
}

Result attend(const Batch& batch, Arithmetic arithmetic, std::string_view isa, int threads) {
    return collect(batch, [&] {
        Attention(batch.shape, batch.blocks, {arithmetic, isa, threads}).run_all();
    });
}

double largest_error(const Result& result, const Result& expected) {
    double largest = 0.0;
    for (std::size_t row = 0; row < expected.out.size(); ++row)
        largest = std::max(largest, row_error(result.out[row], expected.out[row]));
    return largest;
}

double mean_error(const Result& result, const Result& expected) {
    double sum = 0.0;
    for (std::size_t row = 0; row < expected.out.size(); ++row)
        sum += std::pow(row_error(result.out[row], expected.out[row]), 2);
    return std::sqrt(sum / static_cast<double>(expected.out.size()));
}

double log_sum_exp_error(const Result& result, const Result& expected) {
    double largest = 0.0;
    for (std::size_t row = 0; row < expected.log_sum_exp.size(); ++row) {
        const double a = result.log_sum_exp[row];
        const double b = expected.log_sum_exp[row];
        if (a == b) continue;
        const double error = std::abs(a - b);
        largest = std::max(largest,
                           std::isfinite(error) ? error : std::numeric_limits<double>::infinity());
    }
    return largest;
}

void expect_nothing_seen(const Result& result) {
    for (std::size_t row = 0; row < result.out.size(); ++row) {
        EXPECT_EQ(result.out[row], std::vector<float>(result.out[row].size(), 0.0f));
        EXPECT_EQ(result.log_sum_exp[row], -std::numeric_limits<float>::infinity());
    }
}

void expect_nan(const Result& result, std::size_t row) {
    for (const float value : result.out[row]) EXPECT_TRUE(std::isnan(value));
    EXPECT_TRUE(std::isnan(result.log_sum_exp[row]));
}

std::vector<std::string_view> preset_names() {
    std::vector<std::string_view> names;
    for (const Preset& preset : presets()) names.push_back(preset.name);
    return names;
}

std::vector<NamedFormat> all_formats(int head_dim) {
    std::vector<NamedFormat> formats;
    for (const Preset& preset : presets())
        formats.push_back({std::string(preset.name), preset.format(head_dim)});
    for (const int bits : {2, 3, 4, 8}) {
        const std::string suffix = std::to_string(bits);
        formats.push_back({"symmetric" + suffix, {symmetric(bits), symmetric(bits), head_dim}});
        formats.push_back({"asymmetric" + suffix, {asymmetric(bits), asymmetric(bits), head_dim}});
        formats.push_back({"hybrid" + suffix, {hybrid(bits), hybrid(bits), head_dim}});
        if (bits < 8)
            formats.push_back({"affine" + suffix, {affine(bits), affine(bits), head_dim}});
    }
    formats.push_back({"mixed", {hybrid(4), asymmetric(2), head_dim}});
    return formats;
}

namespace {

// int8 queries err by 0.5% of a logit's spread, uint8 probabilities by 0.3%: 0.7% on Gaussian data, on
// the output as a whole. A single row may be unlucky: a few of thousands exceed 1%.
constexpr double kIntegerError = 0.01;
constexpr double kIntegerRowError = 0.02;
constexpr double kIntegerLogSumExpError = 5e-3;
constexpr double kExactError = 1e-5;

} // namespace

void expect_close_to_reference(Batch& batch, std::string_view isa) {
    const Result before = attend(batch, Arithmetic::integer, isa);
    batch.poison_unseen();
    const Result expected = reference(batch);
    const Result integer = attend(batch, Arithmetic::integer, isa);
    EXPECT_EQ(integer.out, before.out);
    EXPECT_EQ(integer.log_sum_exp, before.log_sum_exp);
    EXPECT_LT(mean_error(integer, expected), kIntegerError);
    EXPECT_LT(largest_error(integer, expected), kIntegerRowError);
    EXPECT_LT(log_sum_exp_error(integer, expected), kIntegerLogSumExpError);
    const Result exact = attend(batch, Arithmetic::exact, isa);
    EXPECT_LT(largest_error(exact, expected), kExactError);
    EXPECT_LT(log_sum_exp_error(exact, expected), kExactError);
}

SequenceSpec spec_for(const PageFormat& format, int quantized) {
    SequenceSpec spec;
    (format.quantized() ? spec.quantized : spec.recent) += quantized;
    return spec;
}

AttentionShape shape_of(const PageFormat& format, int q_heads, int kv_heads) {
    AttentionShape shape;
    shape.q_heads = q_heads;
    shape.kv_heads = kv_heads;
    shape.format = format;
    return shape;
}

} // namespace innerkv::test
