# SPDX-License-Identifier: Apache-2.0
"""What the task files beside this one call."""

import random
import re
from pathlib import Path

import datasets

ALICE = Path(__file__).parents[3] / "tests" / "data" / "alice.txt"
CHOICES = 4


def passages(text=ALICE, items=60, characters=2400, **_):
    """Documents cut from a text file: `characters` of it or a little more, and four sentences of which one follows.

    The others come from elsewhere in the text, at random but the same in each run.
    """
    words = " ".join(Path(text).read_text(encoding="utf-8").split())
    sentences = re.split(r"(?<=[.!?][\"')\u2019\u201d])\s|(?<=[.!?])\s", words)
    starts = [0]
    for sentence in sentences:
        starts.append(starts[-1] + len(sentence) + 1)
    usable = [i for i, sentence in enumerate(sentences) if 40 <= len(sentence) <= 200]
    following = [i for i in usable if starts[i] > characters]
    if len(following) < items:
        raise ValueError(f"passages: {text} has {len(following)} places for {items} items; ask for fewer or shorter ones")
    draw = random.Random(1)
    documents = []
    for item in range(items):
        right = following[item * len(following) // items]
        first = max(i for i in range(right) if starts[right] - starts[i] > characters)
        others = draw.sample([i for i in usable if not first <= i <= right], CHOICES - 1)
        label = draw.randrange(CHOICES)
        others.insert(label, right)
        documents.append({
            "passage": " ".join(sentences[first:right]),
            "choices": [sentences[i] for i in others],
            "label": label,
        })
    return {"test": datasets.Dataset.from_list(documents)}


def bits_of_solution(document, results):
    """(log-likelihood, bytes), which the harness sums over documents."""
    [(log_likelihood, _)] = results
    return {"bits_per_byte": (log_likelihood, len(document["answer"].encode()))}
