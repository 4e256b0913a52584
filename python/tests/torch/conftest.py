# SPDX-License-Identifier: Apache-2.0
import pytest
import stand_in
import torch

torch.set_num_threads(1)  # the models are tiny


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def on_stand_in(monkeypatch):
    return stand_in.opener(monkeypatch)
