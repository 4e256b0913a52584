# SPDX-License-Identifier: Apache-2.0
"""A decode step as a CUDA graph."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from .cache import InnerKVCache


def cache_argument(model: torch.nn.Module) -> str:
    """What a model's forward calls its cache: past_key_values before transformers 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


class DecodeGraph:
    """One decode step of a model on an InnerKVCache on a device, captured once and replayed as the context grows.

        model(prompt, cache=cache)
        step = DecodeGraph(model, cache)
        logits = step(tokens)           # [batch, 1] to [batch, vocabulary]

    Every call writes its logits to the same memory. The first runs the model as always, the second captures; later ones
    allocate nothing, and nobody waits. The graph survives `reset`, `crop` and `reorder_cache` of the cache;
    `cache.verify()` tells what steps refused.

    Args:
        positions: int64 [batch, 1], where the next token of each sequence stands, for batches with padding; by default
            behind all columns. Steps count them on; behind `reset` and the next prompt, `crop` or `reorder_cache`
            `restart` says where they are then.
    """

    def __init__(self, model: torch.nn.Module, cache: InnerKVCache, positions: torch.Tensor | None = None) -> None:
        if cache.device is None or cache.device.type != "cuda":
            raise ValueError(f"DecodeGraph: the cache is on {cache.device}; run the prompt on a CUDA device first")
        self.model, self.cache = model, cache
        self.positions = None if positions is None else positions.clone()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.tokens: torch.Tensor | None = None
        self.logits: torch.Tensor | None = None
        self._argument = cache_argument(model)

    def restart(self, positions: torch.Tensor) -> None:
        """int64 [batch, 1], where the next token of each sequence stands now. ValueError where the graph was made without
        positions, and finds them by itself."""
        if self.positions is None:
            raise ValueError("DecodeGraph.restart: the graph was made without positions, and counts the cache's columns")
        self.positions.copy_(positions)

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        self.cache.check()
        if tuple(tokens.shape) != (self.cache.batch_size, 1):
            raise ValueError(f"DecodeGraph: tokens {list(tokens.shape)}; a step takes [{self.cache.batch_size}, 1]")
        if self.tokens is None:  # libraries get what they need before a capture
            self.tokens = tokens.clone()
            self.logits = self._forward().clone()
            return self.logits
        self.tokens.copy_(tokens)
        if self.graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.logits.copy_(self._forward())
            self.graph = graph
        self.graph.replay()
        return self.logits

    def _forward(self) -> torch.Tensor:
        options: dict[str, Any] = {self._argument: self.cache, "use_cache": True}
        if self.positions is not None:
            options["position_ids"] = self.positions
        logits = self.model(self.tokens, **options).logits[:, -1]
        if self.positions is not None:
            self.positions += 1
        return logits
