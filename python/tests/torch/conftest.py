# SPDX-License-Identifier: Apache-2.0
import runpy
import sys
from pathlib import Path

import pytest
import stand_in
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))  # reference.py

torch.set_num_threads(1)  # the models are tiny


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script of python/ as if from the command line, and returns what it prints; in this process, which has
    torch already."""

    def call(script, *arguments):
        monkeypatch.syspath_prepend(script.parent)  # as Python does
        monkeypatch.setattr(sys, "argv", [script.name, *map(str, arguments)])
        runpy.run_path(str(script), run_name="__main__")
        return capsys.readouterr().out

    return call


@pytest.fixture
def on_stand_in(monkeypatch):
    return stand_in.opener(monkeypatch)
