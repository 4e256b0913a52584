# SPDX-License-Identifier: Apache-2.0
"""innerkv.Cache on torch's tensors, against torch's own attention."""

import numpy as np
import pytest
import torch
from reference import relative_error
from torch.nn.functional import scaled_dot_product_attention

import innerkv


def tensors(*shape, dtype=torch.float32):
    """k, v [sequences, tokens, 2, head_dim] and q with six heads."""
    generator = torch.Generator().manual_seed(2)
    sequences, count, head_dim = shape
    return [torch.randn(sequences, count, heads, head_dim, generator=generator).to(dtype)
            for heads in (2, 2, 6)]


def torch_attention(k, v, q):
    k, v, q = (x.transpose(1, 2).double() for x in (k, v, q))
    out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return out.transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_types(dtype):
    k, v, q = tensors(2, 50, 64, dtype=dtype)
    cache = innerkv.Cache(1, 2, 64, "f16", max_sequences=2)
    sequences = [cache.create(), cache.create()]
    cache.append(0, sequences, k, v, q)
    out, sums = cache.attend(0, sequences, q, log_sum_exp=True)
    assert isinstance(out, torch.Tensor) and out.dtype == dtype and out.shape == q.shape
    assert sums.dtype == torch.float32 and sums.shape == q.shape[:3]
    assert relative_error(out.double(), torch_attention(k, v, q)) < (4e-3 if dtype == torch.bfloat16 else 6e-4)


def test_rounding_to_bfloat16_is_torchs():
    """One cached token: its value is the output, bit for bit what torch makes of the fp16 that is stored."""
    v = torch.randn(1, 64, generator=torch.Generator().manual_seed(1)).half().float().view(1, 1, 1, 64)
    cache = innerkv.Cache(1, 1, 64, "f16")
    sequence = cache.create()
    cache.append(0, [sequence], torch.zeros_like(v), v)
    out = cache.attend(0, [sequence], torch.zeros_like(v).bfloat16())
    assert torch.equal(out, v.bfloat16())


def test_strides_of_transformers():
    k, v, q = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors(2, 50, 80))
    assert not q.is_contiguous()
    cache = innerkv.Cache(1, 2, 80, "f16", max_sequences=2)
    sequences = [cache.create(), cache.create()]
    cache.append(0, sequences, k, v)
    assert relative_error(cache.attend(0, sequences, q).double(), torch_attention(k, v, q)) < 6e-4


def test_tensors_that_record_gradients():
    k, v, q = (x.requires_grad_() for x in tensors(1, 40, 64))
    cache = innerkv.Cache(1, 2, 64, "f16")
    sequence = cache.create()
    with torch.enable_grad():
        cache.append(0, sequence, k[0], v[0])
        out = cache.attend(0, sequence, q[0])
    assert not out.requires_grad
    assert relative_error(out.double(), torch_attention(k, v, q)[0]) < 6e-4


def test_rows_that_lie_otherwise():
    """One head in memory for both, channels apart: read as on a device, where they are made dense."""
    k, v, q = tensors(1, 40, 64)
    k = k[:, :, :1].expand(-1, -1, 2, -1)
    apart = v.transpose(1, 3).contiguous().transpose(1, 3)
    assert 0 in k.stride() and apart.stride(3) != 1
    cache = innerkv.Cache(1, 2, 64, "f16")
    sequence = cache.create()
    cache.append(0, [sequence], k, apart)
    assert relative_error(cache.attend(0, [sequence], q).double(), torch_attention(k, v, q)) < 6e-4


def test_codecs():
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    for dtype in (torch.float32, torch.bfloat16):
        given = x.to(dtype)
        result = innerkv.quantize(given, 4)
        again = innerkv.quantize(given.float().numpy(), 4)
        np.testing.assert_array_equal(innerkv.dequantize(result), innerkv.dequantize(again))
    page = innerkv.quantize_page(x[:1].repeat(32, 1), x[:1].repeat(32, 1))
    k, _ = innerkv.dequantize_page(torch.from_numpy(page), 64)
    assert isinstance(k, torch.Tensor) and k.shape == (32, 64)
