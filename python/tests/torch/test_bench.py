# SPDX-License-Identifier: Apache-2.0
"""The scripts of python/bench run and report what they say; how fast anything is, is not tested."""

import functools
import json
import runpy
from pathlib import Path

import datasets
import lm_eval
import pytest
import torch
from tiny import save_tiny_model, tiny_model, tokens

import innerkv
from innerkv.transformers import InnerKVCache
from innerkv.transformers.device import CHUNK

BENCH = Path(__file__).parents[2] / "bench"
ALICE = BENCH.parents[1] / "tests" / "data" / "alice-opening.txt"


@pytest.fixture(autouse=True)
def same_threads():
    threads = innerkv.get_num_threads(), torch.get_num_threads()
    yield
    innerkv.set_num_threads(threads[0])
    torch.set_num_threads(threads[1])


def test_overhead(run):
    results = json.loads(run(BENCH / "overhead.py", "--layers", 4, "--rounds", 70, "--json"))
    assert results.keys() == {"layer", "call"}
    for result in results.values():
        assert 0 < result["least_us"] <= result["median_us"]
    assert "microseconds" in run(BENCH / "overhead.py", "--rounds", 4)


def test_caches(run, tmp_path):
    model = save_tiny_model(tmp_path)
    arguments = [model, "--text", ALICE, "--context", "300,400", "--tokens", 3]
    report = json.loads(run(BENCH / "caches.py", *arguments, "--json"))
    results = {(result["name"], result["context"]): result for result in report["results"]}
    names = ["dynamic", "static", "hqq:4", "quanto:4", "innerkv:f16", "innerkv:base", "innerkv:small"]
    assert list(results) == [(name, context) for context in (300, 400) for name in names]
    layers, kv_heads, head_dim = 3, 2, 64
    for context in (300, 400):
        by_name = {name: results[name, context] for name in names}
        assert by_name["dynamic"]["cache_bytes"] == (context + 3) * layers * kv_heads * head_dim * 2 * 4
        assert by_name["static"]["cache_bytes"] == by_name["dynamic"]["cache_bytes"]
        assert 1.8 < by_name["dynamic"]["cache_bytes"] / by_name["innerkv:f16"]["cache_bytes"] <= 2  # pages are whole
        sizes = [by_name[f"innerkv:{preset}"]["cache_bytes"] for preset in ("f16", "base", "small")]
        assert sizes == sorted(sizes, reverse=True)
        divergence = {name: result["kld_mean"] for name, result in by_name.items()}
        assert divergence["dynamic"] == 0 and divergence["static"] < 1e-6
        assert divergence["static"] < divergence["innerkv:f16"] < divergence["innerkv:base"]
        for result in by_name.values():
            assert 0 < result["least_ms"] <= result["median_ms"]
            assert result["peak_bytes"] >= result["cache_bytes"]
    lines = run(BENCH / "caches.py", *arguments, "--cache", "dynamic,innerkv:base").splitlines()
    assert len(lines) == 2 + 4 and lines[0].count("|") == lines[-1].count("|")
    with pytest.raises(ValueError, match="kivi.*there are dynamic"):
        run(BENCH / "caches.py", *arguments, "--cache", "dynamic,kivi:2")
    with pytest.raises(SystemExit, match="tokens are needed|are needed"):
        run(BENCH / "caches.py", model, "--text", ALICE, "--context", 10**6)


def test_lm_eval_presets(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the script finds the project by itself
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    save_tiny_model("model")
    short = functools.partial(lm_eval.simple_evaluate, gen_kwargs={"max_gen_toks": 8}, bootstrap_iters=0)
    monkeypatch.setattr(lm_eval, "simple_evaluate", short)
    script = BENCH / "lm_eval_presets.py"
    lines = run(script, "model", "--preset", "small", "--limit", 1).splitlines()
    assert len(lines) == 3 and {line.count("|") for line in lines} == {5}
    name, *cells = (cell.strip() for cell in lines[2].strip("|").split("|"))
    passages, bits, right = (float(cell.split()[0]) for cell in cells)
    assert name == "`small`" and passages in (0, 100) and 0 < bits < 20 and right in (0, 100)


def test_the_history_of_device(on_stand_in, monkeypatch):
    """What device.py fills a cache with is what a model's calls would have left."""
    bench = runpy.run_path(str(BENCH / "device.py"))
    model = tiny_model()
    host, filled = (InnerKVCache(model.config, "base", max_length=500) for _ in range(2))
    keys, values = torch.randn(2, 2, 2, 300, 64, generator=torch.Generator().manual_seed(1))
    on_stand_in(filled, 2)
    monkeypatch.setattr(filled, "open", lambda keys: None)  # it is
    bench["fill"](filled, keys, values)
    host.open(keys)
    for layer in host.layers:
        for part in zip(*(states.split(CHUNK, 2) for states in (keys, values))):
            host.append(layer, part[0], *part, None)
        layer.columns.add(300, None)
    assert int(filled.get_seq_length()) == 300
    for length in (1, 5, 1):
        expected, actual = (model(tokens(2, length), cache=each).logits for each in (host, filled))
        torch.testing.assert_close(actual, expected, atol=2e-4, rtol=2e-4)
    filled.crop(-7)
    assert [filled.store.length(slot) for slot in (0, 1)] == [300, 300]
    for name, kind in (("dynamic", "DynamicCache"), ("static", "StaticCache"), ("innerkv:base+compile", "InnerKVCache")):
        assert type(bench["new_cache"](name, model.config, 100)).__name__ == kind
    with pytest.raises(ValueError, match="kivi.*there are dynamic"):
        bench["new_cache"]("kivi:2", model.config, 100)
    result = {"name": "static", "batch": 2, "context": 100} | dict.fromkeys(bench["FIELDS"], 1e9)
    head, rule, row = bench["table"]([result])
    assert head.count("|") == rule.count("|") == row.count("|")
