# SPDX-License-Identifier: Apache-2.0
"""Two models as they are, read by transformers from the files that the program runs: SmolLM2 and Gemma 3."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from transformers import modeling_gguf_pytorch_utils

from innerkv.transformers import InnerKVCache

ROOT = Path(__file__).parents[3]
TEXT = ROOT / "tests" / "data" / "alice-opening.txt"
#: Tokens of a window, of which the second half is scored. Gemma 3's sliding window is 512.
CONTEXT = {"smollm2": 352, "gemma3": 544}
#: Tokens of the prompt of generated text: more than the windows of fp16 hold.
PROMPT = 200
#: What torch may find, as a share of what the program finds less its noise, which does not add up exactly.
SHARE = (0.7, 1.5)

torch.set_num_threads(1)


class RealModel:
    """A model of tools/model.py in float32, its file, and tokens of TEXT behind its beginning-of-text token."""

    def __init__(self, name):
        call = [sys.executable, ROOT / "tools" / "model.py", name]
        self.file = Path(subprocess.check_output(call, text=True).splitlines()[-1])
        source = {"pretrained_model_name_or_path": self.file.parent, "gguf_file": self.file.name}
        tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            **source, dtype=torch.float32, attn_implementation="innerkv")
        self.model.generation_config.pad_token_id = 0
        tokens = tokenizer(TEXT.read_text(encoding="utf-8"), add_special_tokens=False,
                           return_tensors="pt").input_ids[:, : CONTEXT[name]]
        tokens[:, 0] = tokenizer.bos_token_id  # as `innerkv eval ppl` has it
        self.name, self.tokens = name, tokens

    def logits(self, preset):
        """Predictions of the second half's tokens, each as decoding would have made it."""
        size = self.tokens.shape[1]
        cache = InnerKVCache(self.model.config, preset, prefill="decode")
        logits = self.model(self.tokens, cache=cache, logits_to_keep=size - size // 2 + 1).logits
        return logits[0, :-1].log_softmax(-1), cache


class Reader(gguf.GGUFReader):
    """Which takes arrays of numbers at once, and not one after the other."""

    def _get_field_parts(self, offset, raw_type):
        if raw_type != gguf.GGUFValueType.ARRAY:
            return super()._get_field_parts(offset, raw_type)
        kind, count = self._get(offset, np.uint32), self._get(offset + 4, np.uint64)
        number = self.gguf_scalar_to_np.get(gguf.GGUFValueType(kind[0]))
        if number is None:
            return super()._get_field_parts(offset, raw_type)
        values = self._get(offset + 12, number, count[0])
        parts = [kind, count, *values.reshape(-1, 1)]
        types = [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType(kind[0])]
        return 12 + values.nbytes, parts, list(range(2, len(parts))), types


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """Tokenizer, config and weights are read from one file, whose million strings take Python long. So it is read
    once, from a plain array, whose slices cost a fifth of a memory map's, and its strings are parsed once. So are
    names of tensors, which are made anew for each module."""

    @functools.cache
    def read(file):
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(np, "memmap", lambda path, mode: np.fromfile(path, np.uint8))
            return Reader(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", read)
        patch.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
        parse, parsed = modeling_gguf_pytorch_utils._gguf_parse_value, {}

        def parse_once(part, types):  # parts live as long as their reader
            if id(part) not in parsed:
                parsed[id(part)] = parse(part, types)
            return parsed[id(part)]

        patch.setattr(modeling_gguf_pytorch_utils, "_gguf_parse_value", parse_once)
        yield


@pytest.fixture(scope="module", params=["smollm2", "gemma3"])
def real(request):
    with torch.no_grad():
        yield RealModel(request.param)


def test_f16_gives_the_tokens_of_dynamic_cache(real):
    model = real.model
    options = {"attention_mask": torch.ones_like(real.tokens[:, :PROMPT]), "do_sample": False, "max_new_tokens": 12}
    ours = model.generate(real.tokens[:, :PROMPT], cache=InnerKVCache(model.config, "f16"), **options)
    model.set_attn_implementation("sdpa")
    cache = transformers.DynamicCache(config=model.config)
    theirs = model.generate(real.tokens[:, :PROMPT], cache=cache, **options)
    model.set_attn_implementation("innerkv")
    assert theirs.shape[1] > PROMPT + 8
    assert torch.equal(ours, theirs)


@pytest.mark.skipif("INNERKV_PROGRAM" not in os.environ, reason="INNERKV_PROGRAM does not name the program")
def test_base_is_as_near_to_f16_as_the_program_finds(real):
    """The same tokens of the same text, through transformers' graph and through the program's. What that finds for k8v8,
    whose own mean KLD is 1e-5 in torch, is its noise: ggml rounds activations to 8 bits (docs/cli.md), torch does not."""
    call = [os.environ["INNERKV_PROGRAM"], "eval", "ppl", "-m", real.file, "--text", TEXT,
            "--ctx", str(real.tokens.shape[1]), "--chunks", "1", "--cache", "base,k8v8", "--threads", "1", "--json"]
    report = json.loads(subprocess.check_output(call))
    program, noise = report["results"]
    assert (program["cache"], noise["cache"]) == ("base", "k8v8")
    f16, _ = real.logits("f16")
    base, cache = real.logits("base")
    assert cache.store.usage().quantized_pages > 0
    assert len(base) == program["tokens"]
    targets = real.tokens[0, -len(base):, None]
    perplexity = {name: float((-logits.gather(1, targets)).mean().exp())
                  for name, logits in (("f16", f16), ("base", base))}
    kld = float((f16.exp() * (f16 - base)).sum(-1).mean())
    # Other tokens, or other positions, would be far off.
    assert perplexity["f16"] == pytest.approx(report["against"]["ppl"], rel=0.02)
    assert perplexity["base"] == pytest.approx(program["ppl"], rel=0.03)
    expected = program["kld_mean"] - noise["kld_mean"]
    assert expected > noise["kld_mean"] / 2  # or there would be nothing to compare
    assert SHARE[0] * expected < kld < SHARE[1] * expected
