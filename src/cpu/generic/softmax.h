// SPDX-License-Identifier: Apache-2.0
// Logits of one page to probabilities. Included inside an instruction set's namespace, after its
// primitives. Logits are in units of log2 throughout.

constexpr float kInfinity = __builtin_inff();
constexpr int kTokens = 32; // of a page

/// A row's reference moves only when a logit exceeds it by this much: weights then stay below 2^16, and
/// the accumulators need rescaling once or twice a sequence instead of at every new maximum.
constexpr float kReferenceSlack = 16.0f;

/// first * x^n + ... + the last, by Horner's rule.
template <typename... Rest>
inline Floats polynomial(Floats x, float first, Rest... rest) {
    Floats sum = broadcast(first);
    ((sum = fused_multiply_add(sum, x, broadcast(rest))), ...);
    return sum;
}

/// 2^x for x <= 127, relative error 2e-7; 0 below 2^-126.
inline Floats exp2(Floats x) {
    const Floats smallest = broadcast(-126.0f);
    const Floats clamped = maximum(x, smallest);
    const Floats whole = round_even(clamped);
    const Floats f = subtract(clamped, whole);
    const Floats power =
        polynomial(f, 0.0013276472454890609f, 0.009675540961325169f, 0.05550713092088699f,
                   0.24022120237350464f, 0.6931469440460205f, 1.0000001192092896f);
    return select_less(smallest, x, scale_exponent(power, whole), broadcast(0.0f));
}

/// 255 * 2^x as uint8 for x <= 0, which larger ones count as; 0 from -32 down. The polynomial's relative
/// error, 8e-5, is the least for its degree and a twentieth of a step of the result.
inline Sums exp2_byte(Floats x) {
    const Floats clamped = minimum(maximum(x, broadcast(-32.0f)), broadcast(0.0f));
    const Floats whole = round_even(clamped);
    const Floats f = subtract(clamped, whole);
    const Floats power = polynomial(f, 14.068775177001953f, 61.86583709716797f, 176.78155517578125f,
                                    254.98165893554688f);
    return to_ints(add_exponents(power, exponent_bits(to_ints(whole))));
}

/// By Lambert's continued fraction up to 1, by the exponential beyond.
inline Floats tanh(Floats x) {
    const Floats square = multiply(x, x);
    const Floats numerator = polynomial(square, 1.0f, 378.0f, 17325.0f, 135135.0f);
    const Floats denominator = polynomial(square, 28.0f, 3150.0f, 62370.0f, 135135.0f);
    const Floats near = divide(multiply(x, numerator), denominator);

    const Floats magnitude = absolute(x);
    const Floats decay = exp2(multiply(magnitude, broadcast(-2.8853900817779268f))); // e^-2|x|
    const Floats one = broadcast(1.0f);
    const Floats far = divide(subtract(one, decay), add(one, decay));
    return select_less(magnitude, one, near, copy_sign(far, x));
}

/// Which tokens of a page rows see.
struct PageMask {
    bool all;  ///< every row sees every token
    int first; ///< tokens that any row sees: [first, last)
    int last;
    int begin[kMaxRows];
    int end[kMaxRows];
};

constexpr PageMask kWholePage{true, 0, kTokens, {}, {}};

inline int clamp_token(std::int64_t token) {
    return token < 0 ? 0 : token > kTokens ? kTokens : static_cast<int>(token);
}

inline PageMask page_mask(const Walk& walk, std::int64_t token) {
    PageMask mask;
    mask.first = kTokens;
    mask.last = 0;
    mask.all = true;
    for (int row = 0; row < walk.rows; ++row) {
        const int begin = clamp_token(walk.visible_begin[row] - token);
        const int end = clamp_token(walk.visible_end[row] - token);
        mask.begin[row] = begin;
        mask.end[row] = end;
        mask.all = mask.all && begin == 0 && end == kTokens;
        if (begin >= end) continue;
        mask.first = begin < mask.first ? begin : mask.first;
        mask.last = end > mask.last ? end : mask.last;
    }
    return mask;
}

/// Adds each row's offset to a page's logits, [rows][32], and applies cap and mask, in place.
inline void change_logits(const Walk& walk, const PageMask& mask, const float* offsets,
                          float* logits) {
    for (int row = 0; row < walk.rows; ++row, logits += kTokens) {
        Floats low = add(load(logits), broadcast(offsets[row]));
        Floats high = add(load(logits + kLanes), broadcast(offsets[row]));
        if (walk.soft_cap > 0.0f) {
            const Floats cap = broadcast(walk.soft_cap);
            low = multiply(cap, tanh(divide(low, cap)));
            high = multiply(cap, tanh(divide(high, cap)));
        }
        if (!mask.all) {
            low = keep_lanes(low, mask.begin[row], mask.end[row]);
            high = keep_lanes(high, mask.begin[row] - kLanes, mask.end[row] - kLanes);
        }
        store(low, logits);
        store(high, logits + kLanes);
    }
}

inline void rescale_row(const Walk& walk, int row, float factor) {
    float* out = walk.out + row * walk.out_stride;
    for (int channel = 0; channel < walk.out_stride; channel += kLanes)
        store(multiply(load(out + channel), broadcast(factor)), out + channel);
    walk.weight[row] *= factor;
}

/// Moves references that `tops`, a row a lane, have outgrown; tops are minus infinity for absent rows.
inline void raise_references(const Walk& walk, Floats tops) {
    const Floats old = load(walk.reference);
    const Floats limit = add(old, broadcast(kReferenceSlack));
    if (!any_less(limit, tops)) return;
    const Floats raised = select_less(limit, tops, tops, old);
    alignas(64) float factors[kMaxRows];
    alignas(64) float outgrown[kMaxRows];
    // Where no token has been seen yet the difference is minus infinity, or no number in absent rows.
    store(exp2(subtract(old, raised)), factors);
    store(select_less(limit, tops, broadcast(1.0f), broadcast(0.0f)), outgrown);
    for (int row = 0; row < walk.rows; ++row)
        if (outgrown[row] != 0.0f) rescale_row(walk, row, factors[row]);
    store(raised, walk.reference);
}
