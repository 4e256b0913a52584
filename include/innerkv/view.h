// SPDX-License-Identifier: Apache-2.0
// A sequence as attention reads it: runs of pages, and what keys and values went through on their way in.
// innerkv::Cache makes views; so can a caller that owns its memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace innerkv {

/// What happened to the K and V rows of one KV head before they were quantized, and is undone around
/// the kernels: K' = H((K - centre) / norm), V' = H(V - value_centre). Null or false: that step is absent.
/// For a query, q' = H(q * norm) meets K', q . centre is added to the logits of quantized tokens; their
/// part of the output is rotated back and gets value_centre times the weight they received. All arrays
/// [head_dim].
struct KeyTransform {
    const float* norm = nullptr;
    const float* centre = nullptr;
    const float* value_centre = nullptr;
    /// H, of keys and values: the orthonormal Hadamard matrix on blocks of the largest power of two that
    /// divides padded_dim.
    bool rotate = false;
};

/// Centres of keys that change along the quantized run, in place of KeyTransform::centre: its page i was
/// centred by entry (first_page + i) / epoch_pages. KV head h's centre is fp16 [head_dim], from
/// epochs[e] + 2 * h * head_dim on.
struct CentreRun {
    std::span<const std::byte* const> epochs; ///< empty: none
    int epoch_pages = 0;
    int first_page = 0; ///< of the run's page 0 in its epoch: 0 .. epoch_pages - 1
};

/// A run of consecutive pages. Page i of KV head h starts at pages[i] + h * head_stride; both are
/// multiples of 64 bytes. A page is memory of its full size even where `tokens` ends inside it; rows
/// beyond may hold anything.
struct PageRun {
    std::span<const std::byte* const> pages;
    std::size_t head_stride = 0; ///< bytes from a KV head's page to the next one's, a page at least
    std::int64_t first_token = 0;
    std::int64_t tokens = 0; ///< <= 32 * pages.size(); page i holds tokens first_token + 32 i ...
    std::size_t page_bytes = 0; ///< of a KV head's page; attention does not ask, its format says
};

/// One sequence's cache in one layer: sink (fp16), quantized, recent (fp16), in token order without
/// gaps, except that tokens that a sliding window has dropped are missing between the runs. Pages of
/// the quantized run are PageFormat{k, v, padded_dim} where they are rotated: the same bytes.
struct SequenceView {
    PageRun sink;
    PageRun quantized;
    PageRun recent;
    std::int64_t length = 0;                  ///< tokens appended so far; the next position
    std::span<const KeyTransform> transforms; ///< one per KV head; empty: identity
    CentreRun centres;
};

} // namespace innerkv
