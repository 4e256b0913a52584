# SPDX-License-Identifier: Apache-2.0
"""InnerKVCache in model.generate and in forward calls, against DynamicCache."""

import copy
import gc

import pytest
import torch
from tiny import FAMILIES, left_padded, tiny_model, tokens
from transformers import DynamicCache

import innerkv
from innerkv.transformers import InnerKVCache, attention_forward
from innerkv.transformers.columns import cut, page_chunks


def dynamic(model):
    return DynamicCache(config=model.config)


def both(model, inputs, preset="f16", **options):
    """Tokens generated on a DynamicCache with torch's attention, and on ours."""
    options = {"do_sample": False, "max_new_tokens": 30} | options
    attention_mask = options.pop("attention_mask", torch.ones_like(inputs))
    model.set_attn_implementation("sdpa")
    expected = model.generate(inputs, attention_mask=attention_mask, cache=dynamic(model), **options)
    model.set_attn_implementation("innerkv")
    cache = InnerKVCache(model.config, preset)
    actual = model.generate(inputs, attention_mask=attention_mask, cache=cache, **options)
    return expected, actual, cache


@pytest.mark.parametrize("family", FAMILIES)
def test_f16_gives_the_tokens_of_dynamic_cache(family):
    model = tiny_model(family)
    expected, actual, cache = both(model, tokens(2, 100))
    assert torch.equal(actual, expected)
    assert cache.get_seq_length() == 129


def divergence(expected, actual):
    """Mean KLD of predictions, in nats."""
    expected, actual = (x.log_softmax(-1) for x in (expected, actual))
    return float((expected.exp() * (expected - actual)).sum(-1).mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_quantized_predictions_are_near(family):
    """Fed in chunks of 32, so that most of the context is quantized."""
    model = tiny_model(family)
    inputs = tokens(1, 700)
    model.set_attn_implementation("sdpa")
    expected = model(inputs).logits[:, 400:]
    model.set_attn_implementation("innerkv")
    kld = {}
    for preset in ("f16", "k8v8", "base"):
        cache = InnerKVCache(model.config, preset, prefill="decode")
        kld[preset] = divergence(expected, model(inputs, cache=cache).logits[:, 400:])
        assert (cache.store.usage().quantized_pages > 0) == (preset != "f16")
    assert kld["f16"] < 1e-5
    assert kld["f16"] <= kld["k8v8"] <= kld["base"]
    assert kld["base"] < 0.1


def test_chunks_of_a_prompt_and_steps():
    """However the tokens are handed over, a cache that quantizes nothing predicts the same."""
    model = tiny_model()
    inputs = tokens(2, 230)
    expected = model(inputs, use_cache=False).logits
    for cuts in ([230], [1, 229], [100, 101, 29], [64] * 3 + [1] * 38):
        cache = InnerKVCache(model.config, "f16")
        parts = [model(part, cache=cache).logits for part in inputs.split(cuts, dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral"])
def test_left_padding(family):
    model = tiny_model(family)
    inputs, mask = left_padded([90, 33, 1, 64])
    expected, actual, cache = both(model, inputs, attention_mask=mask)
    assert torch.equal(actual, expected)
    # No padding is stored.
    assert [cache.store.length(s) for s in cache._sequences] == [119, 62, 30, 93]


@pytest.mark.parametrize("preset", ["f16", "base"])
def test_a_padded_batch_is_its_sequences(preset):
    """A sequence in a batch predicts what it predicts alone, quantized pages and all."""
    model = tiny_model()
    inputs, mask = left_padded([400, 333])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    kept = []
    for rows in ([0, 1], [1]):
        cache = InnerKVCache(model.config, preset)
        width = 400 if len(rows) == 2 else 333
        part = [x[rows, -width:] for x in (inputs, mask, positions)]
        model(part[0], attention_mask=part[1], position_ids=part[2], cache=cache)
        step = model(tokens(1, 1).expand(len(rows), 1), cache=cache,
                     attention_mask=torch.cat([part[1], part[1][:, :1] * 0 + 1], 1),
                     position_ids=part[2][:, -1:] + 1)
        kept.append(step.logits[-1])
    torch.testing.assert_close(kept[0], kept[1], atol=0.02, rtol=0.02)


def test_right_padding_in_a_forward_call():
    model = tiny_model()
    inputs = tokens(2, 60)
    mask = torch.ones_like(inputs)
    mask[1, 40:] = 0
    cache = InnerKVCache(model.config, "f16")
    out = model(inputs, attention_mask=mask, cache=cache).logits
    alone = model(inputs[1:, :40], use_cache=False).logits
    torch.testing.assert_close(out[1:, :40], alone, atol=0.02, rtol=0.02)
    assert [cache.store.length(s) for s in cache._sequences] == [60, 40]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_beam_search(family):
    expected, actual, cache = both(tiny_model(family), tokens(2, 80), num_beams=4, num_return_sequences=3)
    assert torch.equal(actual, expected)
    assert len(cache._sequences) == 8


def test_sampling():
    model = tiny_model()
    results = []
    for implementation in ("sdpa", "innerkv"):
        model.set_attn_implementation(implementation)
        cache = dynamic(model) if implementation == "sdpa" else InnerKVCache(model.config, "f16")
        torch.manual_seed(11)
        results.append(model.generate(tokens(2, 50), attention_mask=torch.ones(2, 50), cache=cache,
                                      do_sample=True, top_k=20, temperature=0.9, max_new_tokens=40,
                                      num_return_sequences=1))
    assert torch.equal(*results)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_assisted_generation(family):
    """Drafts that are mostly wrong: the cache is cropped at nearly every step."""
    model = tiny_model(family)
    assistant = tiny_model(family, seed=6, implementation="sdpa")
    expected, actual, _ = both(model, tokens(1, 90), assistant_model=assistant, max_new_tokens=30)
    assert torch.equal(actual, expected)


def test_prompt_lookup():
    model = tiny_model()
    inputs = tokens(1, 20).repeat(1, 5)
    expected, actual, _ = both(model, inputs, prompt_lookup_num_tokens=4, max_new_tokens=40)
    assert torch.equal(actual, expected)


def test_crop_with_padding():
    model = tiny_model()
    inputs, mask = left_padded([90, 33])
    cache = InnerKVCache(model.config, "f16")
    model(inputs, attention_mask=mask, cache=cache)
    cache.crop(-40)
    assert cache.get_seq_length() == 50
    assert [cache.store.length(s) for s in cache._sequences] == [50, 0]
    out = model(inputs[:, 50:], attention_mask=mask, cache=cache).logits
    fresh = InnerKVCache(model.config, "f16")
    expected = model(inputs, attention_mask=mask, cache=fresh).logits[:, 50:]
    torch.testing.assert_close(out[0], expected[0], atol=0.02, rtol=0.02)
    torch.testing.assert_close(out[1, 7:], expected[1, 7:], atol=0.02, rtol=0.02)
    with pytest.raises(ValueError, match="negative"):
        cache.crop(3)


def test_crop_beyond_what_a_window_kept_is_refused():
    model = tiny_model("gemma3")
    cache = InnerKVCache(model.config, "f16")
    model(tokens(1, 300), cache=cache)
    for step in range(20):
        model(tokens(1, 30, seed=step), cache=cache)
    with pytest.raises(ValueError, match="window"):
        cache.crop(-500)


def test_a_prompt_continued_twice():
    """copy.deepcopy of a processed prompt, as transformers' documentation has it, shares its pages."""
    model = tiny_model()
    prompt = tokens(1, 400)
    cache = InnerKVCache(model.config, "base")
    model(prompt, cache=cache)
    before = cache.nbytes
    copies = [copy.deepcopy(cache), cache.fork()]
    assert cache.nbytes < 1.5 * before
    ends = [model(tokens(1, 8, seed=i), cache=each).logits for i, each in enumerate(copies)]
    fresh = InnerKVCache(model.config, "base")
    model(prompt, cache=fresh)
    torch.testing.assert_close(model(tokens(1, 8, seed=1), cache=fresh).logits, ends[1],
                               atol=1e-3, rtol=1e-3)
    assert cache.get_seq_length() == 400 and copies[0].get_seq_length() == 408
    pages = cache.store.usage().f16_pages
    del copies
    assert cache.store.usage().f16_pages < pages


def test_a_shallow_copy_is_a_fork():
    model = tiny_model()
    cache = InnerKVCache(model.config, "f16")
    model(tokens(2, 60), cache=cache)
    expected = model(tokens(2, 1), cache=copy.copy(cache)).logits  # which is gone then
    assert [cache.store.length(sequence) for sequence in cache._sequences] == [60, 60]
    torch.testing.assert_close(model(tokens(2, 1), cache=cache).logits, expected)


def test_a_fork_that_fails_takes_nothing_away(monkeypatch):
    model = tiny_model()
    cache = InnerKVCache(model.config, "f16")
    model(tokens(2, 60), cache=cache)
    before = cache.nbytes
    fork = cache.store.fork

    def second_fails(sequence):
        if sequence == cache._sequences[1]:
            raise innerkv.OutOfPages("full")
        return fork(sequence)

    with monkeypatch.context() as patch:
        patch.setattr(cache.store, "fork", second_fails)
        with pytest.raises(innerkv.OutOfPages, match="full"):
            cache.fork()
    gc.collect()  # the copy, which the error's traceback held
    assert cache.nbytes == before
    assert [cache.store.length(sequence) for sequence in cache._sequences] == [60, 60]


def test_a_cache_that_is_continued_by_generate():
    model = tiny_model()
    inputs = tokens(1, 60)
    cache = InnerKVCache(model.config, "f16")
    first = model.generate(inputs, attention_mask=torch.ones_like(inputs), cache=cache,
                           do_sample=False, max_new_tokens=10)
    longer = torch.cat([first, tokens(1, 20)], 1)
    again = model.generate(longer, attention_mask=torch.ones_like(longer), cache=cache,
                           do_sample=False, max_new_tokens=10)
    model.set_attn_implementation("sdpa")
    expected = model.generate(longer, attention_mask=torch.ones_like(longer), do_sample=False,
                              max_new_tokens=10)
    assert torch.equal(again, expected)


def test_reset():
    model = tiny_model()
    cache = InnerKVCache(model.config, "f16")
    model(tokens(2, 50), cache=cache)
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.nbytes == 0 and cache.batch_size == -1
    expected = model(tokens(3, 20), use_cache=False).logits
    torch.testing.assert_close(model(tokens(3, 20), cache=cache).logits, expected, atol=0.02, rtol=0.02)


def test_batch_repeat_and_select():
    model = tiny_model()
    inputs = tokens(2, 50)
    cache = InnerKVCache(model.config, "f16")
    model(inputs, cache=cache)
    cache.batch_repeat_interleave(2)
    assert cache.batch_size == 4
    cache.batch_select_indices(torch.tensor([3, 0]))
    out = model(tokens(2, 1), cache=cache).logits
    expected = model(torch.cat([inputs[[1, 0]], tokens(2, 1)], 1), use_cache=False).logits[:, -1:]
    torch.testing.assert_close(out, expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_attention_works_without_our_cache(family):
    model = tiny_model(family)
    inputs, mask = left_padded([100, 71])
    with_ours = model.generate(inputs, attention_mask=mask, do_sample=False, max_new_tokens=10)
    model.set_attn_implementation("sdpa")
    expected = model.generate(inputs, attention_mask=mask, do_sample=False, max_new_tokens=10)
    assert torch.equal(with_ours, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(dtype):
    model = tiny_model().to(dtype)
    inputs = tokens(2, 150)
    model.set_attn_implementation("sdpa")
    expected = model(inputs, use_cache=False).logits
    model.set_attn_implementation("innerkv")
    cache = InnerKVCache(model.config, "f16")
    model(inputs[:, :149], cache=cache)
    step = model(inputs[:, 149:], cache=cache).logits
    assert step.dtype == dtype
    assert divergence(expected[:, 149:].float(), step.float()) < 5e-3


def test_the_cache_is_smaller_than_f16():
    model = tiny_model("llama")
    cache = InnerKVCache(model.config, "base")
    model(tokens(1, 2000), cache=cache)
    model(tokens(1, 1), cache=cache)
    planned = cache.plan(2001)
    assert planned.ratio > 2.5
    assert abs(cache.nbytes - planned.sequence_bytes) < 0.02 * planned.sequence_bytes


def test_bits_by_layer():
    model = tiny_model("llama")
    inputs = tokens(1, 600)

    def predict(**options):
        cache = InnerKVCache(model.config, "base", **options)
        model(inputs[:, :500], cache=cache)
        return model(inputs[:, 500:], cache=cache).logits, cache

    base, plain = predict()
    same, uniform = predict(layer_bits=[(3, 3)] * 3)
    assert torch.equal(base, same) and plain.nbytes == uniform.nbytes
    mixed, cache = predict(layer_bits=[(2, 2), (4, 3), (3, 2)])
    assert not torch.equal(base, mixed)
    assert cache.nbytes < plain.nbytes
    assert cache.plan(600).sequence_bytes < plain.plan(600).sequence_bytes


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral"])
def test_the_plan_is_what_is_made(family):
    """Bytes to the last one, the positions counted that are kept behind sliding windows."""
    model = tiny_model(family)
    cache = InnerKVCache(model.config, "base")
    planned = cache.plan(420)
    cache.open(torch.empty(1, 2, 1, 64))
    generator = torch.Generator().manual_seed(1)
    for _ in range(420):
        for layer in range(3):
            k, v = torch.randn(2, 1, 2, 64, generator=generator)
            cache.store.append(layer, cache._sequences[0], k, v)
    assert cache.nbytes == planned.sequence_bytes
    assert cache.plan(420) == planned
    reserved = cache.plan(batch=1).pool_bytes  # of max_length
    assert cache.store.usage().bytes_reserved < reserved
    cache.activate_past_recording()
    assert (cache.plan(2000).sequence_bytes > InnerKVCache(model.config, "base").plan(2000).sequence_bytes) == (
        family != "llama")


def test_what_a_chunk_attends_to_is_what_single_tokens_would():
    """However the tokens are cut into calls, and wherever each sequence begins in its batch."""
    padding, width = (0, 43), 420
    rows = [torch.randn(2, width, heads, 64, generator=torch.Generator().manual_seed(heads)) for heads in (1, 1, 2)]
    outs = []
    for calls in ([1] * width, [301, 49, 1, 69]):
        cache = innerkv.Cache(1, 1, 64, "base", max_sequences=2)
        sequences, out, column = [cache.create(), cache.create()], [], 0
        for count in calls:
            spans = [(min(max(first - column, 0), count), count) for first in padding]
            lengths = [cache.length(sequence) for sequence in sequences]
            for first, last in page_chunks(count, spans, lengths):
                k, v, q = (each[:, column + first : column + last] for each in rows)
                part = cut(spans, first, last)
                cache.append(0, sequences, k, v, q, spans=part)
                out.append(cache.attend(0, sequences, q, spans=part))
            column += count
        assert cache.usage().quantized_pages > 0
        outs.append(torch.cat(out, 1))
    torch.testing.assert_close(outs[1], outs[0], atol=1e-5, rtol=1e-5)


def test_layers_that_share_keys_are_refused():
    model = tiny_model()
    cache = InnerKVCache(model.config)
    key = torch.zeros(1, 2, 1, 64)
    keys, values = cache.update(key, key, 0)
    query = torch.zeros(1, 4, 1, 64)
    attention_forward(model, query, keys, values, None)
    with pytest.raises(ValueError, match="layer 0 attends twice"):
        attention_forward(model, query, keys, values, None)
