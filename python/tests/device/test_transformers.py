# SPDX-License-Identifier: Apache-2.0
"""InnerKVCache on a CUDA device: generate, graphs, torch.compile."""

import pytest
import torch
from tiny import FAMILIES, NaNKey, left_padded, tiny_model, tokens
from transformers import DynamicCache

import innerkv
from innerkv.transformers import DecodeGraph, InnerKVCache
from innerkv.transformers.graph import cache_argument

PROMPT = 300


def on_device(family="llama", **changes):
    model = tiny_model(family, **changes).cuda()
    return model, cache_argument(model)


def generate(model, argument, cache, inputs, **options):
    options = {"do_sample": False, "max_new_tokens": 40, "disable_compile": True} | options
    options.setdefault("attention_mask", torch.ones_like(inputs))
    return model.generate(inputs, **{argument: cache}, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_f16_gives_the_tokens_of_dynamic_cache(family):
    model, argument = on_device(family)
    inputs = tokens(2, 100).cuda()
    model.set_attn_implementation("sdpa")
    expected = generate(model, argument, DynamicCache(config=model.config), inputs)
    model.set_attn_implementation("innerkv")
    cache = InnerKVCache(model.config, "f16", max_length=400)
    assert torch.equal(generate(model, argument, cache, inputs), expected)
    cache.verify()
    assert cache.device == torch.device("cuda", 0) and int(cache.get_seq_length()) == 139


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox"])
def test_as_on_the_cpu(family):
    """Logits of chunks and steps behind a quantized history."""
    model, argument = on_device(family)
    parts = [tokens(2, count, seed=count) for count in (PROMPT, 1, 77, 5, 1)]
    cache = InnerKVCache(model.config, "base", max_length=500, device="cuda")
    actual = [model(part.cuda(), **{argument: cache}).logits.cpu() for part in parts]
    cache.verify()
    model = model.cpu()
    host = InnerKVCache(model.config, "base", max_length=500)
    for result, part in zip(actual, parts):
        expected = model(part, **{argument: host}).logits.log_softmax(-1)
        kld = (expected.exp() * (expected - result.log_softmax(-1))).sum(-1)
        assert not kld.isnan().any() and kld.mean() < 1e-3, kld.mean()


def test_left_padding():
    """Each sequence as if it were alone."""
    model, argument = on_device()
    inputs, mask = (part.cuda() for part in left_padded([PROMPT, 170, 33]))
    cache = InnerKVCache(model.config, "f16", max_length=400)
    together = generate(model, argument, cache, inputs, attention_mask=mask)
    for row, length in enumerate([PROMPT, 170, 33]):
        cache = InnerKVCache(model.config, "f16", max_length=400)
        alone = generate(model, argument, cache, inputs[row : row + 1, PROMPT - length :])
        assert torch.equal(together[row, PROMPT:], alone[0, length:])


def test_beams_and_drafts():
    model, argument = on_device()
    for inputs, options in [
        (tokens(2, 150), {"num_beams": 3}),
        (torch.cat([tokens(1, 40)] * 4, 1), {"prompt_lookup_num_tokens": 5}),
    ]:
        model.set_attn_implementation("sdpa")
        expected = generate(model, argument, DynamicCache(config=model.config), inputs.cuda(), **options)
        model.set_attn_implementation("innerkv")
        cache = InnerKVCache(model.config, "f16", max_length=400)
        assert torch.equal(generate(model, argument, cache, inputs.cuda(), **options), expected)
        cache.verify()


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_decode_graph(family):
    """Replays are the model's own steps, while pages fill; crop, reset and reorder are seen by the graph."""
    model, argument = on_device(family)
    eager, replayed = (InnerKVCache(model.config, "base", max_length=700) for _ in range(2))
    inputs, mask = (part.cuda() for part in left_padded([PROMPT, 120]))
    for cache in (eager, replayed):
        model(inputs, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), **{argument: cache})
    positions = mask.sum(1, keepdim=True)
    step = DecodeGraph(model, replayed, positions)
    held = None
    for index in range(230):
        new = tokens(2, 1, seed=index).cuda()
        expected = model(new, position_ids=positions + index, **{argument: eager}).logits[:, -1]
        torch.testing.assert_close(step(new), expected, atol=1e-3, rtol=1e-3)
        if index == 100:
            held = torch.cuda.memory_allocated()
    assert torch.cuda.memory_allocated() <= held  # nothing new in a step
    replayed.verify()
    assert int(replayed.get_seq_length()) == PROMPT + 230
    assert [replayed.store.length(slot) for slot in (0, 1)] == [PROMPT + 230, 350]
    for cache in (eager, replayed):
        cache.crop(-3)
        cache.reorder_cache(torch.tensor([1, 1]))
    positions = (positions + 227)[[1, 1]]
    step.restart(positions)
    expected = model(new, position_ids=positions, **{argument: eager}).logits[:, -1]
    torch.testing.assert_close(step(new), expected, atol=1e-3, rtol=1e-3)
    inputs, mask = (part.cuda() for part in left_padded([90, 250]))
    for cache in (eager, replayed):
        cache.reset()
        model(inputs, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), **{argument: cache})
    positions = mask.sum(1, keepdim=True)
    step.restart(positions)
    for index in range(40):
        new = tokens(2, 1, seed=index).cuda()
        expected = model(new, position_ids=positions + index, **{argument: eager}).logits[:, -1]
        torch.testing.assert_close(step(new), expected, atol=1e-3, rtol=1e-3)
    replayed.verify()
    assert [replayed.store.length(slot) for slot in (0, 1)] == [130, 290]


def test_decode_graph_inputs():
    model, argument = on_device()
    cache = InnerKVCache(model.config, max_length=400)
    model(tokens(2, 40).cuda(), **{argument: cache})
    step = DecodeGraph(model, cache)
    places = {step(tokens(2, 1, seed=seed).cuda()).data_ptr() for seed in range(4)}
    assert len(places) == 1
    before = int(cache.get_seq_length())
    for shape in ((1, 1), (2, 2), (3, 1)):
        with pytest.raises(ValueError, match=r"tokens \[\d, \d\]; .* \[2, 1\]"):
            step(tokens(*shape).cuda())
    assert int(cache.get_seq_length()) == before
    with pytest.raises(ValueError, match="made without positions"):
        step.restart(torch.zeros(2, 1, dtype=torch.long, device="cuda"))


def test_a_decode_graph_counts_by_itself():
    """Without positions: crop and reset are seen."""
    model, argument = on_device()
    eager, replayed = (InnerKVCache(model.config, max_length=400) for _ in range(2))
    step = None
    for prompt in (PROMPT, 120):
        for cache in (eager, replayed):
            cache.reset()
            model(tokens(2, prompt).cuda(), **{argument: cache})
        step = step or DecodeGraph(model, replayed)
        for index in range(8):
            new = tokens(2, 1, seed=index).cuda()
            expected = model(new, **{argument: eager}).logits[:, -1]
            torch.testing.assert_close(step(new), expected, atol=1e-3, rtol=1e-3)
            if index == 5:
                eager.crop(-3)
                replayed.crop(-3)
    with NaNKey(model, 1, 0):
        model(new, **{argument: replayed})
    with pytest.raises(ValueError, match="nan"):
        replayed.verify()
    with pytest.raises(ValueError, match=r"reset\(\) the cache"):
        step(new)


def test_a_crop_that_one_of_two_sequences_refuses():
    model, argument = on_device()
    cache = InnerKVCache(model.config, max_length=700)
    inputs, mask = (part.cuda() for part in left_padded([120, 500]))
    model(inputs, attention_mask=mask, **{argument: cache})
    with pytest.raises(ValueError, match="are in fp16"):
        cache.crop(-400)
    assert [cache.store.length(slot) for slot in (0, 1)] == [120, 500]
    cache.crop(-3)
    assert [cache.store.length(slot) for slot in (0, 1)] == [117, 497]


def same_logits(model, argument, caches, inputs):
    actual, expected = (model(inputs, **{argument: cache}).logits for cache in caches)
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-3)


def test_a_prompt_that_does_not_fit():
    """Its first chunks would: none is appended, and the cache goes on."""
    model, argument = on_device()
    caches = [InnerKVCache(model.config, max_length=400) for _ in range(2)]
    for cache in caches:
        model(tokens(2, 200).cuda(), **{argument: cache})
    with pytest.raises(innerkv.OutOfPages):
        model(tokens(2, 700).cuda(), **{argument: caches[0]})
    assert [caches[0].store.length(slot, layer) for slot in (0, 1) for layer in range(3)] == [200] * 6
    assert int(caches[0].get_seq_length()) == 200
    for length in (50, 1):
        same_logits(model, argument, caches, tokens(2, length).cuda())


@pytest.mark.parametrize("before", [0, 70])
def test_a_refused_prompt(before):
    """One of two sequences has it then, and the other has not: nothing but reset() helps."""
    model, argument = on_device()
    cache, fresh = (InnerKVCache(model.config, max_length=400) for _ in range(2))
    if before:
        model(tokens(2, before).cuda(), **{argument: cache})
    with NaNKey(model, 1, 30), pytest.raises(ValueError, match="nan"):
        model(tokens(2, 150).cuda(), **{argument: cache})
    assert [cache.store.length(slot) for slot in (0, 1)] == [before + 150, before]
    with pytest.raises(ValueError, match=r"reset\(\) the cache"):
        model(tokens(2, 1).cuda(), **{argument: cache})
    cache.reset()
    for length in (150, 1):
        same_logits(model, argument, (cache, fresh), tokens(2, length).cuda())
    cache.verify()


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_plan_is_what_is_taken(family):
    model, argument = on_device(family)
    cache = InnerKVCache(model.config, max_length=700, device="cuda")
    planned = cache.plan(batch=2).pool_bytes
    cache.open(torch.empty(2, 2, 1, 64, device="cuda"))
    assert cache.nbytes == planned
    model(tokens(2, 200).cuda(), **{argument: cache})
    assert cache.store.usage().bytes_reserved == planned < cache.nbytes  # which has attention's


def test_compiled_with_cuda_graphs():
    """torch.compile(mode="reduce-overhead"): the same tokens, and no CUDA graph was left out."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model, argument = on_device(num_hidden_layers=2)
    inputs = tokens(2, PROMPT).cuda()
    caches = [InnerKVCache(model.config, "base", max_length=500) for _ in range(2)]
    forward = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    for cache in caches:
        model(inputs, **{argument: cache})
    for index in range(60):
        new = tokens(2, 1, seed=index).cuda()
        expected = model(new, **{argument: caches[0]}).logits
        actual = forward(new, **{argument: caches[1]}).logits.clone()
        torch.testing.assert_close(actual, expected, atol=5e-3, rtol=5e-3)
    caches[1].verify()
    assert counters["inductor"]["cudagraph_skips"] == 0
    assert [caches[1].store.length(slot) for slot in (0, 1)] == [PROMPT + 60] * 2
    torch._dynamo.reset()


def test_refused():
    model, argument = on_device()
    cache = InnerKVCache(model.config, max_length=400, device="cuda")
    model.cpu()
    with pytest.raises(ValueError, match="keys on cpu; this cache is on cuda:0"):
        model(tokens(1, 40), **{argument: cache})
    with pytest.raises(ValueError, match="run the prompt on a CUDA device first"):
        DecodeGraph(model, InnerKVCache(model.config))
    model.cuda()
    cache = InnerKVCache(model.config, max_length=400)
    model(tokens(2, 40).cuda(), **{argument: cache})
    with pytest.raises(ValueError, match="a batch of 1 on a cache of 2"):
        model(tokens(1, 1).cuda(), **{argument: cache})
    with pytest.raises(MemoryError, match="out of memory"):
        model(tokens(2, 40).cuda(), **{argument: InnerKVCache(model.config, max_length=1 << 28)})
    model(tokens(2, 1).cuda(), **{argument: cache})
