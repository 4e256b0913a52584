# SPDX-License-Identifier: Apache-2.0
"""The scripts of python/bench run and report what they say; how fast anything is, is not tested."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from tiny import save_tiny_model

import innerkv

BENCH = Path(__file__).parents[2] / "bench"
ALICE = BENCH.parents[1] / "tests" / "data" / "alice-opening.txt"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script as if from the command line; in this process, which has torch already."""
    threads = innerkv.get_num_threads(), torch.get_num_threads()

    def call(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(BENCH / name), run_name="__main__")
        return capsys.readouterr().out

    yield call
    innerkv.set_num_threads(threads[0])
    torch.set_num_threads(threads[1])


def test_overhead(run):
    results = json.loads(run("overhead.py", "--layers", 4, "--rounds", 70, "--json"))
    assert results.keys() == {"layer", "call"}
    for result in results.values():
        assert 0 < result["least_us"] <= result["median_us"]
    assert results["call"]["least_us"] < results["layer"]["least_us"]
    assert "microseconds" in run("overhead.py", "--rounds", 4)


def test_caches(run, tmp_path):
    model = save_tiny_model(tmp_path)
    arguments = [model, "--text", ALICE, "--context", "300,400", "--tokens", 3]
    report = json.loads(run("caches.py", *arguments, "--json"))
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
    lines = run("caches.py", *arguments, "--cache", "dynamic,innerkv:base").splitlines()
    assert len(lines) == 2 + 4 and lines[0].count("|") == lines[-1].count("|")
    with pytest.raises(ValueError, match="kivi.*there are dynamic"):
        run("caches.py", *arguments, "--cache", "dynamic,kivi:2")
    with pytest.raises(SystemExit, match="tokens are needed|are needed"):
        run("caches.py", model, "--text", ALICE, "--context", 10**6)
