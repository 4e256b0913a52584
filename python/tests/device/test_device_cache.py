# SPDX-License-Identifier: Apache-2.0
"""innerkv.Cache on a CUDA device, against the one on the CPU and the definition of attention."""

import gc
import threading

import numpy as np
import pytest
import torch
from reference import attention, relative_error

import innerkv

LAYERS, KV_HEADS, Q_HEADS, DIM = 2, 2, 4, 64
BOUND = 0.02  #: of int8 queries and uint8 probabilities, as in tests/attention


class Both:
    """A cache on each side that get the same rows."""

    def __init__(self, preset="base", batch=2, dtype=torch.float32, dim=DIM, seed=1, **options):
        options = {"max_tokens": 900 * batch, "max_sequences": batch, "max_append": 200} | options
        self.batch, self.dtype, self.dim = batch, dtype, dim
        self.host = innerkv.Cache(LAYERS, KV_HEADS, dim, preset, **options)
        self.device = innerkv.Cache(LAYERS, KV_HEADS, dim, preset, device="cuda", **options)
        self.sequences = [self.host.create() for _ in range(batch)]
        assert [self.device.create() for _ in range(batch)] == self.sequences
        self.host_sequences = list(self.sequences)
        self.generator = torch.Generator().manual_seed(seed)

    def rows(self, tokens):
        shape = self.batch, tokens, KV_HEADS, self.dim
        k, v = (torch.randn(shape, generator=self.generator) + 0.3 for _ in range(2))
        q = torch.randn(self.batch, tokens, Q_HEADS, self.dim, generator=self.generator)
        return [rows.to(self.dtype) for rows in (q, k, v)]

    def step(self, tokens, spans=None):
        """Outputs of the last layer on the host, in fp32 arithmetic on the very codes, and on the device."""
        for layer in range(LAYERS):
            q, k, v = self.rows(tokens)
            self.host.append(layer, self.host_sequences, k, v, q, spans=spans)
            self.device.append(layer, self.sequences, k.cuda(), v.cuda(), q.cuda(), spans=spans)
            expected = self.host.attend(layer, self.host_sequences, q, spans=spans, exact=True, log_sum_exp=True)
            actual = self.device.attend(layer, self.sequences, q.cuda(), spans=spans, log_sum_exp=True)
        return [each.float().cpu() for each in expected], [each.float().cpu() for each in actual]

    def check(self, tokens, spans=None):
        expected, actual = self.step(tokens, spans)
        assert relative_error(actual[0], expected[0]) < BOUND
        torch.testing.assert_close(actual[1], expected[1], atol=0.03, rtol=0)

    def check_pages(self):
        self.device.verify()
        for layer in range(LAYERS):
            for sequence, of_host in zip(self.sequences, self.host_sequences):
                assert self.device.length(sequence, layer) == self.host.length(of_host, layer)
                expected = self.host.pages(layer, of_host)
                assert np.array_equal(self.device.pages(layer, sequence), expected)
        return len(expected)


@pytest.mark.parametrize("preset", [preset.name for preset in innerkv.presets()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_same_pages_and_outputs(preset, dtype):
    both = Both(preset, dtype=dtype)
    for tokens in (200, 150, 1, 3, 60, 1, 1):
        both.check(tokens)
    assert (both.check_pages() > 0) == (preset != "f16")


@pytest.mark.parametrize("dim", [80, 128, 192, 256])
def test_head_dimensions(dim):
    both = Both(dim=dim)
    for tokens in (200, 200, 1, 1):
        both.check(tokens)
    assert both.check_pages() > 0


def test_against_the_definition():
    """Nothing is quantized yet."""
    both = Both("k8v8", batch=1)
    q, k, v = both.rows(100)
    both.device.append(0, 0, k[0].cuda(), v[0].cuda(), q[0].cuda())
    out, sums = both.device.attend(0, 0, q[0].cuda(), log_sum_exp=True, soft_cap=3.0, sliding_window=40)
    expected, expected_sums = attention(q[0], k[0], v[0], soft_cap=3.0, sliding_window=40)
    assert relative_error(out.cpu(), expected) < 0.002
    np.testing.assert_allclose(sums.cpu(), expected_sums, atol=0.01)


def test_longer_appends_than_one_launch_takes():
    both = Both()
    q, k, v = both.rows(700)
    for first in range(0, 700, 200):
        rows = [each[:, first : first + 200] for each in (k, v, q)]
        both.host.append(0, both.sequences, *rows)
        both.host.append(1, both.sequences, *rows)
    for layer in (0, 1):
        both.device.append(layer, both.sequences, k.cuda(), v.cuda(), q.cuda())
    assert both.check_pages() > 10


def test_sliding_windows():
    both = Both(sliding_window=[150, None])
    for tokens in (200, 200, 1, 90, 1):
        both.check(tokens)
    both.check_pages()


def test_padding():
    both = Both(batch=3)
    for spans in ([(0, 200), (150, 200), (30, 170)], [(0, 1), (0, 1), (0, 0)], [(3, 100), (0, 0), (40, 90)]):
        both.check(max(last for _, last in spans), spans)
    both.check(1)
    both.check_pages()


def test_some_sequences():
    both = Both(batch=3)
    for sequences in ([1, 2], [0], [1]):
        q, k, v = (rows[sequences] for rows in both.rows(130))
        both.host.append(0, sequences, k, v, q)
        both.device.append(0, sequences, k.cuda(), v.cuda(), q.cuda())
        expected = both.host.attend(0, sequences, q, exact=True)
        assert relative_error(both.device.attend(0, sequences, q.cuda()).cpu(), expected) < BOUND
    assert [both.device.length(sequence) for sequence in (0, 1, 2)] == [130, 260, 130]


def test_a_graph_is_right_while_the_context_grows():
    both = Both(dtype=torch.bfloat16)
    both.check(200)
    both.check(1)
    for sequence in both.sequences:
        both.device.reserve(sequence, 300)
    q, k, v = (rows.cuda() for rows in both.rows(1))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for layer in range(LAYERS):
            both.device.append(layer, both.sequences, k, v, q)
            out = both.device.attend(layer, both.sequences, q)
    for step in range(250):
        rows = both.rows(1)
        for static, new in zip((q, k, v), rows):
            static.copy_(new)
        graph.replay()
        for layer in range(LAYERS):
            both.host.append(layer, both.sequences, rows[1], rows[2], rows[0])
        if step % 50 == 0:
            expected = both.host.attend(LAYERS - 1, both.sequences, rows[0], exact=True)
            assert relative_error(out.float().cpu(), expected.float()) < BOUND
    assert both.check_pages() >= 9


def test_a_graph_without_pages_tells_afterwards():
    both = Both(batch=1, max_tokens=600)
    both.step(1)
    q, k, v = (rows.cuda() for rows in both.rows(1))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for layer in range(LAYERS):
            both.device.append(layer, 0, k[0], v[0], q[0])
        out = both.device.attend(0, 0, q[0])
    for _ in range(800):
        graph.replay()
    assert out.isnan().all()
    with pytest.raises(innerkv.OutOfPages, match=r"reserve\(\) them before"):
        both.device.verify()
    both.device.verify()


def test_appends_beside_a_graph():
    """Tokens that came in replays count where pages are taken for others."""
    both = Both(batch=2, max_tokens=1000)  # a share of 500
    both.check(200)
    both.check(1)  # what is captured has run
    both.device.reserve(0, 260)
    q, k, v = (rows.cuda() for rows in both.rows(1))
    one = [rows[0] for rows in (k, v, q)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for layer in range(LAYERS):
            both.device.append(layer, 0, *one)
    for _ in range(250):
        graph.replay()
    for layer in range(LAYERS):
        for _ in range(250):
            both.host.append(layer, 0, *(rows.cpu() for rows in one))
    rows = [each[0] for each in both.rows(100)]
    for layer in range(LAYERS):  # 551 tokens then
        both.host.append(layer, 0, rows[1], rows[2], rows[0])
        both.device.append(layer, 0, rows[1].cuda(), rows[2].cuda(), rows[0].cuda())
        expected = both.host.attend(layer, 0, rows[0], exact=True)
        assert relative_error(both.device.attend(layer, 0, rows[0].cuda()).cpu(), expected) < BOUND
    both.check_pages()


def test_an_append_that_does_not_fit_is_none():
    """Of as many parts as it would come in."""
    both = Both(batch=2, max_tokens=1200)
    both.check(200)
    q, k, v = (rows.cuda() for rows in both.rows(900))
    with pytest.raises(innerkv.OutOfPages):
        both.device.append(0, [0, 1], k, v, q)
    with pytest.raises(innerkv.OutOfPages, match="tokens asked of one sequence.*max_tokens = 1200"):
        both.device.append(0, 0, *(torch.cat([rows[0]] * 2) for rows in (k, v, q)))
    assert [both.device.length(sequence) for sequence in (0, 1)] == [200, 200]
    with pytest.raises(ValueError, match="900 queries.*at most max_append, 200"):
        both.device.attend(0, [0, 1], q)
    both.check(1)
    both.check_pages()


def test_streams():
    """Two caches, each on a stream and a thread of its own."""
    alone = [Both(seed=seed) for seed in (1, 2)]
    together = [Both(seed=seed) for seed in (1, 2)]
    results = [None, None]

    def work(index, both):
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            results[index] = [both.step(tokens)[1] for tokens in (200, 130, 1, 1, 50)]

    threads = [threading.Thread(target=work, args=each) for each in enumerate(together)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for both, result in zip(alone, results):
        for actual, tokens in zip(result, (200, 130, 1, 1, 50)):
            for a, b in zip(actual, both.step(tokens)[1]):
                assert torch.equal(a, b)
    for both in together:
        both.check_pages()


def test_forks_go_on_apart():
    both = Both(batch=3)
    both.check(200)
    for each in (both.host, both.device):
        each.remove(1)
    both.host_sequences[1] = both.host.fork(0)
    assert both.device.fork(0) == 1
    both.check(150)
    both.check(1)
    both.check_pages()
    both.host.truncate(both.host_sequences[1], 345)
    both.device.truncate(1, 345)
    both.check(30)
    both.check_pages()
    with pytest.raises(ValueError, match="are in fp16"):
        both.device.truncate(1, 50)
    assert both.device.usage().quantized_pages > 0
    assert "cuda:0" in repr(both.device)


def test_truncate_is_of_all_or_none():
    both = Both(batch=2)
    both.check(100)
    q, k, v = (rows[1] for rows in both.rows(400))
    for layer in range(LAYERS):
        for first in (0, 200):
            both.host.append(layer, 1, *(rows[first : first + 200] for rows in (k, v, q)))
        both.device.append(layer, 1, k.cuda(), v.cuda(), q.cuda())
    with pytest.raises(ValueError, match="are in fp16"):
        both.device.truncate([0, 1], [90, 150])
    assert [both.device.length(sequence) for sequence in (0, 1)] == [100, 500]
    with pytest.raises(ValueError, match="1 lengths for 2 sequences"):
        both.device.truncate([0, 1], [90])
    for each in (both.host, both.device):
        each.truncate([0, 1], [90, 490])
    both.check(3)
    both.check_pages()


def test_sequences_that_are_not_there():
    both = Both(batch=3)
    both.check(100)
    q, k, v = (rows.cuda() for rows in both.rows(1))
    both.device.remove(1)
    for call in (lambda: both.device.append(0, [0, 1, 2], k, v, q), lambda: both.device.attend(0, [0, 1, 2], q)):
        with pytest.raises(ValueError, match="sequences 0 to 2: sequence 1 is not there"):
            call()
    with pytest.raises(ValueError, match="sequences 2147483647 to 2147483647; this cache has 0 to 2"):
        both.device.append(0, [2**31 - 1], k[:1], v[:1], q[:1])
    assert [both.device.length(sequence) for sequence in (0, 2)] == [100, 100]
    assert both.device.create() == 1
    for layer in range(LAYERS):
        both.device.append(layer, [0, 1, 2], k, v, q)
    assert [both.device.length(sequence, LAYERS - 1) for sequence in (0, 1, 2)] == [101, 1, 101]
    both.device.verify()


def test_values_that_are_not_finite():
    both = Both()
    both.check(200)
    q, k, v = both.rows(1)
    k[1, 0, 1, 5] = float("nan")
    for layer in range(LAYERS):
        both.device.append(layer, both.sequences, k.cuda(), v.cuda(), q.cuda())
        out = both.device.attend(layer, both.sequences, q.cuda())
    assert out[1].isnan().all() and not out[0].isnan().any()
    with pytest.raises(ValueError, match="slot 1, layer 0, K of token 200, head 1, channel 5 is nan"):
        both.device.verify()
    assert [both.device.length(sequence) for sequence in both.sequences] == [201, 200]
    both.device.truncate(0, 200)
    both.check(1)
    both.check_pages()


def test_refused():
    both = Both(max_tokens=600)
    q, k, v = both.rows(3)
    on_device = [rows.cuda() for rows in (k, v, q)]
    for call, message in [
        (lambda: both.device.append(0, [0, 1], k, v, q), "k is on the CPU; this cache is on cuda:0"),
        (lambda: both.device.append(0, [0, 1], on_device[0], v.numpy(), None), "v is on the CPU"),
        (lambda: both.host.append(0, [0, 1], *on_device), "k is on cuda:0; this cache is in main memory"),
        (lambda: both.device.append(0, [1, 0], *on_device), "follow each other"),
        (lambda: both.device.append(0, [1, 2], *on_device), "this cache has 0 to 1"),
        (lambda: both.device.append(2, [0, 1], *on_device), "layer 2"),
        (lambda: both.device.append(0, [0, 1], *(rows.long() for rows in on_device)), "elements of another type"),
        (lambda: both.device.append(0, [0, 1], *(rows[..., :32] for rows in on_device)), "head_dim 64"),
        (lambda: both.device.attend(0, [0, 1], on_device[2]), "those of the tokens of the last append"),
        (lambda: both.device.append(0, [0, 1], *(rows[:1] for rows in on_device)), "array of 1 sequences"),
        (lambda: both.device.attend(2, [0, 1], on_device[2]), "layer 2; this cache has layers 0 to 1"),
        (lambda: both.device.attend(0, [0, 1], on_device[2], exact=True), "not there on a device"),
        (lambda: both.device.settle(0), "not there on a device"),
        (lambda: innerkv.Cache(1, 1, 64, device="cuda:99"), "device 99"),
        (lambda: innerkv.Cache(1, 1, 64, device="mps"), '"cpu", "cuda" and "cuda:N"'),
        (lambda: innerkv.Cache(1, 1, 64, device="cuda", exact_prefill=True), "exact_prefill"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    both.check(3)
    with pytest.raises(innerkv.OutOfPages):
        both.device.reserve(0, 590)
        both.device.reserve(1, 590)
    both.check(200)
    both.check_pages()


@pytest.mark.parametrize("options", [{}, {"sliding_window": [150, None]}, {"preset": "f16"}])
def test_the_plan_is_what_is_taken(options):
    planned = innerkv.plan(LAYERS, KV_HEADS, DIM, context=30000, batch=2, device="cuda", **options)
    innerkv.Cache(1, 1, 64, device="cuda")  # kernels that the first cache loads
    gc.collect()
    before, _ = torch.cuda.mem_get_info()
    cache = innerkv.Cache(LAYERS, KV_HEADS, DIM, max_tokens=60000, max_sequences=2, device="cuda", **options)
    assert cache.nbytes == cache.usage().bytes_reserved == planned.pool_bytes
    taken = before - torch.cuda.mem_get_info()[0]
    assert abs(taken - planned.pool_bytes) <= 4 << 20  # the driver gives pieces of 2 MiB


def test_out_of_memory():
    """The message has the bytes; the device is usable afterwards, and so is torch on it."""
    with pytest.raises(MemoryError, match=r"allocating \d{14} bytes for a cache on device 0 failed: out of memory; \d"):
        innerkv.Cache(100, 64, 256, "k8v8", max_tokens=1 << 24, device="cuda")
    assert torch.ones(3, device="cuda").sum() == 3
    Both().check(100)


def test_cupy():
    cupy = pytest.importorskip("cupy")
    both = Both()
    q, k, v = both.rows(40)
    both.device.append(0, both.sequences, *(cupy.asarray(rows.numpy()) for rows in (k, v, q)))
    out = both.device.attend(0, both.sequences, cupy.asarray(q.numpy()))
    assert isinstance(out, cupy.ndarray)
    both.host.append(0, both.sequences, k, v, q)
    assert relative_error(out.get(), both.host.attend(0, both.sequences, q, exact=True)) < BOUND
