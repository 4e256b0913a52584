# SPDX-License-Identifier: Apache-2.0
"""What transformers may ask of InnerKVCache and does not get: a clear error instead of wrong text."""

import pytest
import torch
import transformers
from tiny import COMMON, tiny_config, tiny_model, tokens

from innerkv.transformers import InnerKVCache


@pytest.mark.parametrize(
    ("config", "arguments", "text"),
    [
        ("DeepseekV3Config", {}, "latent attention"),
        ("T5Config", {}, "cross-attention"),
        ("MllamaTextConfig", {"cross_attention_layers": [3, 8]}, "attend across to an encoder"),
        ("BertConfig", {"is_decoder": True, "add_cross_attention": True}, "attend across to an encoder"),
        ("MambaConfig", {}, "mamba"),
        ("Qwen3NextConfig", {}, "linear_attention"),
        ("LlamaConfig", COMMON | {"head_dim": 40}, "head dimension 40.*64, 80"),
    ],
)
def test_models(config, arguments, text):
    with pytest.raises(ValueError, match=text):
        InnerKVCache(getattr(transformers, config)(**arguments))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"preset": "q4"}, "q4.*base"),
        ({"prefill": "fast"}, 'fast.*"exact" and "decode"'),
        ({"layer_bits": [(3, 3)]}, "1 entries for 3 layers"),
        ({"max_length": 0}, "max_length 0; 1 and more"),
    ],
)
def test_options(options, text):
    with pytest.raises(ValueError, match=text):
        InnerKVCache(tiny_config("llama"), **options)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_another_attention(implementation):
    """It would see the new tokens alone, and nobody would know."""
    model = tiny_model(implementation=implementation)
    with pytest.raises(ValueError, match=f'"{implementation}".*set_attn_implementation'):
        model(tokens(1, 5), cache=InnerKVCache(model.config))


def test_a_cache_with_places_ahead():
    """Keys that have not come yet would count as history."""
    model = tiny_model()
    cache = transformers.StaticCache(config=model.config, max_cache_len=60)
    with torch.no_grad(), pytest.raises(ValueError, match="StaticCache.*sdpa.*InnerKVCache"):
        model(tokens(2, 40), past_key_values=cache)


def test_layers_out_of_step():
    """A call that fails between two layers; crop() takes back what the first have of it."""
    model = tiny_model()
    cache = InnerKVCache(model.config)
    inputs = tokens(1, 60)
    with torch.no_grad():
        model(inputs[:, :40], cache=cache)
        hook = model.model.layers[1].mlp.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(inputs[:, 40:50], cache=cache)
        hook.remove()
        with pytest.raises(ValueError, match="left 50 columns in the first layer and 40 in the last.*crop"):
            model(inputs[:, 40:50], cache=cache)
        cache.crop(-10)
        expected = model(inputs[:, :50], cache=InnerKVCache(model.config)).logits[:, -1]
        torch.testing.assert_close(model(inputs[:, 40:50], cache=cache).logits[:, -1], expected, rtol=0.01, atol=0.01)


def test_another_attention_behind_the_config():
    model = tiny_model()
    cache = InnerKVCache(model.config)
    key = torch.zeros(1, 2, 3, 64)
    cache.update(key, key, 0)
    with pytest.raises(ValueError, match="keys came to layer 0, and no attention for them"):
        cache.update(key, key, 1)
    expected = model(tokens(1, 40), use_cache=False).logits
    torch.testing.assert_close(model(tokens(1, 40), cache=cache).logits, expected)


def test_masks():
    model = tiny_model()
    gap = torch.tensor([[1, 1, 0, 1, 1]])
    with pytest.raises(ValueError, match="padding between the tokens of sequence 0"):
        model(tokens(1, 5), attention_mask=gap, cache=InnerKVCache(model.config))
    with pytest.raises(ValueError, match="4 dimensions"):
        model(tokens(1, 5), attention_mask=torch.zeros(1, 1, 5, 5), cache=InnerKVCache(model.config))


def test_attention_both_ways():
    model = tiny_model("gemma3", use_bidirectional_attention=True)
    with pytest.raises(ValueError, match="not causal"):
        model(tokens(1, 5), cache=InnerKVCache(model.config))


def test_another_batch():
    model = tiny_model()
    cache = InnerKVCache(model.config)
    model(tokens(2, 5), cache=cache)
    with pytest.raises(ValueError, match="a batch of 3 on a cache of 2 sequences"):
        model(tokens(3, 1), cache=cache)
    assert cache.get_seq_length() == 5


@pytest.mark.parametrize("projection", ["q_proj", "k_proj", "v_proj"])
def test_gradients(projection):
    """Of one of the three alone too."""
    model = tiny_model().requires_grad_(False)
    getattr(model.model.layers[0].self_attn, projection).requires_grad_(True)
    with torch.enable_grad(), pytest.raises(ValueError, match="no_grad"):
        model(tokens(1, 5), cache=InnerKVCache(model.config))


def test_the_call_after_a_refusal():
    """Goes on where the cache was."""
    model = tiny_model(attention_dropout=0.5)
    cache, fresh = (InnerKVCache(model.config) for _ in range(2))
    for each in (cache, fresh):
        model(tokens(1, 40), cache=each)
    with torch.enable_grad(), pytest.raises(ValueError, match="no_grad"):
        model(tokens(1, 5), cache=cache)
    model.train()
    with pytest.raises(ValueError, match="dropout.*eval"):
        model(tokens(1, 5), cache=cache)
    model.eval()
    with pytest.raises(ValueError, match="passes sinks"):
        model(tokens(1, 5), cache=cache, sinks=torch.zeros(4))
    assert torch.equal(*(model(tokens(1, 5), cache=each).logits for each in (cache, fresh)))


def test_too_many_beams():
    model = tiny_model()
    cache = InnerKVCache(model.config)
    model(tokens(1, 5), cache=cache)
    with pytest.raises(MemoryError, match="sequence"):
        cache.batch_repeat_interleave(1000)
    assert cache.batch_size == 1
    assert torch.isfinite(model(tokens(1, 1), cache=cache).logits).all()
