// SPDX-License-Identifier: Apache-2.0
// What every instruction set implements, and the parameters it gets. Plain data only: translation
// units with instruction-set flags include this header, so nothing in it may emit code.
#pragma once

#include <cstddef>
#include <cstdint>

namespace innerkv::cpu {

/// Rows (query tokens x query heads of one KV head) that one call handles; longer chunks come in
/// several calls. Also the lanes of the widest register, so that one number per row is one register.
inline constexpr int kMaxRows = 16;
inline constexpr int kMaxDim = 256; ///< largest padded head dimension
inline constexpr int kMaxGroups = kMaxDim / 32;

/// Logits are in units of log2: scale and log2(e) are folded into the query. Pages of one KV head, the
/// rows that attend to them, and the running state of their softmax.
struct Walk {
    const std::byte* const* pages; ///< [page_count]
    std::size_t head_offset;       ///< bytes from pages[i] to the KV head's page
    int page_count;
    int rows;                          ///< 1..kMaxRows
    std::int64_t first_token;          ///< position of the first token of pages[0]
    const std::int64_t* visible_begin; ///< [rows], first position a row sees
    const std::int64_t* visible_end;   ///< [rows], one past the last; memory beyond is not used
    float soft_cap;                    ///< in units of log2; 0: off
    int out_stride;                    ///< floats between rows of `out`
    float* out;       ///< [rows][out_stride], sum of weight * value; 64-byte aligned
    float* reference; ///< [kMaxRows], logit whose weight is 1; -inf: no token yet
    float* weight;    ///< [kMaxRows], sum of weights
};

/// One side, K or V, of a quantized page (innerkv/format.h has the layout).
struct Side {
    int bits;
    bool asymmetric;        ///< every group has a zero-point
    bool affine;            ///< asymmetric, with scales and zero-points of one byte
    bool hybrid;            ///< groups whose scale has its sign bit set have one
    std::size_t offset;     ///< bytes from the page's start to block 0
    std::size_t code_bytes; ///< of a block: 64 scales follow, then 64 zero-points if there are any
    std::size_t block_bytes;
};

/// Integer arithmetic over quantized pages.
struct QuantizedParams {
    Walk walk;
    int blocks; ///< of 64 channels
    Side k;
    Side v;
    const std::int8_t* q_codes; ///< [rows][64 * blocks], 64-byte aligned
    const float* q_scales;      ///< [2 * blocks][kMaxRows], per 32 channels
    const std::int32_t* q_sums; ///< [2 * blocks][kMaxRows], of q_codes
    /// [epochs][kMaxRows], added to every logit of a row; page i is of epoch
    /// (first_page + i) / epoch_pages.
    const float* logit_offsets;
    int epoch_pages;
    int first_page;
};

/// fp32 arithmetic over pages of dense rows: K [32][dim], then V [32][dim].
struct DenseParams {
    Walk walk;
    int dim;                   ///< a multiple of 16
    const float* q;            ///< [rows][kMaxDim], 64-byte aligned
    const float* logit_offset; ///< [kMaxRows]
};

/// Products of queries with the centres of one KV head.
struct CentreParams {
    int rows;
    int dim;                         ///< a multiple of 16
    const float* q;                  ///< [rows][kMaxDim], finite, 64-byte aligned
    const std::byte* const* centres; ///< [count], fp16 [dim] at `offset`
    std::size_t offset;
    int count;
    float* logits; ///< [count][kMaxRows]
};

/// Queries to int8 with a scale per 32 channels.
struct QuantizeQueryParams {
    int rows;
    int blocks;
    float logit_scale;    ///< folded into q_scales
    const float* q;       ///< [rows][kMaxDim], finite
    std::int8_t* q_codes; ///< as in QuantizedParams
    float* q_scales;
    std::int32_t* q_sums;
};

/// One instruction set.
struct Kernel {
    const char* name;
    void (*quantize_query)(const QuantizeQueryParams&);
    void (*centre_logits)(const CentreParams&);
    void (*attend_quantized)(const QuantizedParams&);
    void (*attend_f16)(const DenseParams&);
    void (*attend_f32)(const DenseParams&);
};

} // namespace innerkv::cpu
