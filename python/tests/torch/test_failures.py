# SPDX-License-Identifier: Apache-2.0
"""Calls that fail in the middle leave an InnerKVCache as it was, or say that they could not."""

import pytest
import torch
from tiny import NaNKey, left_padded, tiny_model, tokens

from innerkv.transformers import InnerKVCache


def lengths(cache):
    """Of each sequence, in each layer."""
    return [[cache.store.length(sequence, layer) for layer in range(len(cache.layers))]
            for sequence in cache._sequences]


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("before", [0, 100])
@pytest.mark.parametrize("prefill", ["exact", "decode"])
def test_a_key_that_is_not_finite(layer, before, prefill):
    """Behind a chunk, or many, that are in the cache by then; in front of layers that have none."""
    model = tiny_model()
    cache, fresh = (InnerKVCache(model.config, "f16", prefill=prefill) for _ in range(2))
    for each in (cache, fresh):
        if before:
            model(tokens(2, before), cache=each)
    inputs, mask = left_padded([700, 640])
    if before:
        mask = torch.cat([torch.ones(2, before, dtype=torch.long), mask], 1)
        inputs[1, :60] = inputs[1, 60:120]
        mask[:] = 1
    with NaNKey(model, layer, 600), pytest.raises(ValueError, match="nan"):
        model(inputs, attention_mask=mask, cache=cache)
    assert cache.get_seq_length() == before
    assert lengths(cache) == [[before] * 3] * 2
    assert [each.columns.total for each in cache.layers] == [before] * 3
    actual, expected = (model(inputs, attention_mask=mask, cache=each).logits for each in (cache, fresh))
    torch.testing.assert_close(actual[mask[:, before:] == 1], expected[mask[:, before:] == 1], atol=0.02, rtol=0.02)
    assert lengths(cache) == lengths(fresh)


def test_tokens_that_cannot_be_taken_back():
    """A sliding window has dropped what the cache as it was would need."""
    model = tiny_model("gemma3")
    cache = InnerKVCache(model.config, "f16")
    model(tokens(1, 300), cache=cache)
    with NaNKey(model, 0, 1100), pytest.raises(RuntimeError, match=r"cannot be taken back.*reset\(\).*nan"):
        model(tokens(1, 1200), cache=cache)
    with pytest.raises(ValueError, match=r"reset\(\) the cache"):
        model(tokens(1, 1), cache=cache)
    cache.reset()
    assert cache.get_seq_length() == 0
    expected = model(tokens(1, 20), use_cache=False).logits
    torch.testing.assert_close(model(tokens(1, 20), cache=cache).logits, expected, atol=0.02, rtol=0.02)


def test_a_crop_that_one_of_two_sequences_refuses():
    model = tiny_model("gemma3")
    cache = InnerKVCache(model.config, "f16")
    inputs, mask = left_padded([40, 700])
    model(inputs, attention_mask=mask, cache=cache)
    mask = torch.cat([mask, mask[:, -1:]], 1)
    model(tokens(2, 1), attention_mask=mask, cache=cache)  # drops what no later query sees
    before = lengths(cache)
    assert before == [[41] * 3, [701] * 3]
    with pytest.raises(ValueError, match="sliding window"):
        cache.crop(-300)
    assert lengths(cache) == before and cache.get_seq_length() == 701
    cache.crop(-5)
    assert lengths(cache) == [[36] * 3, [696] * 3]
