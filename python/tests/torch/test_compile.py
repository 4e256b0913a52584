# SPDX-License-Identifier: Apache-2.0
"""torch.compile over models with an InnerKVCache: one graph a decode step, the same for all steps and caches."""

import os
import shutil

import pytest
import torch
from tiny import tiny_model, tokens
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from transformers import AttentionInterface, CompileConfig

from innerkv.transformers import InnerKVCache, attention_forward
from innerkv.transformers.ops import attend, traced

PROMPT = 300  # tokens, of which some are quantized


@pytest.fixture(autouse=True)
def forget_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model):
    """The model with its graphs counted, functionalized as for Inductor; a break in a graph is an error."""
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(model, backend=counter, fullgraph=True), counter


def steps(forward, cache, count=5, batch=2, **options):
    """Logits of `count` decode steps."""
    return [forward(tokens(batch, 1, seed=step), cache=cache, **options).logits for step in range(count)]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma3", "phi3", "gpt_neox"])
def test_one_graph_for_all_steps(family):
    model = tiny_model(family)
    expected_cache, cache = (InnerKVCache(model.config, "base") for _ in range(2))
    for each in (expected_cache, cache):
        model(tokens(2, PROMPT), cache=each)
    expected = steps(model, expected_cache)
    forward, counter = compiled(model)
    for actual, wanted in zip(steps(forward, cache), expected):
        torch.testing.assert_close(actual, wanted, atol=1e-4, rtol=1e-4)
    assert cache.get_seq_length() == PROMPT + 5
    assert counter.frame_count == 1
    assert int(cache.state[1]) == PROMPT + 5


def test_the_graph_serves_another_cache():
    model = tiny_model()
    forward, counter = compiled(model)
    results = []
    for length in (100, PROMPT):
        caches = [InnerKVCache(model.config, "base") for _ in range(2)]
        for cache in caches:
            model(tokens(2, length), cache=cache)
        results.append([steps(forward, caches[0]), steps(model, caches[1])])
    for actual, expected in results:
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    assert counter.frame_count == 1


def test_crop_fork_and_reset_are_seen_by_the_graph():
    model = tiny_model()
    forward, counter = compiled(model)
    cache = InnerKVCache(model.config, "f16")
    model(tokens(1, 60), cache=cache)
    expected = steps(forward, cache, batch=1)
    cache.crop(-5)
    fork = cache.fork()
    torch.testing.assert_close(steps(forward, cache, batch=1), expected, atol=0.02, rtol=0.02)
    torch.testing.assert_close(steps(forward, fork, batch=1), expected, atol=0.02, rtol=0.02)
    cache.reset()
    model(tokens(1, 60), cache=cache)
    torch.testing.assert_close(steps(forward, cache, batch=1), expected, atol=0.02, rtol=0.02)
    assert counter.frame_count == 1


def test_a_prompt_with_padding():
    """A whole forward call with a mask, in one graph too."""
    model = tiny_model()
    inputs, mask = tokens(2, 90), torch.ones(2, 90, dtype=torch.long)
    mask[1, :50] = 0
    eager, traced = (InnerKVCache(model.config, "f16") for _ in range(2))
    expected = model(inputs, attention_mask=mask, cache=eager).logits
    forward, _ = compiled(model)
    actual = forward(inputs, attention_mask=mask, cache=traced).logits
    torch.testing.assert_close(actual[0], expected[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(actual[1, 50:], expected[1, 50:], atol=1e-4, rtol=1e-4)
    assert [traced.store.length(s) for s in traced._sequences] == [90, 40]
    mask = torch.cat([mask, mask[:, -1:]], 1)
    torch.testing.assert_close(steps(forward, traced, 1, attention_mask=mask),
                               steps(model, eager, 1, attention_mask=mask), atol=1e-4, rtol=1e-4)


def test_a_graph_that_ends_before_attention():
    model = tiny_model()
    caches = [InnerKVCache(model.config, "f16") for _ in range(2)]
    for cache in caches:
        model(tokens(2, 60), cache=cache)
    expected = steps(model, caches[0], 2)
    AttentionInterface.register("innerkv", torch._dynamo.disable(attention_forward))
    try:
        actual = steps(torch.compile(model, backend="eager"), caches[1], 2)
    finally:
        AttentionInterface.register("innerkv", attention_forward)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_keys_of_a_graph_are_nobody_elses():
    """What a graph that ended in front of an attention left is taken by that one, also where it is refused."""
    cache = InnerKVCache(tiny_model().config)
    traced.layer = cache.layers[0]
    q, k, v = (torch.randn(1, count, 5, 64) for count in (4, 2, 2))
    with pytest.raises(ValueError, match="passes sinks"):
        attention_forward(torch.nn.Module(), q, k, v, None, sinks=torch.zeros(4))
    assert traced.layer is None
    attention_forward(torch.nn.Module(), q, k, v, None)
    assert cache.get_seq_length() == 0


def test_generate_compiles():
    model = tiny_model()
    inputs = tokens(2, PROMPT)
    mask = torch.ones_like(inputs)
    mask[0, :20] = 0
    options = {"attention_mask": mask, "do_sample": False, "max_new_tokens": 12}
    expected = model.generate(inputs, cache=InnerKVCache(model.config), **options)
    counters.clear()
    config = CompileConfig(backend="aot_eager", fullgraph=True, mode=None)
    config._compile_all_devices = True  # transformers compiles on accelerators alone, unless told
    actual = model.generate(inputs, cache=InnerKVCache(model.config), compile_config=config, **options)
    assert torch.equal(actual, expected)
    assert counters["stats"]["unique_graphs"] == 1


def test_another_attention_is_refused():
    model = tiny_model(implementation="sdpa")
    cache = InnerKVCache(model.config)
    with pytest.raises(Exception, match='attn_implementation="sdpa"'):
        torch.compile(model, backend="eager")(tokens(1, 5), cache=cache)
    assert cache.get_seq_length() == 0


def test_the_operator_is_what_it_says():
    """Schema, fake implementation and the rest of torch's own checks, on a cache that takes every call anew."""
    model = tiny_model(num_hidden_layers=1)  # of several, all would have to take the call
    cache = InnerKVCache(model.config, "f16")
    heads = [torch.randn(2, count, 7, 64) for count in (4, 2, 2)]
    mask = torch.ones(2, 7, dtype=torch.bool)
    for each in (None, mask):
        torch.library.opcheck(attend, (*heads, each, cache.state, 0, 0.1, 0.0),
                              test_utils=("test_schema", "test_faketensor"))


def test_a_cache_that_is_gone():
    model = tiny_model()
    state = InnerKVCache(model.config).state
    heads = [torch.randn(1, count, 1, 64) for count in (4, 2, 2)]
    with pytest.raises(RuntimeError, match="hold the InnerKVCache"):
        attend(*heads, None, state, 0, 0.1, 0.0)


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="Inductor needs a C++ compiler")
def test_inductor(monkeypatch):
    """torch.compile's own backend, which generates C++ here: the same tokens as without it."""
    monkeypatch.setattr(torch._inductor.config, "compile_threads", 1)  # no processes that have to import torch
    model = tiny_model(num_hidden_layers=1)
    inputs = tokens(2, PROMPT)
    options = {"attention_mask": torch.ones_like(inputs), "do_sample": False, "max_new_tokens": 20}
    expected = model.generate(inputs, cache=InnerKVCache(model.config), **options)
    counters.clear()
    config = CompileConfig(fullgraph=True, mode=None)
    config._compile_all_devices = True
    actual = model.generate(inputs, cache=InnerKVCache(model.config), compile_config=config, **options)
    assert torch.equal(actual, expected)
    assert counters["stats"]["unique_graphs"] == 1
    assert counters["inductor"]
