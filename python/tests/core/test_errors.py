# SPDX-License-Identifier: Apache-2.0
"""Bad input is refused with the library's text, and a cache is then as it was."""

import copy
import pickle

import numpy as np
import pytest
from test_cache import filled, rows

import innerkv


def small(**options):
    return innerkv.Cache(1, 2, 64, **options)


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        ((1, 2, 64, "tiny"), {}, "tiny.*base"),
        ((1, 2, 72), {}, "head dimension 72.*64, 80"),
        ((0, 2, 64), {}, "layers is 0"),
        ((1, 2, 64), {"max_tokens": -1}, "max_tokens is -1"),
        ((2, 2, 64), {"sliding_window": [5]}, "1 entries for 2 layers"),
        ((1, 2, 64), {"device": "cuda"}, "device cuda.*cpu"),
        ((2, 2, 64), {"layer_bits": [(3, 2)]}, "1 entries for 2 layers.*bits of keys and of values"),
        ((1, 2, 64), {"layer_bits": [(3, 5)]}, "values of 5 bits; supported are 2, 3, 4 and 8"),
        ((1, 2, 64), {"layer_bits": [(3, 3)], "paper": True}, "not with the paper's codecs"),
        ((1, 2, 64, "f16"), {"layer_bits": [(3, 3)]}, "f16 beside quantized codecs"),
    ],
)
def test_what_a_cache_cannot_be(arguments, options, text):
    with pytest.raises(ValueError, match=text):
        innerkv.Cache(*arguments, **options)


def refused(cache, text, k, v, q=None, sequences=0, layer=0, **options):
    with pytest.raises(ValueError, match=text):
        cache.append(layer, sequences, k, v, q, **options)
    assert cache.length(0) == 0
    assert cache.nbytes == 0


def test_rows_that_do_not_fit(rng):
    cache = small()
    cache.create()
    k = rows(rng, 8, 2)
    refused(cache, "3 heads.*2 KV heads", rows(rng, 8, 3), k)
    refused(cache, r"v has the shape \[1, 8, 2, 80\].*head_dim 64", k, rows(rng, 8, 2, 80))
    refused(cache, "differ in tokens", k, rows(rng, 9, 2))
    refused(cache, "differ in tokens", k, k, rows(rng, 7, 4))
    refused(cache, "supported are float32, float16 and bfloat16", k.astype(np.float64), k)
    refused(cache, "supported are float32, float16 and bfloat16", k, k.astype(np.int32))
    refused(cache, "5 dimensions", k[None, None], k)
    refused(cache, "do not lie side by side", np.asfortranarray(k), k)
    refused(cache, "runs backwards", k[::-1], k)
    refused(cache, "2 entries for 1 sequences", k, k, spans=[(0, 1), (0, 1)])
    refused(cache, r"a span is \(3, 9\)", k, k, spans=[(3, 9)])
    refused(cache, "layer", k, k, layer=1)
    refused(cache, "sequence", k[None], k[None], sequences=[5])
    refused(cache, "sequence", np.stack([k, k]), np.stack([k, k]), sequences=[0, 0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e6])
def test_values_that_are_not_finite(rng, bad):
    cache, sequence, k, v, q = filled(rng, "base")
    before = cache.usage(), cache.attend(0, sequence, q[-1:])
    k = k[:40].copy()
    k[37, 1, 5] = bad
    with pytest.raises(ValueError, match="token 737, KV head 1.*channel 5"):
        cache.append(0, sequence, k, v[:40], q[:40])
    assert cache.usage() == before[0]
    assert cache.length(sequence) == 700
    np.testing.assert_array_equal(cache.attend(0, sequence, q[-1:]), before[1])


def test_a_full_cache(rng):
    cache = small(preset="f16", max_tokens=64)
    sequence = cache.create()
    k = rows(rng, 64, 2)
    cache.append(0, sequence, k, k)
    with pytest.raises(innerkv.OutOfPages, match="free"):
        cache.reserve(sequence, 100_000)
    with pytest.raises(MemoryError, match="free"):
        for _ in range(40):
            cache.append(0, sequence, k, k)
    length = cache.length(sequence)
    q = rows(rng, 1, 2)
    assert np.isfinite(cache.attend(0, sequence, q)).all()
    assert cache.length(sequence) == length
    with pytest.raises(innerkv.OutOfPages, match="sequence"):
        cache.create()


def test_questions_that_do_not_fit(rng):
    cache, sequence, *_ = filled(rng, "f16", tokens=20)
    q = rows(rng, 2, 4)
    for text, question, options in [
        ("3 query heads on 2 KV heads", rows(rng, 2, 3), {}),
        ("head_dim 64", rows(rng, 2, 4, 80), {}),
        ("21 queries on sequence 0 of 20 tokens", rows(rng, 21, 4), {}),
        ("scale", q, {"scale": -1.0}),
        ("soft cap", q, {"soft_cap": -1.0}),
        ("sliding window", q, {"sliding_window": -1}),
        ("first_positions has 2 entries", q, {"first_positions": [1, 2]}),
        ("instruction set|isa", q, {"isa": "avx9"}),
    ]:
        with pytest.raises(ValueError, match=text):
            cache.attend(0, sequence, question, **options)
    with pytest.raises(ValueError, match="layer 1; this cache has layers 0 to 0"):
        cache.attend(1, sequence, q)
    with pytest.raises(ValueError, match="sequence"):
        cache.attend(0, 3, q)


def test_sequences_that_are_not_there(rng):
    cache = small()
    sequence = cache.create()
    cache.remove(sequence)
    for call in (cache.fork, cache.remove, cache.settle, cache.length):
        with pytest.raises(ValueError, match="sequence"):
            call(sequence)
    with pytest.raises(ValueError, match="sequence"):
        cache.truncate(sequence, 0)


def test_a_window_that_has_dropped_what_a_truncate_needs(rng):
    cache, sequence, *_ = filled(rng, "f16", tokens=900, chunk=100, sliding_window=64)
    with pytest.raises(ValueError, match="window"):
        cache.truncate(sequence, 300)
    assert cache.length(sequence) == 900


def test_arguments_of_other_types(rng):
    cache = small()
    with pytest.raises(TypeError):
        cache.fork("first")
    with pytest.raises(TypeError):
        cache.append(0, [cache.create()], "keys", rows(rng, 1, 2))


@pytest.mark.parametrize("threads", [0, -3, 100_000])
def test_numbers_of_threads(threads):
    before = innerkv.get_num_threads()
    with pytest.raises(ValueError, match="supported are 1 to 1024"):
        innerkv.set_num_threads(threads)
    assert innerkv.get_num_threads() == before


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_cache_is_not_copied(copied):
    with pytest.raises(TypeError, match="fork"):
        copied(innerkv.Cache(1, 1, 64))
