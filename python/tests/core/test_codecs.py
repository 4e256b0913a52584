# SPDX-License-Identifier: Apache-2.0
"""Codecs against vectors of the InnerQ authors' code, and pages against a decoder written from format.h."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import innerkv
from innerkv import _core

ROOT = Path(__file__).resolve().parents[3]


def golden_folder():
    return Path(os.environ.get("INNERKV_GOLDEN") or ROOT / "tests" / "data" / "golden")


def golden_cases():
    return [case for file in sorted(golden_folder().glob("*.json"))
            for case in json.loads(file.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("case", golden_cases(), ids=lambda case: case["name"])
def test_golden_vectors(case):
    shape, axis = case["shape"], 1 if case["axis"] == "channel" else 0
    x = np.array(case["input_f16_bits"], np.uint16).view(np.float16).reshape(shape)
    result = innerkv.quantize(x, case["bits"], case["mode"], axis, unrounded=True,
                              hybrid_asymmetric_bits=case.get("asymmetric_bits", 0))
    expected = np.array(case["dequantized"], np.float32).reshape(shape)
    step = np.repeat(result.scale, 32, axis=axis)
    if case["mode"] == "hybrid":
        chosen = np.array(case["symmetric_chosen"]).reshape(result.scale.shape) == 1
        np.testing.assert_array_equal(~result.asymmetric, chosen)
        same = np.ones(shape, bool)
    else:
        np.testing.assert_array_equal(result.scale.ravel(), np.array(case["scales"], np.float32))
        bias = 0 if case["mode"] == "asymmetric" else result.bias
        codes = result.codes.astype(int) - bias
        same = codes == np.array(case["codes"]).reshape(shape)
        if case["mode"] == "asymmetric":
            np.testing.assert_array_equal(result.zero_point.ravel(),
                                          np.array(case["zero_points"], np.float32))
    # The authors multiply by the reciprocal of a scale in places, which moves a value on a boundary over it.
    assert (~same).sum() <= x.size // 1000
    difference = np.abs(innerkv.dequantize(result) - expected)
    assert (difference[same] <= 1e-6 * step[same]).all()
    assert (difference[~same] <= 1.001 * step[~same]).all()


def test_the_cases_are_there():
    assert len(golden_cases()) >= 6


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("codec", ["symmetric", "asymmetric"])
def test_definition(rng, codec, bits):
    """As include/innerkv/codec.h writes it, in numpy."""
    x = rng.standard_normal((50, 32)).astype(np.float32) + 0.3
    if codec == "symmetric":
        most = 2 ** (bits - 1) - 1
        scale = (np.abs(x).max(1, keepdims=True) / np.float32(most)).astype(np.float16)
        scale = scale.astype(np.float32)
        expected = scale * np.clip(np.rint(x / scale), -most, most)
    else:
        most = 2**bits - 1
        zero = x.min(1, keepdims=True).astype(np.float16).astype(np.float32)
        scale = (x.max(1, keepdims=True) - zero) / np.float32(most)
        scale = scale.astype(np.float16).astype(np.float32)
        expected = scale * np.clip(np.rint((x - zero) / scale), 0, most) + zero
    result = innerkv.dequantize(innerkv.quantize(x, bits, codec))
    np.testing.assert_array_equal(result, expected)


def test_affine_has_less_error_than_symmetric(rng):
    x = rng.standard_normal((2000, 32)).astype(np.float32)
    for bits, share in ((4, 0.65), (3, 0.48), (2, 0.25)):
        error = [np.square(innerkv.dequantize(innerkv.quantize(x, bits, codec)) - x).sum()
                 for codec in ("affine", "symmetric")]
        assert error[0] < share * error[1]


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_axes(rng, axis):
    x = rng.standard_normal((32, 64, 96)).astype(np.float32)
    result = innerkv.quantize(x, 4, axis=axis)
    shape = list(x.shape)
    shape[axis] //= 32
    assert result.scale.shape == tuple(shape) and result.codes.shape == x.shape
    whole = innerkv.dequantize(result)
    one = np.take(x, [5], axis=(axis + 1) % 3)
    np.testing.assert_array_equal(np.take(whole, [5], axis=(axis + 1) % 3),
                                  innerkv.dequantize(innerkv.quantize(one, 4, axis=axis)))
    assert np.abs(whole - x).max() < 0.5


def test_arrays_that_do_not_fit():
    """The module itself does not write beyond what it is given."""
    values, codes = np.zeros((3, 32), np.float32), np.zeros((3, 32), np.uint8)
    scale, zero, marks = np.zeros(3, np.float32), np.zeros(3, np.float32), np.zeros(3, bool)
    good = [values, codes, scale, zero, marks]
    innerkv._core.quantize("affine", 3, 0, False, *good)
    for place, short in enumerate((values[:, :31].copy(), codes[:2], scale[:2], zero[:2], marks[:2])):
        arrays = [*good[:place], short, *good[place + 1 :]]
        with pytest.raises(ValueError, match="of .groups, 32."):
            innerkv._core.quantize("affine", 3, 0, False, *arrays)


def test_what_quantize_refuses():
    x = np.ones((4, 32), np.float32)
    for text, arguments, options in [
        ("axis -1 .*multiple of 32", (x[:, :31],), {}),
        ('codec "nf4"; supported are', (x, 4, "nf4"), {}),
        ("5 bits; supported are", (x, 5, "symmetric"), {}),
        ("8 bits; supported are", (x, 8, "affine"), {}),
        ("leave unrounded out", (x,), {"unrounded": True}),
        ("finite", (x * np.nan,), {}),
        ("65504", (x * 1e5,), {}),
    ]:
        with pytest.raises(ValueError, match=text):
            innerkv.quantize(*arguments, **options)


def codes_of_block(block, bits):
    """[tile, row, element] of a block's packed codes, by the table in include/innerkv/format.h."""
    words = block[: 256 * bits].reshape(-1, 16, 4)  # word, row, byte: element 4k + byte
    codes = np.zeros((4, 16, 8, 4), np.uint8)  # tile, row, quad, byte
    for quad in range(8):
        for tile in range(4):
            if bits == 8:
                field = words[4 * quad + tile]
            elif bits == 4:
                field = words[2 * quad + tile // 2] >> (4 * (tile % 2)) & 15
            elif bits == 2:
                field = words[quad] >> (2 * tile) & 3
            else:
                pair, odd = divmod(quad, 2)
                e, c, o = words[3 * pair + odd], words[3 * pair + 2], 4 * odd
                field = [e & 7, e >> 3 & 7, c >> o & 7,
                         (e >> 6 & 3) << 1 | (c >> (o + 3) & 1)][tile]
            codes[tile, :, quad] = field
    return codes.reshape(4, 16, 32)


def block_values(block, codec, bits):
    """[tile, row, element] of a block as numbers."""
    codes = codes_of_block(block, bits).astype(np.float32)
    rest = block[256 * bits :]
    if codec == "affine":
        scale = (rest[:64].astype(np.uint16) << 7).view(np.float16)
        zero = rest[64:128].view(np.int8)
        offset = zero.astype(np.float32) / 8 - (2**bits - 1) / 2
    else:
        scale = np.ascontiguousarray(rest[:128]).view(np.float16)
        offset = np.full(64, -(2 ** (bits - 1)), np.float32)
    scale, offset = (array.astype(np.float32).reshape(4, 16, 1) for array in (scale, offset))
    return scale * (codes + offset)


@pytest.mark.parametrize("head_dim", [64, 128, 192])
@pytest.mark.parametrize("preset", [p for p in innerkv.presets()
                                    if {p.k_codec, p.v_codec} <= {"affine", "symmetric"}],
                         ids=lambda preset: preset.name)
def test_bytes_of_a_page(rng, preset, head_dim):
    k, v = (rng.standard_normal((32, head_dim)).astype(np.float32) for _ in range(2))
    page = innerkv.quantize_page(k, v, preset.name)
    got_k, got_v = innerkv.dequantize_page(page, head_dim, preset.name)
    for array, got, codec, bits in ((k, got_k, preset.k_codec, preset.k_bits),
                                    (v, got_v, preset.v_codec, preset.v_bits)):
        size = 256 * bits + 128
        blocks, page = np.split(page, [size * head_dim // 64])
        expected = np.empty((32, head_dim), np.float32)
        for b, block in enumerate(blocks.reshape(-1, size)):
            values = block_values(block, codec, bits)
            channels = expected[:, 64 * b : 64 * b + 64]
            for tile in range(4):
                if array is k:  # rows are tokens, elements channels
                    first_token, first_channel = 16 * (tile % 2), 32 * (tile // 2)
                    channels[first_token : first_token + 16,
                             first_channel : first_channel + 32] = values[tile]
                else:
                    channels[:, 16 * tile : 16 * tile + 16] = values[tile].T
        np.testing.assert_array_equal(got, expected)
        axis = 1 if array is k else 0
        np.testing.assert_array_equal(
            got, innerkv.dequantize(innerkv.quantize(array, bits, codec, axis)))
    assert page.size == 0


def test_what_pages_refuse(rng):
    k = rng.standard_normal((32, 64)).astype(np.float32)
    with pytest.raises(ValueError, match=r"\[32, head_dim\]"):
        innerkv.quantize_page(k[:31], k[:31])
    with pytest.raises(ValueError, match="head dimension 65"):
        innerkv.quantize_page(k[:, :1].repeat(65, 1), k[:, :1].repeat(65, 1))
    with pytest.raises(ValueError, match="1792 bytes; these are 10"):
        innerkv.dequantize_page(np.zeros(10, np.uint8), 64)
    page = innerkv.quantize_page(k, k)
    for shapes in (((31, 64), (32, 64)), ((32, 64), (31, 64)), ((32, 64), (32, 128))):
        with pytest.raises(ValueError, match=r"k and v of \[32, head_dim\]"):
            _core.from_page("base", False, page, *(np.empty(shape, np.float32) for shape in shapes))
