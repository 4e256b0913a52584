# SPDX-License-Identifier: Apache-2.0
"""A batch on a CUDA device, where nothing in a step waits: row i is slot i of the cache, which tokens count is known
there alone, and all memory is there from the first keys on."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.utils.dlpack import to_dlpack

from .. import cache as innerkv_cache
from ..device import align, capsule, unalign
from .columns import Columns, chunks

CHUNK = 128  #: tokens that are appended at once; windows have room for twice as many


class Padding(NamedTuple):
    """Of the new tokens; None where there is none, or could not be."""

    counts: torch.Tensor | None  #: int32 [batch], tokens that count
    first: torch.Tensor | None  #: int64 [batch], columns before them; None for single tokens

    @staticmethod
    def of(mask: torch.Tensor | None) -> Padding:
        """`mask`: bool [batch, tokens], False before and behind the tokens of a sequence."""
        if mask is None:
            return Padding(None, None)
        counts = mask.sum(1, dtype=torch.int32)
        return Padding(counts, None if mask.shape[1] == 1 else (mask.cumsum(1) == 0).sum(1))


def aligned(padding: Padding, *states: torch.Tensor) -> list[torch.Tensor]:
    """[batch, heads, tokens, head_dim] with each sequence's first token in column 0."""
    return [rows if padding.first is None else align(rows, padding.first, 2) for rows in states]


def unaligned(padding: Padding, out: torch.Tensor) -> torch.Tensor:
    """[batch, tokens, heads, head_dim], 0 where there was padding."""
    if padding.counts is None:
        return out
    first = torch.zeros_like(padding.counts) if padding.first is None else padding.first
    return unalign(out, first, padding.counts)


class DeviceBatch:
    """The sequences of an InnerKVCache on a device."""

    def __init__(self, max_length: int, *arguments: Any, **options: Any) -> None:
        """As innerkv.Cache, of `max_sequences` sequences that may reach `max_length` tokens each."""
        try:
            self.store = innerkv_cache.Cache(*arguments, **options)
        except MemoryError:
            torch.cuda.empty_cache()  # what torch keeps for later
            self.store = innerkv_cache.Cache(*arguments, **options)
        self.core = self.store._core.core
        self.index = self.store._core.index
        self.max_length = max_length
        self.slots = list(range(options["max_sequences"]))
        self._create()

    def _create(self) -> None:
        for slot in self.slots:
            self.store.create()
            self.core.reserve(slot, self.max_length)

    def reset(self) -> None:
        for slot in self.slots:
            self.store.remove(slot)
        self._create()

    def take(self, tokens: int) -> None:
        """Pages for so many tokens more in every sequence and layer: for all, or OutOfPages."""
        self.core.take(0, 0, len(self.slots), tokens, self._stream())

    def append(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, counts: torch.Tensor | None
    ) -> None:
        """[batch, heads, tokens, head_dim], each sequence's tokens from column 0 on."""
        stream = self._stream()
        for first, last in chunks(q.shape[2], CHUNK):
            rows = (capsule(states[:, :, first:last].transpose(1, 2), stream) for states in (k, v, q))
            self.core.append(layer, 0, *rows, _part(counts, first, last), stream)

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        counts: torch.Tensor | None,
        scaling: float | None,
        softcap: float | None,
        window: int,
    ) -> torch.Tensor:
        """Appends and attends. Returns [batch, tokens, heads, head_dim], NaN where a sequence took no token."""
        batch, heads, tokens, head_dim = q.shape
        out = q.new_full((batch, tokens, heads, head_dim), float("nan"))
        stream = self._stream()
        options = scaling or 0.0, softcap or 0.0, window, stream
        for first, last in chunks(tokens, CHUNK):
            rows = (capsule(states[:, :, first:last], stream) for states in (k, v, q))
            self.core.step(layer, *rows, to_dlpack(out[:, first:last]), _part(counts, first, last), *options)
        return out

    def prepare(self, heads: int, scaling: float | None, softcap: float | None, window: int) -> None:
        """Memory for steps of single tokens."""
        self.core.prepare(heads, scaling or 0.0, softcap or 0.0, window)

    def crop(self, columns: Columns, total: int, keep: int) -> None:
        """Keeps `keep` of `total` columns, of which `columns` knows those that did not come in graphs."""
        if total > columns.total:
            columns.add(total - columns.total, None)
        lengths = [self.store.length(slot) for slot in self.slots]
        if columns.lengths_at(total, len(self.slots)) != lengths:
            raise ValueError(
                "InnerKVCache.crop: padding came in steps or compiled calls, where nobody looked which columns it has; "
                "crop before such a step, or reset()"
            )
        self.store.truncate(self.slots, columns.lengths_at(keep, len(self.slots)))
        columns.truncate(keep)

    def reorder(self, indices: list[int]) -> None:
        self.core.reorder(indices)
        self.slots = list(range(len(indices)))

    def _stream(self) -> int:
        return torch.cuda.current_stream(self.index).cuda_stream


def _part(counts: torch.Tensor | None, first: int, last: int) -> Any:
    """Of the tokens first .. last - 1, how many count."""
    if counts is None:
        return None
    return to_dlpack(counts if first == 0 and last == 1 else (counts - first).clamp(0, last - first))
