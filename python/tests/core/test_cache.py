# SPDX-License-Identifier: Apache-2.0
"""innerkv.Cache on numpy arrays against attention in float64."""

import numpy as np
import pytest
from reference import attention, relative_error

import innerkv

HEAD_DIMS = (64, 80, 96, 112, 128, 192, 256)
PRESETS = [preset.name for preset in innerkv.presets()]


def codec_error(rng, name):
    """What a preset does to attention on Gaussian rows whose logits spread by 1: values err by their codec's
    error, weights by that of the keys, and int8 queries and uint8 probabilities add 0.7% (docs/kernels.md)."""
    preset = next(preset for preset in innerkv.presets() if preset.name == name)
    if preset.k_codec == "f16":
        return 5e-4
    x = rng.standard_normal((2000, 32)).astype(np.float32)
    errors = [relative_error(innerkv.dequantize(innerkv.quantize(x, bits, codec)), x)
              for codec, bits in ((preset.k_codec, preset.k_bits), (preset.v_codec, preset.v_bits))]
    return float(np.hypot(np.hypot(*errors), 0.007))


def rows(rng, tokens, heads, head_dim=64, dtype=np.float32):
    return rng.standard_normal((tokens, heads, head_dim)).astype(dtype)


def filled(rng, preset="base", tokens=700, kv_heads=2, q_heads=4, head_dim=64, chunk=96, **options):
    """A cache with one sequence in one layer, and its keys, values and queries."""
    cache = innerkv.Cache(1, kv_heads, head_dim, preset, max_tokens=4096, **options)
    sequence = cache.create()
    k, v = (rows(rng, tokens, kv_heads, head_dim) for _ in range(2))
    q = rows(rng, tokens, q_heads, head_dim)
    for first in range(0, tokens, chunk):
        part = slice(first, first + chunk)
        cache.append(0, sequence, k[part], v[part], q[part])
    return cache, sequence, k, v, q


@pytest.mark.parametrize("preset", PRESETS)
def test_attention_on_a_preset_is_near_float64(rng, preset):
    cache, sequence, k, v, q = filled(rng, preset)
    expected, sums = attention(q[-5:], k, v)
    out, log_sum_exp = cache.attend(0, sequence, q[-5:], log_sum_exp=True)
    assert out.shape == (5, 4, 64) and out.dtype == np.float32
    bound = codec_error(rng, preset)
    assert relative_error(out, expected) < 1.1 * bound
    if preset != "f16":  # about four fifths of the tokens are quantized
        assert relative_error(out, expected) > 0.6 * bound
    assert np.abs(log_sum_exp - sums).max() < bound


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_every_head_dimension(rng, head_dim):
    cache, sequence, k, v, q = filled(rng, "k8v8", tokens=420, head_dim=head_dim)
    assert relative_error(cache.attend(0, sequence, q[-1:]), attention(q[-1:], k, v)[0]) < 0.02


def test_base_has_quantized_pages_and_takes_fewer_bytes(rng):
    cache, *_ = filled(rng, "base", tokens=2000)
    plain, *_ = filled(rng, "f16", tokens=2000)
    assert cache.usage().quantized_pages > 40
    assert plain.usage().quantized_pages == 0
    assert cache.nbytes * 2.5 < plain.nbytes


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_types_of_rows(rng, dtype):
    cache = innerkv.Cache(1, 2, 64, "f16")
    sequence = cache.create()
    k, v, q = (rows(rng, 40, heads, dtype=dtype) for heads in (2, 2, 6))
    cache.append(0, sequence, k, v)
    out = cache.attend(0, sequence, q)
    assert out.dtype == dtype
    assert relative_error(out, attention(q, k, v)[0]) < 1e-3


def test_scale_soft_cap_and_first_position(rng):
    cache, sequence, k, v, q = filled(rng, "f16", tokens=90)
    out, sums = cache.attend(0, sequence, 3 * q[:7], scale=0.3, soft_cap=2.0, first_positions=[50],
                             log_sum_exp=True)
    expected, expected_sums = attention(3 * q[:7], k, v, 50, 0.3, 2.0)
    assert relative_error(out, expected) < 5e-4
    assert np.abs(sums - expected_sums).max() < 1e-3


def test_layers_are_separate(rng):
    cache = innerkv.Cache(3, 1, 64, "f16")
    sequence = cache.create()
    kept = []
    for layer in range(3):
        kept.append([rows(rng, 33, 1) for _ in range(2)])
        cache.append(layer, sequence, *kept[-1])
    q = rows(rng, 1, 1)
    for layer, (k, v) in enumerate(kept):
        out = cache.attend(layer, sequence, q)
        assert relative_error(out, attention(q, k, v)[0]) < 5e-4


def test_bits_by_layer(rng):
    """Each layer is what it is in a cache whose preset has its bits; bytes are their sum, and those of the plan."""
    presets = {"small": (3, 2), "k4v4": (4, 4), "base": (3, 3)}
    bits = list(presets.values())
    cache = innerkv.Cache(3, 2, 64, max_tokens=1000, layer_bits=bits)
    sequence = cache.create()
    k, v, q = rows(rng, 600, 2), rows(rng, 600, 2), rows(rng, 600, 4)
    sums = np.zeros(2, np.int64)
    for layer, preset in enumerate(presets):
        uniform = innerkv.Cache(1, 2, 64, preset, max_tokens=1000)
        same = uniform.create()
        for first in range(0, 600, 100):
            part = slice(first, first + 100)
            cache.append(layer, sequence, k[part], v[part], q[part])
            uniform.append(0, same, k[part], v[part], q[part])
        assert np.array_equal(cache.pages(layer, sequence), uniform.pages(0, same))
        assert np.array_equal(cache.attend(layer, sequence, q[-1:]), uniform.attend(0, same, q[-1:]))
        sums += uniform.nbytes, uniform.usage().quantized_pages
    assert (cache.nbytes, cache.usage().quantized_pages) == tuple(sums)
    one_by_one = innerkv.Cache(3, 2, 64, max_tokens=1000, layer_bits=bits)
    sequence = one_by_one.create()
    for token in range(600):
        for layer in range(3):
            part = slice(token, token + 1)
            one_by_one.append(layer, sequence, k[part], v[part], q[part])
    planned = innerkv.plan(3, 2, 64, context=600, layer_bits=bits)
    assert one_by_one.nbytes == planned.sequence_bytes
    assert planned.sequence_bytes < innerkv.plan(3, 2, 64, "k4v4", context=600).sequence_bytes


def test_pages_do_not_depend_on_how_a_prompt_was_cut(rng):
    k, v, q = (rows(rng, 608, heads) for heads in (2, 2, 4))
    outs = []
    for chunk in (32, 64, 1):
        cache = innerkv.Cache(1, 2, 64, "base")
        sequence = cache.create()
        for first in range(0, 608, chunk):
            part = slice(first, first + chunk)
            cache.append(0, sequence, k[part], v[part], q[part])
        cache.settle(sequence)
        outs.append(cache.attend(0, sequence, q[-1:], exact=True))
    # The rest of the recent window may be cut elsewhere: fp32 sums in another order.
    assert relative_error(outs[1], outs[0]) < 1e-5
    assert relative_error(outs[2], outs[0]) < 1e-5


def test_a_batch_with_padding_gives_what_each_sequence_gives_alone(rng):
    lengths = (300, 411, 17)
    longest = max(lengths)
    k, v, q = (rng.standard_normal((3, longest, heads, 64)).astype(np.float32) for heads in (2, 2, 4))
    spans = [(longest - length, longest) for length in lengths]
    for array in (k, v, q):
        for i, (first, _) in enumerate(spans):
            array[i, :first] = np.nan  # padding is not read
    batch = innerkv.Cache(1, 2, 64, "k4v4", max_sequences=3)
    sequences = [batch.create() for _ in lengths]
    batch.append(0, sequences, k, v, q, spans=spans)
    for sequence in sequences:
        batch.settle(sequence)
    out, sums = batch.attend(0, sequences, q, spans=spans, log_sum_exp=True)
    for i, (first, last) in enumerate(spans):
        alone = innerkv.Cache(1, 2, 64, "k4v4")
        sequence = alone.create()
        alone.append(0, sequence, k[i, first:], v[i, first:], q[i, first:])
        alone.settle(sequence)
        expected, expected_sums = alone.attend(0, sequence, q[i, first:last], log_sum_exp=True)
        assert relative_error(out[i, first:last], expected) < 1e-5
        np.testing.assert_allclose(sums[i, first:last], expected_sums, atol=1e-4)
        assert not out[i, :first].any()
        assert np.isneginf(sums[i, :first]).all()


def test_heads_before_tokens_in_memory(rng):
    """As transformers has them: [batch, heads, tokens, channels], seen transposed."""
    k, v, q = (rng.standard_normal((2, heads, 50, 64)).astype(np.float32) for heads in (2, 2, 4))
    cache = innerkv.Cache(1, 2, 64, "f16", max_sequences=2)
    sequences = [cache.create(), cache.create()]
    cache.append(0, sequences, *(array.transpose(0, 2, 1, 3) for array in (k, v)))
    out = cache.attend(0, sequences, q.transpose(0, 2, 1, 3))
    for i in range(2):
        expected, _ = attention(*(array[i].transpose(1, 0, 2) for array in (q, k, v)))
        assert relative_error(out[i], expected) < 5e-4


def test_sliding_window(rng):
    cache, sequence, k, v, q = filled(rng, "f16", tokens=900, chunk=100, sliding_window=[200])
    expected, _ = attention(q[-3:], k, v, sliding_window=200)
    assert relative_error(cache.attend(0, sequence, q[-3:]), expected) < 5e-4
    assert cache.length(sequence) == 900
    assert cache.usage().f16_pages < 14  # 900 tokens would be 29
    narrower = cache.attend(0, sequence, q[-3:], sliding_window=50)
    assert relative_error(narrower, attention(q[-3:], k, v, sliding_window=50)[0]) < 5e-4


def test_truncate_and_append_again(rng):
    cache, sequence, k, v, q = filled(rng, "base", tokens=640, chunk=32)
    cache.truncate(sequence, 608)
    assert cache.length(sequence) == 608
    expected, _ = attention(q[607:608], k[:608], v[:608])
    bound = 1.3 * codec_error(rng, "base")  # of one row instead of many
    assert relative_error(cache.attend(0, sequence, q[607:608]), expected) < bound
    cache.append(0, sequence, k[608:], v[608:], q[608:])
    assert cache.length(sequence) == 640
    again, _ = attention(q[-1:], k, v)
    assert relative_error(cache.attend(0, sequence, q[-1:]), again) < bound


def test_fork_shares_and_then_parts(rng):
    cache, parent, k, v, q = filled(rng, "k8v8", tokens=640, max_sequences=2)
    before = cache.nbytes
    child = cache.fork(parent)
    assert cache.nbytes < 1.2 * before
    more = rows(rng, 5, 2)
    cache.append(0, child, more, more)
    assert (cache.length(parent), cache.length(child)) == (640, 645)
    own, _ = attention(q[-1:], k, v)
    longer, _ = attention(q[-1:], np.concatenate([k, more]), np.concatenate([v, more]))
    assert relative_error(cache.attend(0, parent, q[-1:]), own) < 0.01
    assert relative_error(cache.attend(0, child, q[-1:]), longer) < 0.01
    cache.remove(parent)
    assert relative_error(cache.attend(0, child, q[-1:]), longer) < 0.01
    cache.remove(child)
    assert cache.nbytes == 0


def test_queries_balance_keys(rng):
    """Keys that are large where queries are small: the norm that sees both makes less error."""
    factor = np.where(np.arange(64) % 8 == 0, 30.0, 1.0).astype(np.float32)
    k, v, q = (rows(rng, 700, heads) for heads in (1, 1, 4))
    errors = []
    for queries in (q / factor, None):
        cache = innerkv.Cache(1, 1, 64, "k4v4")
        sequence = cache.create()
        for first in range(0, 700, 100):
            part = slice(first, first + 100)
            cache.append(0, sequence, k[part] * factor, v[part],
                         None if queries is None else queries[part])
        out = cache.attend(0, sequence, q[-1:] / factor)
        errors.append(relative_error(out, attention(q[-1:], k, v)[0]))
    assert errors[0] < 0.09
    assert errors[0] < errors[1]


@pytest.mark.parametrize("isa", innerkv.available_isas())
def test_instruction_sets_agree(rng, isa):
    cache, sequence, _, _, q = filled(rng, "base")
    chosen = cache.attend(0, sequence, q[-1:], isa=isa)
    assert relative_error(chosen, cache.attend(0, sequence, q[-1:], isa="scalar")) < 1e-5


def test_exact_arithmetic_is_near_the_integer_one(rng):
    cache, sequence, _, _, q = filled(rng, "base")
    difference = relative_error(cache.attend(0, sequence, q[-8:]),
                                cache.attend(0, sequence, q[-8:], exact=True))
    assert 0 < difference < 0.015


def test_the_papers_codecs(rng):
    ours, sequence, k, v, q = filled(rng, "base")
    paper, other, *_ = filled(np.random.default_rng(7), "base", paper=True)
    expected, _ = attention(q[-20:], k, v)
    own = relative_error(ours.attend(0, sequence, q[-20:]), expected)
    theirs = relative_error(paper.attend(0, other, q[-20:]), expected)
    assert own < theirs < 0.4


def test_exact_prefill_quantizes_when_told(rng):
    cache, sequence, *_ = filled(rng, "base", exact_prefill=True)
    assert cache.usage().quantized_pages == 0
    cache.settle(sequence)
    assert cache.usage().quantized_pages > 10


def test_numbers_of_numpy(rng):
    """Sequences and lengths, as indexing an array gives them."""
    cache = innerkv.Cache(1, 2, 64, "f16", max_sequences=2, sliding_window=np.int64(0))
    first, second = np.array([cache.create(), cache.create()])
    k, v, q = (rows(rng, 40, heads) for heads in (2, 2, 4))
    cache.append(0, first, k, v)
    cache.append(0, [first, second], np.stack([k, k]), np.stack([v, v]))
    assert cache.attend(0, first, q).shape == q.shape
    cache.truncate(first, np.int64(50))
    assert [cache.length(sequence) for sequence in (first, second)] == [50, 40]
    cache.truncate([first, second], np.array([30, 20]))
    assert [cache.length(sequence) for sequence in (first, second)] == [30, 20]


class WithDLPack:
    """An array of a library that numpy and torch are not."""

    def __init__(self, array):
        self._array = array
        self.shape = array.shape

    def __getitem__(self, index):
        return WithDLPack(self._array[index])

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


def test_arrays_of_other_libraries(rng):
    cache = innerkv.Cache(1, 2, 64, "f16")
    sequence = cache.create()
    k, v, q = (rows(rng, 40, heads) for heads in (2, 2, 4))
    cache.append(0, sequence, WithDLPack(k), WithDLPack(v))
    out = cache.attend(0, sequence, WithDLPack(q))
    assert isinstance(out, np.ndarray) and out.dtype == np.float32
    assert relative_error(out, attention(q, k, v)[0]) < 5e-4
