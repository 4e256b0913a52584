// SPDX-License-Identifier: Apache-2.0
// Whole pages against the same work done group by group; padding, strides, values refused.
#include <algorithm>
#include <cstring>

#include <gtest/gtest.h>

#include "codecs.h"
#include "innerkv/error.h"

namespace innerkv::test {
namespace {

constexpr std::size_t kGuardBytes = 256;
constexpr std::byte kGuard{0xa5};

/// Rows [32][head_dim] at a stride above head_dim; everything between is NaN.
struct Rows {
    Rows(int dim, int padding)
        : head_dim(dim), stride(dim + padding),
          data(static_cast<std::size_t>(kPageTokens * stride), kNan) {}

    float& at(int token, int channel) {
        return data[static_cast<std::size_t>(token * stride + channel)];
    }
    float at(int token, int channel) const {
        return data[static_cast<std::size_t>(token * stride + channel)];
    }

    int head_dim;
    int stride;
    std::vector<float> data;
};

/// Draws along the inner dimension, so that groups have the properties the draw is named for.
void fill(Rows& rows, bool along_tokens, std::mt19937& random) {
    const int outer_count = along_tokens ? rows.head_dim : kPageTokens;
    const int inner_count = along_tokens ? kPageTokens : rows.head_dim;
    for (int outer = 0; outer < outer_count; ++outer)
        for (int first = 0; first < inner_count; first += kGroupSize) {
            const Group group = draw_group(kDraws[random() % std::size(kDraws)], random);
            for (int i = 0; i < kGroupSize && first + i < inner_count; ++i)
                (along_tokens ? rows.at(first + i, outer) : rows.at(outer, first + i)) =
                    group[static_cast<std::size_t>(i)];
        }
}

/// Format and contents of a page, with bytes around it that must stay as they are.
struct TestPage {
    TestPage(const PageFormat& page_format, unsigned seed)
        : format(page_format), k(format.head_dim, 3), v(format.head_dim, 5),
          memory(format.page_bytes() + 2 * kGuardBytes, kGuard) {
        std::mt19937 random(seed);
        fill(k, false, random);
        fill(v, true, random);
    }

    std::byte* bytes() { return memory.data() + kGuardBytes; }
    void quantize() {
        quantize_page(format, k.data.data(), k.stride, v.data.data(), v.stride, bytes());
    }
    bool guards_intact() const {
        const auto is_guard = [](std::byte byte) { return byte == kGuard; };
        return std::all_of(memory.begin(), memory.begin() + kGuardBytes, is_guard) &&
               std::all_of(memory.end() - kGuardBytes, memory.end(), is_guard);
    }

    PageFormat format;
    Rows k;
    Rows v;
    std::vector<std::byte> memory;
};

/// Group of tile t, row r of block b as the text of format.h maps them; padding is 0.
Group k_group(const Rows& k, int b, int t, int r) {
    Group group{};
    for (int i = 0; i < kGroupSize; ++i) {
        const int channel = 64 * b + 32 * (t / 2) + i;
        if (channel < k.head_dim)
            group[static_cast<std::size_t>(i)] = k.at(16 * (t % 2) + r, channel);
    }
    return group;
}

Group v_group(const Rows& v, int b, int t, int r) {
    Group group{};
    const int channel = 64 * b + 16 * t + r;
    for (int token = 0; token < kGroupSize && channel < v.head_dim; ++token)
        group[static_cast<std::size_t>(token)] = v.at(token, channel);
    return group;
}

std::vector<std::byte> page_by_groups(const TestPage& page) {
    const PageFormat& format = page.format;
    std::vector<std::byte> bytes(format.page_bytes(), std::byte{0xff});
    for (int b = 0; b < format.blocks(); ++b)
        for (int t = 0; t < kTilesPerBlock; ++t)
            for (int r = 0; r < kTileRows; ++r) {
                const auto block = static_cast<std::size_t>(b);
                store_group(format.k, bytes.data() + block * format.k.block_bytes(), t, r,
                            quantize_group(format.k, k_group(page.k, b, t, r)));
                store_group(format.v,
                            bytes.data() + format.v_offset() + block * format.v.block_bytes(), t, r,
                            quantize_group(format.v, v_group(page.v, b, t, r)));
            }
    return bytes;
}

template <class Check>
void for_each_format(Check check) {
    for (Codec k : all_codecs())
        for (Codec v : all_codecs())
            for (int head_dim : kHeadDims) {
                SCOPED_TRACE(name_of(k) + " " + name_of(v) + " " + std::to_string(head_dim));
                check(PageFormat{k, v, head_dim});
                if (testing::Test::HasFatalFailure()) return;
            }
}

TEST(Page, BytesAreThoseOfItsGroups) {
    unsigned seed = 0;
    for_each_format([&](const PageFormat& format) {
        TestPage page(format, ++seed);
        page.quantize();
        const std::vector<std::byte> expected = page_by_groups(page);
        ASSERT_EQ(std::memcmp(page.bytes(), expected.data(), expected.size()), 0);
        ASSERT_TRUE(page.guards_intact());
    });
}

TEST(Page, DequantizesToTheValuesOfItsGroups) {
    unsigned seed = 1000;
    for_each_format([&](const PageFormat& format) {
        TestPage page(format, ++seed);
        page.quantize();
        Rows k(format.head_dim, 2);
        Rows v(format.head_dim, 7);
        dequantize_page(format, page.bytes(), k.data.data(), k.stride, v.data.data(), v.stride);
        Group values;
        for (int channel = 0; channel < k.stride; ++channel)
            for (int token = 0; token < kPageTokens; ++token)
                ASSERT_EQ(std::isnan(k.at(token, channel)), channel >= format.head_dim);
        for (int channel = 0; channel < v.stride; ++channel)
            for (int token = 0; token < kPageTokens; ++token)
                ASSERT_EQ(std::isnan(v.at(token, channel)), channel >= format.head_dim);
        for (int channel = 0; channel < format.head_dim; ++channel) {
            const int b = channel / 64;
            dequantize_group(
                format.v,
                quantize_group(format.v, v_group(page.v, b, channel % 64 / 16, channel % 16)),
                values);
            for (int token = 0; token < kPageTokens; ++token)
                ASSERT_EQ(v.at(token, channel), values[static_cast<std::size_t>(token)]);
        }
        for (int token = 0; token < kPageTokens; ++token)
            for (int first = 0; first < format.head_dim; first += kGroupSize) {
                const int t = 2 * (first % 64 / 32) + token / 16;
                dequantize_group(
                    format.k, quantize_group(format.k, k_group(page.k, first / 64, t, token % 16)),
                    values);
                for (int i = 0; i < kGroupSize && first + i < format.head_dim; ++i)
                    ASSERT_EQ(k.at(token, first + i), values[static_cast<std::size_t>(i)]);
            }
    });
}

/// Padding adds nothing to any sum: it is 0 in value wherever it can be, which is everywhere but in K
/// groups with a zero-point that padding shares with channels; there the query's padding is 0.
TEST(Page, PaddingIsZero) {
    unsigned seed = 2000;
    for_each_format([&](const PageFormat& format) {
        TestPage page(format, ++seed);
        page.quantize();
        Group values;
        for (int channel = format.head_dim; channel < format.padded_dim(); ++channel) {
            const int b = channel / 64;
            const std::byte* v_block = page.bytes() + format.v_offset() +
                                       static_cast<std::size_t>(b) * format.v.block_bytes();
            dequantize_group(
                format.v, load_group(format.v, v_block, channel % 64 / 16, channel % 16), values);
            for (float value : values) ASSERT_EQ(value, 0.0f);
            const std::byte* k_block =
                page.bytes() + static_cast<std::size_t>(b) * format.k.block_bytes();
            const bool shared = channel / kGroupSize * kGroupSize < format.head_dim;
            for (int token = 0; token < kPageTokens; ++token) {
                if (shared && format.k.kind != CodecKind::symmetric) continue;
                dequantize_group(
                    format.k,
                    load_group(format.k, k_block, 2 * (channel % 64 / 32) + token / 16, token % 16),
                    values);
                ASSERT_EQ(values[static_cast<std::size_t>(channel % 32)], 0.0f);
            }
        }
    });
}

TEST(Page, F16KeepsRoundedValuesInOrder) {
    for (int head_dim : kHeadDims) {
        TestPage page({kF16, kF16, head_dim}, 3);
        page.quantize();
        ASSERT_TRUE(page.guards_intact());
        Rows k(head_dim, 2);
        Rows v(head_dim, 7);
        dequantize_page(page.format, page.bytes(), k.data.data(), k.stride, v.data.data(),
                        v.stride);
        for (int token = 0; token < kPageTokens; ++token)
            for (int channel = 0; channel < head_dim; ++channel) {
                std::uint16_t bits[2];
                const auto offset = static_cast<std::size_t>(2 * (token * head_dim + channel));
                std::memcpy(&bits[0], page.bytes() + offset, 2);
                std::memcpy(&bits[1], page.bytes() + 64 * static_cast<unsigned>(head_dim) + offset,
                            2);
                ASSERT_EQ(bits[0], f16_from_float(page.k.at(token, channel)));
                ASSERT_EQ(bits[1], f16_from_float(page.v.at(token, channel)));
                ASSERT_EQ(k.at(token, channel), float_from_f16(bits[0]));
                ASSERT_EQ(v.at(token, channel), float_from_f16(bits[1]));
            }
    }
}

TEST(Page, RefusesWhatIsNotFiniteAtEveryPosition) {
    const PageFormat formats[] = {
        {symmetric(3), hybrid(2), 80}, {asymmetric(4), symmetric(8), 64}, {kF16, kF16, 96}};
    const float bad_values[] = {kNan, kInfinity, -kInfinity, 65505.0f, -65505.0f};
    std::size_t n = 0;
    for (const PageFormat& format : formats) {
        TestPage page(format, 4);
        for (Rows* rows : {&page.k, &page.v})
            for (int token = 0; token < kPageTokens; ++token)
                for (int channel = 0; channel < format.head_dim; ++channel) {
                    const float good = rows->at(token, channel);
                    rows->at(token, channel) = bad_values[n++ % std::size(bad_values)];
                    EXPECT_THROW(page.quantize(), InvalidArgument) << token << ' ' << channel;
                    rows->at(token, channel) = good;
                }
        EXPECT_NO_THROW(page.quantize());
        EXPECT_TRUE(page.guards_intact());
    }
}

TEST(Page, RefusalNamesTheFirstBadValue) {
    TestPage page({symmetric(3), symmetric(3), 128}, 5);
    page.v.at(20, 7) = kNan;
    page.v.at(9, 101) = kInfinity;
    try {
        page.quantize();
        FAIL() << "accepted";
    } catch (const InvalidArgument& error) {
        const std::string message = error.what();
        EXPECT_NE(message.find("V of a page: token 9, channel 101 is inf"), std::string::npos)
            << message;
    }
}

TEST(Page, RefusesUnsupportedFormats) {
    std::vector<float> rows(32 * 72, 1.0f);
    std::vector<std::byte> bytes(65536);
    const PageFormat format{symmetric(3), symmetric(3), 72};
    EXPECT_THROW(quantize_page(format, rows.data(), 72, rows.data(), 72, bytes.data()),
                 InvalidArgument);
    EXPECT_THROW(dequantize_page(format, bytes.data(), rows.data(), 72, rows.data(), 72),
                 InvalidArgument);
}

/// Rows may also be laid out backwards.
TEST(Page, NegativeStrides) {
    TestPage page({symmetric(3), symmetric(2), 80}, 6);
    page.quantize();
    Rows k(80, 0);
    Rows v(80, 0);
    for (int token = 0; token < kPageTokens; ++token)
        for (int channel = 0; channel < 80; ++channel) {
            k.at(31 - token, channel) = page.k.at(token, channel);
            v.at(31 - token, channel) = page.v.at(token, channel);
        }
    std::vector<std::byte> bytes(page.format.page_bytes());
    quantize_page(page.format, &k.at(31, 0), -80, &v.at(31, 0), -80, bytes.data());
    EXPECT_EQ(std::memcmp(bytes.data(), page.bytes(), bytes.size()), 0);
}

} // namespace
} // namespace innerkv::test
