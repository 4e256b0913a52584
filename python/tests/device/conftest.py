# SPDX-License-Identifier: Apache-2.0
"""Tests that need a CUDA device; elsewhere each is skipped and says why."""

import sys
from pathlib import Path

import pytest
import torch

from innerkv import _core

sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("torch", "core")]  # tiny.py, reference.py


def pytest_collection_modifyitems(items):
    reason = _core.cuda_unavailable_reason()
    if not reason and not torch.cuda.is_available():
        reason = "torch finds no CUDA device"
    if reason:
        for item in items:
            if item.path.parent == Path(__file__).parent:
                item.add_marker(pytest.mark.skip(reason=f"no CUDA device: {reason}"))


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # an error of a test's last launches is this test's
