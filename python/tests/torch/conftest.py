# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

torch.set_num_threads(1)  # the models are tiny


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield
