// SPDX-License-Identifier: Apache-2.0
#include "attention/arguments.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "innerkv/error.h"

namespace innerkv {
namespace {

[[noreturn]] void refuse(const std::string& message) {
    throw InvalidArgument("attention: " + message);
}

/// Positions and numbers of rows for which no sum overflows.
constexpr std::int64_t kLargestPosition = std::int64_t{1} << 62;
constexpr std::int64_t kMostRows = std::int64_t{1} << 30;

void check_shape(const AttentionShape& shape) {
    shape.format.validate();
    if (shape.q_heads < 1 || shape.kv_heads < 1 || shape.q_heads % shape.kv_heads != 0)
        refuse(std::to_string(shape.q_heads) + " query heads on " + std::to_string(shape.kv_heads) +
               " KV heads; both must be positive and the KV heads divide the query heads");
    if (!std::isfinite(shape.scale) || shape.scale < 0.0f)
        refuse("scale " + std::to_string(shape.scale) +
               "; it must be finite and positive, or 0 for 1 / sqrt(head_dim)");
    if (!std::isfinite(shape.soft_cap) || shape.soft_cap < 0.0f)
        refuse("soft cap " + std::to_string(shape.soft_cap) +
               "; it must be finite and positive, or 0 for none");
    if (shape.sliding_window < 0)
        refuse("sliding window " + std::to_string(shape.sliding_window) +
               "; it must be positive, or 0 for none");
}

void check_run(const AttentionShape& shape, const PageRun& run, std::size_t page_bytes,
               const std::string& name) {
    const auto room = static_cast<std::int64_t>(run.pages.size()) * kPageTokens;
    if (run.tokens < 0 || run.tokens > room)
        refuse(name + " has " + std::to_string(run.tokens) + " tokens on " +
               std::to_string(run.pages.size()) + " pages of 32");
    if (run.pages.empty()) return;
    const bool strides = shape.kv_heads > 1;
    if (strides && run.head_stride < page_bytes)
        refuse(name + " has a head stride of " + std::to_string(run.head_stride) +
               " bytes, less than a page of " + std::to_string(page_bytes));
    std::uintptr_t bits = strides ? run.head_stride : 0;
    for (const std::byte* page : run.pages) {
        if (page == nullptr) refuse(name + " has a null page");
        bits |= reinterpret_cast<std::uintptr_t>(page);
    }
    if (bits % kPageAlignment != 0)
        refuse(name + " has pages or a head stride that are not multiples of 64 bytes");
}

void check_centres(const SequenceView& sequence, const std::string& where) {
    const CentreRun& centres = sequence.centres;
    if (centres.epochs.empty()) return;
    constexpr int kMostEpochPages = 1 << 20;
    if (centres.epoch_pages < 1 || centres.epoch_pages > kMostEpochPages ||
        centres.first_page < 0 || centres.first_page >= centres.epoch_pages)
        refuse(where + "centres have epochs of " + std::to_string(centres.epoch_pages) +
               " pages and the run begins at page " + std::to_string(centres.first_page) +
               " of one; an epoch has 1 to 2^20 pages, and the run begins inside it");
    const auto room = static_cast<std::int64_t>(centres.epochs.size()) * centres.epoch_pages;
    if (centres.first_page + static_cast<std::int64_t>(sequence.quantized.pages.size()) > room)
        refuse(where + std::to_string(centres.epochs.size()) + " centres for epochs of " +
               std::to_string(centres.epoch_pages) + " pages and a quantized run of " +
               std::to_string(sequence.quantized.pages.size()) + " from page " +
               std::to_string(centres.first_page) + " on; give one for every epoch");
    for (const std::byte* centre : centres.epochs) {
        if (centre == nullptr) refuse(where + "a centre is null");
        if (reinterpret_cast<std::uintptr_t>(centre) % sizeof(std::uint16_t) != 0)
            refuse(where + "a centre is not aligned to its fp16 elements");
    }
    for (const KeyTransform& transform : sequence.transforms)
        if (transform.centre)
            refuse(where + "a key transform has a centre besides those of the epochs");
}

void check_sequence(const AttentionShape& shape, const SequenceView& sequence,
                    const std::string& where) {
    if (sequence.length < 0 || sequence.length > kLargestPosition)
        refuse(where + "the sequence's length is " + std::to_string(sequence.length));
    if (sequence.quantized.tokens > 0 && !shape.format.quantized())
        refuse(where + "there is a quantized run, but the format is f16");
    const std::size_t f16_bytes = PageFormat{kF16, kF16, shape.format.head_dim}.page_bytes();
    const PageRun* runs[] = {&sequence.sink, &sequence.quantized, &sequence.recent};
    const char* names[] = {"sink", "quantized run", "recent run"};
    std::int64_t end = 0;
    for (int i = 0; i < 3; ++i) {
        const PageRun& run = *runs[i];
        check_run(shape, run, i == 1 ? shape.format.page_bytes() : f16_bytes, where + names[i]);
        if (run.tokens == 0) continue;
        if (run.first_token < end)
            refuse(where + names[i] + " begins at token " + std::to_string(run.first_token) +
                   ", before the end of the run in front of it at " + std::to_string(end));
        if (run.first_token > sequence.length - run.tokens)
            refuse(where + names[i] + " of " + std::to_string(run.tokens) + " tokens from token " +
                   std::to_string(run.first_token) + " on leaves a sequence of length " +
                   std::to_string(sequence.length));
        end = run.first_token + run.tokens;
    }
    check_centres(sequence, where);
    const auto transforms = static_cast<int>(sequence.transforms.size());
    if (transforms != 0 && transforms != shape.kv_heads)
        refuse(where + std::to_string(transforms) + " key transforms for " +
               std::to_string(shape.kv_heads) + " KV heads; give one each or none");
}

void check_stride(std::ptrdiff_t stride, int count, int head_dim, const std::string& name) {
    if (count > 1 && stride < head_dim && stride > -head_dim)
        refuse(name + " is " + std::to_string(stride) + " elements, less than the head dimension " +
               std::to_string(head_dim));
}

void check_block(const AttentionShape& shape, const QueryBlock& block, const std::string& where) {
    if (block.sequence == nullptr) refuse(where + "no sequence");
    if (block.tokens < 1)
        refuse(where + std::to_string(block.tokens) + " query tokens; at least one is needed");
    if (block.q == nullptr || block.out == nullptr) refuse(where + "q or out is null");
    if (block.first_position < 0 || block.first_position > kLargestPosition)
        refuse(where + "first position is " + std::to_string(block.first_position));
    const int head_dim = shape.format.head_dim;
    check_stride(block.q_token_stride, block.tokens, head_dim, where + "q_token_stride");
    check_stride(block.q_head_stride, shape.q_heads, head_dim, where + "q_head_stride");
    check_stride(block.out_token_stride, block.tokens, head_dim, where + "out_token_stride");
    check_stride(block.out_head_stride, shape.q_heads, head_dim, where + "out_head_stride");
    check_sequence(shape, *block.sequence, where);
}

} // namespace

void check_attention_arguments(const AttentionShape& shape, std::span<const QueryBlock> blocks) {
    check_shape(shape);
    std::int64_t rows = 0;
    for (std::size_t i = 0; i < blocks.size(); ++i) {
        check_block(shape, blocks[i], "block " + std::to_string(i) + ": ");
        rows += std::int64_t{blocks[i].tokens} * shape.q_heads;
        if (rows > kMostRows)
            refuse("more than 2^30 rows (query tokens times query heads); ask in several calls");
    }
}

float logit_scale(const AttentionShape& shape) {
    if (shape.scale > 0.0f) return shape.scale;
    return 1.0f / std::sqrt(static_cast<float>(shape.format.head_dim));
}

VisibleRange visible_range(const AttentionShape& shape, const SequenceView& sequence,
                           std::int64_t position) {
    const std::int64_t begin =
        shape.sliding_window > 0 ? position + 1 - shape.sliding_window : std::int64_t{0};
    return {std::max(begin, std::int64_t{0}), std::min(position + 1, sequence.length)};
}

} // namespace innerkv
