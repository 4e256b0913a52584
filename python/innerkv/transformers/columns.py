# SPDX-License-Identifier: Apache-2.0
"""Which columns of a batch are padding of which sequence, and spans of columns."""

from __future__ import annotations

from typing import Any

from ..arrays import Spans

PAGE = 32  #: tokens that are quantized at once


class Columns:
    """The columns of a batch, one a token that came: which are padding of which sequence."""

    def __init__(self) -> None:
        self.total = 0
        self._blocks: list[list[Any]] = []  # columns, and their spans or None: no padding

    def add(self, tokens: int, spans: Spans | None) -> None:
        self.total += tokens
        blocks = self._blocks
        if spans is None and blocks and blocks[-1][1] is None:
            blocks[-1][0] += tokens
        else:
            blocks.append([tokens, spans])

    def truncate(self, keep: int) -> None:
        while self.total > keep:
            tokens, spans = self._blocks.pop()
            self.total -= tokens
            rest = keep - self.total
            if rest > 0:
                self.total = keep
                self._blocks.append([rest, cut(spans, 0, rest)])

    def lengths_at(self, keep: int, sequences: int) -> list[int]:
        """Tokens of each sequence in the first `keep` columns."""
        lengths = [0] * sequences
        for tokens, spans in self._blocks:
            tokens = min(tokens, keep)
            keep -= tokens
            for i, (first, last) in enumerate(cut(spans, 0, tokens) or [(0, tokens)] * sequences):
                lengths[i] += last - first
        return lengths

    def select(self, indices: list[int]) -> None:
        self._blocks = [
            [tokens, spans and [spans[i] for i in indices]] for tokens, spans in self._blocks
        ]


def chunks(tokens: int, size: int) -> list[tuple[int, int]]:
    """(first, last) of parts of at most `size` tokens."""
    return [(first, min(first + size, tokens)) for first in range(0, tokens, size)]


def page_chunks(tokens: int, spans: Spans | None, lengths: list[int]) -> list[tuple[int, int]]:
    """(first, last) of parts in which no sequence goes on behind a multiple of PAGE tokens: its length before is
    lengths[i]. What such a part attends to does not depend on whether its tokens come at once or one by one."""
    ends = {0, tokens}
    for (first, last), length in zip(spans or [(0, tokens)] * len(lengths), lengths):
        ends.update(range(first + -length % PAGE, last, PAGE))
    parts = sorted(ends)
    return list(zip(parts, parts[1:]))


def cut(spans: Spans | None, first: int, last: int) -> Spans | None:
    """Spans of columns first .. last - 1, from their first."""
    if spans is None:
        return None
    size = last - first
    return [tuple(min(max(end - first, 0), size) for end in span) for span in spans]
