// SPDX-License-Identifier: Apache-2.0
// Logits to uint8 probabilities, a register at a time. Included inside an instruction set's namespace,
// after softmax.h.

/// Slots' logits relative to what their probabilities count from, for which 255 stands. A step is short and
/// waits for nothing but itself: the key products of later pages, which keep the multipliers busy, take one
/// between two pairs of quads each, and so hide it.
struct Probabilities {
    const float* logits; ///< [slots][32]
    const float* shifts; ///< [slots], added to logits: then none is above 0 but by rounding
    std::uint8_t* p;     ///< [slots][32]
    int next;            ///< register of logits
    int end;

    [[gnu::always_inline]] void step() {
        if (next >= end) return;
        const Floats x = add(load(logits + kLanes * next), broadcast(shifts[next / 2]));
        store_bytes(exp2_byte(x), p + kLanes * next);
        ++next;
    }
    void finish() {
        while (next < end) step();
    }
};
