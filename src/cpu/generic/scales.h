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

/// Scales of one side's tiles.
struct ScaleReader {
    int bits;
    const float* units; ///< what a tile's scales are multiplied by: its position
};

struct TileScales {
    Floats scale;
    Floats zero;
};

/// `scales`: those of tile 0. The zero-points lie behind the block's 64 scales.
template <Zeros zeros>
inline TileScales load_scales(const ScaleReader& reader, const std::byte* scales, int tile) {
    TileScales out{};
    Floats scale{};
    if (zeros == Zeros::steps) {
        const int middle = -4 * ((1 << reader.bits) - 1);
        scale = load_scale_bytes(scales + 16 * tile);
        out.zero =
            to_floats(add_ints(load_signed_bytes(scales + 64 + 16 * tile), broadcast_int(middle)));
    } else {
        scale = load_f16(scales + 32 * tile);
        if (zeros != Zeros::none) out.zero = load_f16(scales + 128 + 32 * tile);
    }
    if (zeros == Zeros::marked) {
        const Floats sign = scale;
        scale = absolute(scale);
        const Floats level_zero = broadcast(static_cast<float>(1 << (reader.bits - 1)));
        out.zero =
            select_negative(sign, fused_multiply_add(scale, level_zero, out.zero), broadcast(0.0f));
    }
    out.scale = multiply(scale, broadcast(reader.units[tile]));
    return out;
}
