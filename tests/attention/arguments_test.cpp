// SPDX-License-Identifier: Apache-2.0
// Arguments that are refused, each with a message that names the fault.
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <ostream>

#include "fixture.h"
#include "innerkv/error.h"

namespace innerkv::test {
namespace {

struct Call {
    AttentionShape shape;
    QueryBlock block;
    SequenceView sequence;
    AttentionOptions options;
};

/// One epoch, its centre any bytes that are there.
void give_centre(Call& c, int epoch_pages, int first_page) {
    static const std::byte* centres[1];
    centres[0] = c.sequence.quantized.pages[0];
    c.sequence.centres = {centres, epoch_pages, first_page};
}

struct Fault {
    const char* name;
    const char* message; ///< a part of it
    std::function<void(Call&)> make;
};
void PrintTo(const Fault& tested, std::ostream* out) { *out << tested.name; }

constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();

const Fault kFaults[] = {
    {"HeadDim", "head dimension 72", [](Call& c) { c.shape.format.head_dim = 72; }},
    {"Bits", "5 bits", [](Call& c) { c.shape.format.k.bits = 5; }},
    {"HalfQuantized", "one of K and V", [](Call& c) { c.shape.format.v = kF16; }},
    {"NoQueryHeads", "0 query heads", [](Call& c) { c.shape.q_heads = 0; }},
    {"NoKvHeads", "on 0 KV heads", [](Call& c) { c.shape.kv_heads = 0; }},
    {"NotDivisible", "4 query heads on 3 KV heads", [](Call& c) { c.shape.kv_heads = 3; }},
    {"Scale", "scale", [](Call& c) { c.shape.scale = -1.0f; }},
    {"ScaleNan", "scale", [](Call& c) { c.shape.scale = std::numeric_limits<float>::quiet_NaN(); }},
    {"SoftCap", "soft cap",
     [](Call& c) { c.shape.soft_cap = std::numeric_limits<float>::infinity(); }},
    {"Window", "sliding window -1", [](Call& c) { c.shape.sliding_window = -1; }},
    {"Threads", "0 threads", [](Call& c) { c.options.threads = 0; }},
    {"NoSequence", "block 0: no sequence", [](Call& c) { c.block.sequence = nullptr; }},
    {"NoTokens", "block 0: 0 query tokens", [](Call& c) { c.block.tokens = 0; }},
    {"NullQuery", "q or out is null", [](Call& c) { c.block.q = nullptr; }},
    {"NullOut", "q or out is null", [](Call& c) { c.block.out = nullptr; }},
    {"Position", "first position is -3", [](Call& c) { c.block.first_position = -3; }},
    {"QueryHeadStride", "q_head_stride is 63", [](Call& c) { c.block.q_head_stride = 63; }},
    {"QueryTokenStride", "q_token_stride is 0", [](Call& c) { c.block.q_token_stride = 0; }},
    {"OutHeadStride", "out_head_stride is 0", [](Call& c) { c.block.out_head_stride = 0; }},
    {"OutTokenStride", "out_token_stride is 1", [](Call& c) { c.block.out_token_stride = 1; }},
    {"TooManyTokens", "sink has 33 tokens on 1 pages",
     [](Call& c) { c.sequence.sink.tokens = 33; }},
    {"NegativeTokens", "recent run has -1 tokens", [](Call& c) { c.sequence.recent.tokens = -1; }},
    {"NegativeFirst", "sink begins at token -32",
     [](Call& c) { c.sequence.sink.first_token = -32; }},
    {"Overlap", "quantized run begins at token 31",
     [](Call& c) { c.sequence.quantized.first_token = 31; }},
    {"Length", "recent run of 96 tokens from token 96 on leaves a sequence of length 191",
     [](Call& c) { c.sequence.length = 191; }},
    {"FirstTokenBeyondAll", "recent run of 96 tokens from token 9223372036854775797",
     [](Call& c) { c.sequence.recent.first_token = kMost - 10; }},
    {"LengthBeyondAll", "length is 9223372036854775807",
     [](Call& c) { c.sequence.length = kMost; }},
    {"LengthNegative", "length is -1", [](Call& c) { c.sequence.length = -1; }},
    {"PositionBeyondAll", "first position is 9223372036854775807",
     [](Call& c) { c.block.first_position = kMost; }},
    {"TooManyRows", "2^30 rows", [](Call& c) { c.block.tokens = 1 << 29; }},
    {"TooManyThreads", "2147483647 threads",
     [](Call& c) { c.options.threads = std::numeric_limits<int>::max(); }},
    {"HeadStride", "multiples of 64", [](Call& c) { c.sequence.recent.head_stride += 32; }},
    {"HeadsOverlap", "quantized run has a head stride of 1728 bytes, less than a page of 1792",
     [](Call& c) { c.sequence.quantized.head_stride = 1728; }},
    {"QuantizedRunOfF16", "the format is f16",
     [](Call& c) { c.shape.format.k = c.shape.format.v = kF16; }},
    {"Transforms", "1 key transforms for 2 KV heads",
     [](Call& c) {
         static const KeyTransform transform;
         c.sequence.transforms = {&transform, 1};
     }},
    {"CentresTooFew", "1 centres for epochs of 1 pages and a quantized run of 2 from page 0 on",
     [](Call& c) { give_centre(c, 1, 0); }},
    {"CentresBeginBeyondAnEpoch", "epochs of 4 pages and the run begins at page 4",
     [](Call& c) { give_centre(c, 4, 4); }},
    {"EpochsOfNoPages", "epochs of 0 pages", [](Call& c) { give_centre(c, 0, 0); }},
    {"NullCentre", "a centre is null",
     [](Call& c) {
         static const std::byte* const centres[] = {nullptr};
         c.sequence.centres = {centres, 8, 0};
     }},
    {"OddCentre", "not aligned to its fp16 elements",
     [](Call& c) {
         static const std::byte* const centres[] = {c.sequence.quantized.pages[0] + 1};
         c.sequence.centres = {centres, 8, 0};
     }},
    {"TwoCentres", "besides those of the epochs",
     [](Call& c) {
         static const float centre[64] = {};
         static const KeyTransform transforms[2] = {{nullptr, centre}, {}};
         give_centre(c, 8, 0);
         c.sequence.transforms = transforms;
     }},
    {"NullPage", "quantized run has a null page",
     [](Call& c) {
         static const std::byte* const pages[2] = {};
         c.sequence.quantized.pages = pages;
     }},
    {"UnalignedPage", "multiples of 64",
     [](Call& c) {
         static const std::byte* pages[2];
         for (int i = 0; i < 2; ++i) pages[i] = c.sequence.quantized.pages[0] + 16;
         c.sequence.quantized.pages = pages;
     }},
};

class Arguments : public testing::TestWithParam<Fault> {};

TEST_P(Arguments, AreRefused) {
    Batch batch(shape_of(find_preset("base").format(64), 4, 2));
    SequenceSpec spec;
    spec.quantized = 64;
    batch.add(spec, 2);
    Call call{batch.shape, batch.blocks[0], batch.sequences[0].view(), {}};
    call.block.sequence = &call.sequence;
    EXPECT_NO_THROW(Attention(call.shape, {&call.block, 1}, call.options));
    GetParam().make(call);
    try {
        const Attention attention(call.shape, {&call.block, 1}, call.options);
        FAIL() << "accepted";
    } catch (const InvalidArgument& error) {
        EXPECT_NE(std::string(error.what()).find(GetParam().message), std::string::npos)
            << error.what();
    }
    if (call.options.threads != 1) return; // the reference has no options
    EXPECT_THROW(attention_reference(call.shape, {&call.block, 1}), InvalidArgument);
}

INSTANTIATE_TEST_SUITE_P(Each, Arguments, testing::ValuesIn(kFaults),
                         [](const auto& test) { return test.param.name; });

TEST(MergeArguments, DifferentHeadDimensionsAreRefused) {
    std::vector<float> state(64);
    const std::vector<float> other(80);
    float log_sum_exp = 0.0f;
    EXPECT_THROW(merge_attention(state, log_sum_exp, other, 0.0f), InvalidArgument);
}

} // namespace
} // namespace innerkv::test
