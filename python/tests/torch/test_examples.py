# SPDX-License-Identifier: Apache-2.0
"""Every example runs as its head says, on a small model that is made here."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import save_tiny_model

EXAMPLES = Path(__file__).parents[2] / "examples"
ALICE = EXAMPLES.parents[1] / "tests" / "data" / "alice-opening.txt"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def test_every_example_is_tested():
    tests = Path(__file__).read_text(encoding="utf-8")
    for example in EXAMPLES.glob("*.py"):
        assert f'run(EXAMPLES / "{example.name}"' in tests


def test_attention(run):
    out = run(EXAMPLES / "attention.py")
    assert "2000 tokens in" in out and "a fork of 1000 tokens: 1000" in out


def test_quantize(run):
    out = run(EXAMPLES / "quantize.py")
    assert len(out.splitlines()) == 10 and "3.5 bits a value" in out


def test_generate(run, model):
    out = run(EXAMPLES / "generate.py", model, "Alice")
    assert out.startswith("Alice") and "times smaller than f16" in out


def test_batch(run, model):
    out = run(EXAMPLES / "batch.py", model)
    assert "1 beams, 3 sequences" in out and "3 beams, 9 sequences" in out
    assert out.count("Once upon a time") == 2


def test_decode_graph(run, model):
    """Without a device it says so; on one python/tests/device runs what it shows."""
    if torch.cuda.is_available():
        assert "tokens a second" in run(EXAMPLES / "decode_graph.py", model)
    else:
        assert run(EXAMPLES / "decode_graph.py", model) == "skipped: torch finds no CUDA device\n"


def test_shared_prompt(run, model, tmp_path):
    text = tmp_path / "text"
    text.write_text(ALICE.read_text(encoding="utf-8")[:1200], encoding="utf-8")
    out = run(EXAMPLES / "shared_prompt.py", model, text)
    assert out.startswith("1200 tokens of the document") and "Who met whom? ->" in out


def test_assisted(run, model):
    lines = run(EXAMPLES / "assisted.py", model, model).splitlines()
    assert len(lines) == 2
    assert lines[0].split("]", 1)[1] == lines[1].split("]", 1)[1]


def test_tensor_parallel(run, model, monkeypatch):
    """Two processes with a KV head each say what one with both says, though they sum in another order."""
    text = ALICE.read_text(encoding="utf-8")[:400]  # a token a character: 128 of them are quantized
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": 0}.items():
        monkeypatch.setenv(name, str(value))
    one = run(EXAMPLES / "tensor_parallel.py", model, text)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               EXAMPLES / "tensor_parallel.py", model, text]
    two = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    line = re.compile(r"process (\d): (\d) of 2 KV heads, ([\d,]+) bytes: (\[.*\])")
    [(_, heads, nbytes, expected)] = line.findall(one)
    assert heads == "2" and len(set(json.loads(expected)[-40:])) > 5
    parts = sorted(line.findall(two))
    assert [part[:2] for part in parts] == [("0", "1"), ("1", "1")]
    for part in parts:
        assert part[3] == expected
        assert int(part[2].replace(",", "")) < 0.6 * int(nbytes.replace(",", ""))
