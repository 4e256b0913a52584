# SPDX-License-Identifier: Apache-2.0
"""What the package promises beside its functions, and its plans of memory."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import innerkv
from innerkv import _core

FOLDER = Path(innerkv.__file__).parent


def test_import_does_without_torch():
    code = "import sys, innerkv; innerkv.Cache(1, 1, 64); print('torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert printed.stdout.strip() == "False"


def test_version_is_the_projects():
    text = (Path(__file__).parents[3] / "CMakeLists.txt").read_text(encoding="utf-8")
    assert re.search(r"project\(innerkv\s+VERSION ([0-9.]+)", text)[1] == innerkv.__version__


def test_everything_public_is_documented():
    for name in innerkv.__all__:
        if name == "__version__":
            continue
        thing = getattr(innerkv, name)
        assert inspect.getdoc(thing), name
        if inspect.isclass(thing):
            for member, function in inspect.getmembers(thing, inspect.isfunction):
                if not member.startswith("_"):
                    assert inspect.getdoc(function), f"{name}.{member}"


def test_stubs_name_what_the_module_has():
    stub = (FOLDER / "_core.pyi").read_text(encoding="utf-8")
    for name in vars(_core):
        if not name.startswith("_"):
            assert re.search(rf"^(class|def) {name}\b|^{name}\b", stub, re.MULTILINE), name
    assert (FOLDER / "py.typed").exists()


def test_presets_are_the_documented_ones():
    table = (Path(__file__).parents[3] / "docs" / "format.md").read_text(encoding="utf-8")
    for preset in innerkv.presets():
        assert f"| `{preset.name}` |" in table
    assert {p.name: p.bits_per_value for p in innerkv.presets()}["base"] == 3.5


@pytest.mark.parametrize("preset", ["base", "k8v8", "f16"])
@pytest.mark.parametrize("window", [None, 300])
def test_a_plan_is_what_a_cache_takes(rng, preset, window):
    planned = innerkv.plan(2, 2, 64, preset, context=777, sliding_window=window)
    cache = innerkv.Cache(2, 2, 64, preset, sliding_window=window)
    sequence = cache.create()
    rows = rng.standard_normal((777, 2, 64)).astype(np.float32)
    for token in range(777):
        for layer in range(2):
            cache.append(layer, sequence, rows[token : token + 1], rows[token : token + 1])
    assert cache.nbytes == planned.sequence_bytes
    assert planned.pool_bytes >= planned.sequence_bytes
    if window is None:
        assert planned.f16_sequence_bytes == 2 * 2 * 2 * 64 * 777 * 2


def test_base_is_four_times_smaller_at_long_contexts():
    assert innerkv.plan(30, 3, 64, context=8192).ratio > 4
    assert innerkv.Cache.plan(32, 8, 128, "k4v4", context=32768, batch=8).ratio > 3.3


def test_what_a_plan_refuses():
    with pytest.raises(ValueError, match="tiny.*base"):
        innerkv.plan(1, 1, 64, "tiny", context=100)
    with pytest.raises(ValueError, match="-5 tokens"):
        innerkv.plan(1, 1, 64, context=-5)
    if "this build has no CUDA" in _core.cuda_unavailable_reason():
        with pytest.raises(RuntimeError, match="this build has no CUDA"):
            innerkv.plan(1, 1, 64, context=100, device="cuda")
