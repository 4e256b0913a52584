# SPDX-License-Identifier: Apache-2.0
"""InnerKVCache on a device, with a stand-in for the device: the same predictions as on the CPU, which attends to the
same pages."""

import pytest
import torch
from tiny import FAMILIES, NaNKey, left_padded, tiny_model, tokens
from torch._dynamo.testing import CompileCounterWithBackend

import innerkv
from innerkv import _core
from innerkv.device import device_index
from innerkv.transformers import InnerKVCache
from innerkv.transformers import cache as cache_module
from innerkv.transformers.device import CHUNK

PROMPT = 2 * CHUNK + 44


@pytest.fixture
def new_caches(on_stand_in, monkeypatch):
    """One on the CPU, whose chunks are a device's, one on the stand-in."""
    monkeypatch.setattr(cache_module, "CHUNK", CHUNK)

    def make(model, batch=2):
        host, cache = (InnerKVCache(model.config, "base", max_length=800) for _ in range(2))
        return host, on_stand_in(cache, batch)

    return make


def assert_near(actual, expected):
    """But for queries that round to another code: one step of 127 in a few rows."""
    difference = (actual - expected).abs()
    assert difference.max() < 5e-3
    assert difference.square().mean().sqrt() < 5e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_predictions(family, new_caches):
    model = tiny_model(family)
    host, cache = new_caches(model)
    for part in (tokens(2, PROMPT), tokens(2, 1), tokens(2, 200, seed=8), tokens(2, 1, seed=9)):
        expected = model(part, cache=host).logits
        assert_near(model(part, cache=cache).logits, expected)
    assert cache._on_device is not None
    assert int(cache.get_seq_length()) == host.get_seq_length() == PROMPT + 202


def test_left_padding(new_caches):
    model = tiny_model()
    host, cache = new_caches(model)
    inputs, mask = left_padded([PROMPT, 70])
    options = {"attention_mask": mask, "do_sample": False, "max_new_tokens": 30}
    expected = model.generate(inputs, cache=host, **options)
    assert torch.equal(model.generate(inputs, cache=cache, **options), expected)
    assert [cache.store.length(slot) for slot in (0, 1)] == [PROMPT + 29, 99]
    cache.verify()


def test_a_row_that_brings_nothing(new_caches):
    """Steps in which some sequences have padding: nobody looks at it on the host."""
    model = tiny_model()
    host, cache = new_caches(model)
    mask = torch.ones(2, 60, dtype=torch.long)
    for each in (host, cache):
        model(tokens(2, 60), attention_mask=mask, cache=each)
    mask = torch.cat([mask, torch.tensor([[1], [0]])], 1)
    expected, actual = (model(tokens(2, 1), attention_mask=mask, cache=each).logits for each in (host, cache))
    torch.testing.assert_close(actual[0], expected[0], atol=2e-4, rtol=2e-4)
    assert not actual.isnan().any()
    assert [cache.store.length(slot) for slot in (0, 1)] == [61, 60]
    with pytest.raises(ValueError, match="padding came in steps"):
        cache.crop(-1)


def test_beams(new_caches):
    model = tiny_model()
    host, cache = new_caches(model, batch=6)
    options = {"num_beams": 3, "do_sample": False, "max_new_tokens": 25}
    inputs = tokens(2, PROMPT)
    options["attention_mask"] = torch.ones_like(inputs)
    expected = model.generate(inputs, cache=host, **options)
    assert torch.equal(model.generate(inputs, cache=cache, **options), expected)


def test_assisted(new_caches):
    model = tiny_model()
    host, cache = new_caches(model, batch=1)
    inputs = torch.cat([tokens(1, 40)] * 4, 1)
    options = {"prompt_lookup_num_tokens": 5, "do_sample": False, "max_new_tokens": 25,
               "attention_mask": torch.ones_like(inputs)}
    expected = model.generate(inputs, cache=host, **options)
    assert torch.equal(model.generate(inputs, cache=cache, **options), expected)


def test_crop_and_reset(new_caches):
    model = tiny_model()
    _, cache = new_caches(model)
    inputs, mask = left_padded([100, 40])
    first = model(inputs, attention_mask=mask, cache=cache).logits
    step = model(tokens(2, 1), cache=cache).logits
    model(tokens(2, 3), cache=cache)
    cache.crop(-4)
    assert [cache.store.length(slot) for slot in (0, 1)] == [100, 40]
    assert int(cache.get_seq_length()) == 100
    torch.testing.assert_close(model(tokens(2, 1), cache=cache).logits, step)
    length = cache.get_seq_length()
    model(tokens(2, 1), cache=cache)
    assert int(length) == 101  # not what the cache has since
    cache.crop(-102)
    assert cache.get_seq_length() == 0 and not any(layer.started for layer in cache.layers)
    torch.testing.assert_close(model(inputs, attention_mask=mask, cache=cache).logits, first)
    state = cache.state
    cache.reset()
    assert cache.state is state and int(cache.get_seq_length()) == 0
    torch.testing.assert_close(model(inputs, attention_mask=mask, cache=cache).logits, first)
    with pytest.raises(ValueError, match="a batch of 3"):
        model(tokens(3, 1), cache=cache)
    with pytest.raises(ValueError, match="not there on a device"):
        cache.fork()


def test_a_prompt_that_does_not_fit(new_caches):
    """Its first chunks would: none is appended, and the cache goes on."""
    model = tiny_model()
    host, cache = new_caches(model)
    for each in (host, cache):
        model(tokens(2, 200), cache=each)
    with pytest.raises(innerkv.OutOfPages):
        model(tokens(2, 1700), cache=cache)
    assert [cache.store.length(slot, layer) for slot in (0, 1) for layer in range(3)] == [200] * 6
    assert int(cache.get_seq_length()) == 200
    assert_near(*(model(tokens(2, 5), cache=each).logits for each in (cache, host)))


@pytest.mark.parametrize("before", [0, 70])
def test_a_refused_prompt(before, new_caches):
    """One of two sequences has it then, and the other has not: nothing but reset() helps."""
    model = tiny_model()
    host, cache = new_caches(model)
    if before:
        model(tokens(2, before), cache=cache)
    with NaNKey(model, 1, 30), pytest.raises(ValueError, match="nan"):
        model(tokens(2, 150), cache=cache)
    assert [cache.store.length(slot) for slot in (0, 1)] == [before + 150, before]
    for call in (lambda: model(tokens(2, 1), cache=cache), lambda: cache.crop(-1)):
        with pytest.raises(ValueError, match=r"reset\(\) the cache"):
            call()
    cache.reset()
    for length in (150, 1):
        expected, actual = (model(tokens(2, length), cache=each).logits for each in (host, cache))
        assert_near(actual, expected)


def test_a_refused_step(new_caches):
    """Known when verify() looks."""
    model = tiny_model()
    _, cache = new_caches(model)
    model(tokens(2, 60), cache=cache)
    with NaNKey(model, 1, 0):
        logits = model(tokens(2, 1), cache=cache).logits
    assert logits[1].isnan().all() and not logits[0].isnan().any()
    with pytest.raises(ValueError, match="nan"):
        cache.verify()
    with pytest.raises(ValueError, match=r"reset\(\) the cache"):
        model(tokens(2, 1), cache=cache)
    cache.reset()
    cache.verify()
    assert not model(tokens(2, 60), cache=cache).logits.isnan().any()


@pytest.mark.parametrize("part", ["append", "prepare"])
def test_an_error_in_a_layer(part, new_caches, monkeypatch):
    """Of the device, say: layers before have the prompt."""
    model = tiny_model()
    _, cache = new_caches(model)
    working = getattr(cache._on_device.core, part)
    calls = iter(range(100))

    def fails(*arguments):
        if next(calls) == 1:
            raise RuntimeError("the device is gone")
        return working(*arguments)

    monkeypatch.setattr(cache._on_device.core, part, fails)
    with pytest.raises(RuntimeError, match="the device is gone"):
        model(tokens(2, 100), cache=cache)
    with pytest.raises(ValueError, match=r"reset\(\) the cache"):
        model(tokens(2, 1), cache=cache)
    cache.reset()
    assert not model(tokens(2, 100), cache=cache).logits.isnan().any()


@pytest.mark.parametrize("mask", [False, True])
def test_compiled(mask, new_caches):
    """One graph for all steps of one cache; the columns that it counts are known to calls outside."""
    torch._dynamo.reset()
    model = tiny_model()
    host, cache = new_caches(model)
    counter = CompileCounterWithBackend("aot_eager")
    forward = torch.compile(model, backend=counter, fullgraph=True)
    inputs, attention_mask = left_padded([PROMPT, 70])
    options = [{"attention_mask": attention_mask} if mask else {}] * 2
    for each, given in zip((host, cache), options):
        model(inputs, cache=each, **given)
    for index in range(4):
        attention_mask = torch.cat([attention_mask, attention_mask[:, -1:]], 1)
        given = {"attention_mask": attention_mask} if mask else {}
        expected = model(tokens(2, 1, seed=index), cache=host, **given).logits
        actual = forward(tokens(2, 1, seed=index), cache=cache, **given).logits
        torch.testing.assert_close(actual, expected, atol=2e-4, rtol=2e-4)
    # A mask that grows is of another shape once; then its length is a symbol.
    assert counter.frame_count == (2 if mask else 1)
    assert int(cache.get_seq_length()) == PROMPT + 4
    cache.crop(-3)
    assert [cache.store.length(slot) for slot in (0, 1)] == [PROMPT + 1, 71 if mask else PROMPT + 1]
    torch._dynamo.reset()


def test_the_number_of_a_device(monkeypatch):
    """torch's current one; the first where torch is one without CUDA."""
    monkeypatch.setattr(_core, "cuda_unavailable_reason", lambda: "")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    for available, number in ((True, 3), (False, 0)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        assert device_index("cuda") == number
        assert (device_index("cuda:1"), device_index("cpu")) == (1, None)


def test_the_plan_is_the_devices(on_stand_in, monkeypatch):
    options = {"context": 300, "batch": 2}
    host, planned = (innerkv.plan(2, 2, 64, device=device, **options) for device in ("cpu", "cuda:1"))
    assert planned.pool_bytes == 77 != host.pool_bytes
    assert planned.sequence_bytes == host.sequence_bytes
    with pytest.raises(ValueError, match='"cpu", "cuda" and "cuda:N"'):
        innerkv.plan(2, 2, 64, device="mps", **options)
    cache = InnerKVCache(tiny_model().config, max_length=300)
    monkeypatch.setattr(cache_module, "has_own_memory", lambda device: True)
    assert cache.plan(batch=2).pool_bytes != 77
    cache.device = torch.device("cpu")  # which is a device here
    assert cache.plan(batch=2).pool_bytes == 77


def test_the_cache_itself(on_stand_in, monkeypatch):
    """Padding, chunks and results of innerkv.Cache on a device."""
    monkeypatch.setattr(innerkv.cache, "device_index", lambda device: {"cpu": None, "cuda": 0}[device])
    host, cache = (innerkv.Cache(1, 2, 64, max_tokens=2000, max_sequences=3, max_append=128, device=device)
                   for device in ("cpu", "cuda"))
    for each in (host, cache):
        assert [each.create() for _ in range(3)] == [0, 1, 2]
    cache.reserve(0, 600)
    cache.reserve(1, 600)
    cache.reserve(2, 600)
    generator = torch.Generator().manual_seed(1)
    for spans in ([(0, 100), (60, 128), (20, 90)], None, [(1, 3), (0, 0), (0, 1)]):
        width = 128 if spans is None else max(last for _, last in spans)
        k, v = (torch.randn(3, width, 2, 64, generator=generator) for _ in range(2))
        q = torch.randn(3, width, 4, 64, generator=generator)
        results = []
        for each in (host, cache):
            each.append(0, [0, 1, 2], k, v, q, spans=spans)
            results.append(each.attend(0, [0, 1, 2], q, spans=spans, log_sum_exp=True))
        for actual, expected in zip(*reversed(results)):
            torch.testing.assert_close(actual, expected)
    assert [cache.length(sequence) for sequence in (0, 1, 2)] == [host.length(sequence) for sequence in (0, 1, 2)]
    cache.append(0, [0, 1, 2], *(torch.randn(3, 300, heads, 64) for heads in (2, 2, 4)))
    assert cache.length(2) == host.length(2) + 300
    with pytest.raises(ValueError, match="max_append"):
        cache.attend(0, [0, 1, 2], torch.randn(3, 300, 4, 64))
    with pytest.raises(ValueError, match="array of 1 sequences for sequences .0, 1"):
        cache.append(0, [0, 1], k[:1], v[:1])
    lengths = [cache.length(sequence) for sequence in (0, 1, 2)]
    with pytest.raises(innerkv.OutOfPages):
        cache.append(0, [0, 1, 2], *(torch.randn(3, 2000, heads, 64) for heads in (2, 2, 4)))
    assert [cache.length(sequence) for sequence in (0, 1, 2)] == lengths
    windowed = innerkv.Cache(2, 2, 64, sliding_window=[50, None], device="cuda")
    windowed.create()
    windowed.append(0, [0], k[:1], v[:1])
    with pytest.raises(ValueError, match="layer 2"):
        windowed.attend(2, [0], k[:1])
    with pytest.raises(ValueError, match="follow each other"):
        cache.append(0, [0, 2], k[:2], v[:2])
    with pytest.raises(ValueError, match="0 <= first <= last <= "):
        cache.append(0, [0], k[:1], v[:1], spans=[(2, 1)])
    with pytest.raises(ValueError, match="not there on a device"):
        cache.settle(0)
    cache.verify()
