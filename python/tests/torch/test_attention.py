# SPDX-License-Identifier: Apache-2.0
"""attn_implementation="innerkv" where no InnerKVCache holds the keys: encoders, soft caps, forgotten caches."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from tiny import COMMON, tokens
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache

from innerkv.transformers import InnerKVCache, attention_forward

ENCODER = SimpleNamespace(is_causal=False)


def heads(*counts, length=40):
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(2, count, length, 64, generator=generator) for count in counts]


@pytest.mark.parametrize(("module", "options"), [(ENCODER, {}), (SimpleNamespace(), {"is_causal": False})])
def test_a_module_that_attends_both_ways(module, options):
    q, k, v = heads(4, 2, 2)
    expected = scaled_dot_product_attention(q, k, v, enable_gqa=True)
    out, _ = attention_forward(module, q, k, v, None, **options)
    torch.testing.assert_close(out.transpose(1, 2), expected)
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[1, 25:] = False
    out, _ = attention_forward(module, q, k, v, mask, **options)
    expected = scaled_dot_product_attention(q[1:], k[1:, :, :25], v[1:, :, :25], enable_gqa=True)
    torch.testing.assert_close(out.transpose(1, 2)[1:], expected)


def test_an_encoder_of_images():
    config = transformers.SiglipVisionConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=2,
                                             num_attention_heads=2, image_size=32, patch_size=8)
    torch.manual_seed(1)
    model = transformers.SiglipVisionModel(config).eval()
    image = torch.randn(1, 3, 32, 32)
    outs = []
    for implementation in ("sdpa", "innerkv"):
        model.set_attn_implementation(implementation)
        outs.append(model(image).last_hidden_state)
    torch.testing.assert_close(outs[1], outs[0])


def test_a_cache_whose_layer_attends_both_ways():
    config = transformers.LlamaConfig(**COMMON, head_dim=64)
    config._attn_implementation = "innerkv"
    cache = InnerKVCache(config)
    q, k, v = heads(4, 2, 2)
    k, v = cache.update(k, v, 0)
    with pytest.raises(ValueError, match="SimpleNamespace attends both ways"):
        attention_forward(ENCODER, q, k, v, None)


def gemma2():
    config = transformers.Gemma2Config(**COMMON | {
        "head_dim": 64, "sliding_window": 70, "attn_logit_softcapping": 1.5, "query_pre_attn_scalar": 40})
    torch.manual_seed(5)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def test_soft_caps():
    """Of a prompt's logits as of those of steps, with a cache and without, against transformers' own."""
    model, inputs = gemma2(), tokens(2, 300)
    mask = torch.ones_like(inputs)
    mask[1, :110] = 0
    options = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    model.set_attn_implementation("eager")
    expected = model(inputs, **options).logits[mask == 1]
    model.config.attn_logit_softcapping = None
    for layer in model.model.layers:
        layer.self_attn.attn_logit_softcapping = None
    assert (model(inputs, **options).logits[mask == 1] - expected).abs().max() > 0.1  # the cap matters
    for layer in model.model.layers:
        layer.self_attn.attn_logit_softcapping = 1.5
    model.set_attn_implementation("innerkv")
    alone = model(inputs, use_cache=False, **options).logits[mask == 1]
    torch.testing.assert_close(alone, expected, atol=1e-4, rtol=1e-4)
    cache = InnerKVCache(model.config, "small")  # a prompt's tokens attend to each other unquantized
    prompt = model(inputs, cache=cache, **options).logits[mask == 1]
    torch.testing.assert_close(prompt, expected, atol=1e-4, rtol=1e-4)
    model.set_attn_implementation("eager")
    theirs = DynamicCache(config=model.config)
    model(inputs[:1], cache=theirs)
    step = model(tokens(1, 1), cache=theirs).logits
    model.set_attn_implementation("innerkv")
    ours = InnerKVCache(model.config, "f16")
    model(inputs[:1], cache=ours)
    torch.testing.assert_close(model(tokens(1, 1), cache=ours).logits, step, atol=0.02, rtol=0.02)


def test_a_cache_that_a_model_does_not_know():
    """What models before transformers 5.24 do with `cache=`: they hand it on as they do what they do not know."""
    config = transformers.LlamaConfig(**COMMON, head_dim=64)
    with pytest.raises(ValueError, match='knows no argument "cache".*past_key_values='):
        attention_forward(SimpleNamespace(), *heads(4, 2, 2), None, cache=InnerKVCache(config))
