# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face model whose answers are computed on an InnerKVCache."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import commonprefix
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from ..transformers import InnerKVCache
from ..transformers.columns import chunks

Tokens = tuple[int, ...]
CHUNK = 512  #: tokens whose logits are in memory at once


def _check_device(device: Any) -> None:
    if torch.device(device).type != "cpu":
        raise ValueError(
            f'innerkv: device "{device}"; log-likelihoods take InnerKVCache.fork and prefill="decode", which are not '
            'there on a device. Give device=cpu'
        )


@register_model("innerkv")
class InnerKVLM(HFLM):
    """The harness's Hugging Face model on a quantized cache.

    Log-likelihoods are those of decoding: a token attends to what it would have found if all before it had come
    one by one, quantized history beyond the windows. What contexts have in common (examples before a question) is
    processed once and forked, and so is a context with several continuations.

    Args:
        preset: one of `innerkv.presets()`.
        paper: the InnerQ paper's codecs and key transform.
        prefill: of prompts in generate_until: "exact", as `generate` has it, or "decode" (InnerKVCache).
        batch_size: prompts that are generated from at once, continuations of one context that are scored at once.
        device: "cpu": InnerKVCache.fork is not there on others.
        **arguments: HFLM's: pretrained, gguf_file, dtype, max_length, ...
    """

    def __init__(
        self,
        pretrained: Any,
        preset: str = "base",
        paper: bool = False,
        prefill: str = "exact",
        device: str = "cpu",
        batch_size: int | str = 1,
        **arguments: Any,
    ) -> None:
        if str(batch_size).startswith("auto"):
            raise ValueError(f'innerkv: batch_size "{batch_size}" is not supported; give a number')
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            device = "cpu"  # as HFLM takes the harness's default, "cuda:0"
        _check_device(device if isinstance(pretrained, str) else pretrained.device)
        if isinstance(pretrained, str):
            arguments["attn_implementation"] = "innerkv"
        else:
            pretrained.set_attn_implementation("innerkv")
        super().__init__(pretrained, device=device, batch_size=batch_size, **arguments)
        self.preset = preset
        self.paper = paper
        self.prefill = prefill
        self._new_cache(prefill)  # refuses what it does not support before any request runs

    def _new_cache(self, prefill: str) -> InnerKVCache:
        return InnerKVCache(
            self.model.config, self.preset, max_length=self.max_length, prefill=prefill, paper=self.paper
        )

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **arguments: Any
    ) -> torch.Tensor:
        arguments["cache"] = self._new_cache(self.prefill)
        return super()._model_generate(context, max_length, stop, **arguments)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Sum of log-probabilities of each continuation, and whether it is what greedy decoding gives."""
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        progress = tqdm(total=len(requests), disable=disable_tqdm, desc="Running loglikelihood requests")
        groups = self._by_context(requests)
        common = commonprefix([context[:-1] for context in groups])
        beginning = self._read(self._new_cache("decode"), common)
        for context, members in groups.items():
            cache = self._read(beginning.fork(), context[len(common) : -1])
            for first, last in chunks(len(members), override_bs or self.batch_size):
                part = members[first:last]
                scores = self._score(cache, context[-1], [continuation for _, continuation in part])
                for (index, _), answer in zip(part, scores):
                    answers[index] = answer
                    key = requests[index][0]
                    if key is not None:  # None: a window of loglikelihood_rolling, which keeps its own sums
                        self.cache_hook.add_partial("loglikelihood", key, answer)
                progress.update(len(part))
        progress.close()
        return answers

    def _by_context(
        self, requests: Sequence[tuple[Any, list[int], list[int]]]
    ) -> dict[Tokens, list[tuple[int, Tokens]]]:
        """Requests by context, which loses its first tokens where the model would not know their positions."""
        groups: dict[Tokens, list[tuple[int, Tokens]]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            kept = self.max_length + 1 - len(continuation)  # the last token is scored, not read
            if kept < 1:
                raise ValueError(
                    f"innerkv: a continuation of {len(continuation)} tokens; the model takes {self.max_length}"
                )
            groups.setdefault(tuple(context[-kept:]), []).append((index, tuple(continuation)))
        return groups

    @torch.no_grad()
    def _read(self, cache: InnerKVCache, tokens: Tokens) -> InnerKVCache:
        if tokens:
            self.model(torch.tensor([tokens]), cache=cache, logits_to_keep=1)
        return cache

    @torch.no_grad()
    def _score(
        self, context: InnerKVCache, last: int, continuations: list[Tokens]
    ) -> list[tuple[float, bool]]:
        """Continuations of one context whose last token is `last`, each on a fork of its cache."""
        cache = context.fork()
        cache.batch_repeat_interleave(len(continuations))
        seen = cache.get_seq_length()
        lengths = torch.tensor([[len(continuation)] for continuation in continuations])
        width = int(lengths.max())
        targets = torch.zeros(len(continuations), width, dtype=torch.long)
        for row, continuation in zip(targets, continuations):
            row[: len(continuation)] = torch.tensor(continuation)
        inputs = torch.cat([torch.full_like(lengths, last), targets[:, :-1]], 1)
        mask = torch.arange(seen + width) < seen + lengths
        sums, greedy = torch.zeros(len(continuations)), torch.ones(len(continuations), dtype=torch.bool)
        for part in (slice(*ends) for ends in chunks(width, CHUNK)):
            seen_mask = mask[:, : seen + part.stop]
            logits = self.model(inputs[:, part], attention_mask=seen_mask.long(), cache=cache).logits
            counted = seen_mask[:, seen + part.start :]
            chosen = logits.log_softmax(-1, dtype=torch.float32).gather(2, targets[:, part, None])[..., 0]
            sums += (chosen * counted).sum(1)
            greedy &= ((logits.argmax(-1) == targets[:, part]) | ~counted).all(1)
        return list(zip(sums.tolist(), greedy.tolist()))
