// SPDX-License-Identifier: Apache-2.0
// Scales and zero-points of a tile, as its sums need them. Included inside an instruction set's namespace,
// after expand.h.

/// How a codec's zero-points are added to scale * (sum of expanded codes - bias).
enum class Zeros {
    none,
    values, ///< what a code 0 stands for, times the sum of the other side
    marked, ///< likewise, where the scale has its sign bit set
    steps, ///< eighths of a step of the scale, from the middle of the codes: inside the parentheses
};

inline Zeros zeros_of(const Side& side) {
    if (side.affine) return Zeros::steps;
    if (side.hybrid) return Zeros::marked;
    return side.asymmetric ? Zeros::values : Zeros::none;
}

struct TileScales {
    Floats scale;
    Floats zero;
};

/// Of codes of so many bits; `scales`: those of tile 0. The zero-points lie behind the block's 64 scales.
template <Zeros zeros>
inline TileScales load_scales(int bits, const std::byte* scales, int tile) {
    TileScales out{};
    if (zeros == Zeros::steps) {
        const int middle = -4 * ((1 << bits) - 1);
        out.scale = load_scale_bytes(scales + 16 * tile);
        out.zero =
            to_floats(add_ints(load_signed_bytes(scales + 64 + 16 * tile), broadcast_int(middle)));
    } else {
        out.scale = load_f16(scales + 32 * tile);
        if (zeros != Zeros::none) out.zero = load_f16(scales + 128 + 32 * tile);
    }
    if (zeros == Zeros::marked) {
        const Floats sign = out.scale;
        out.scale = absolute(sign);
        const Floats level_zero = broadcast(static_cast<float>(1 << (bits - 1)));
        out.zero = select_negative(sign, fused_multiply_add(out.scale, level_zero, out.zero),
                                   broadcast(0.0f));
    }
    return out;
}
