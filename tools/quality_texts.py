# SPDX-License-Identifier: Apache-2.0
"""The texts behind docs/quality.md: those of others, found in a folder, and those joined from them."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Text(NamedTuple):
    file: str  # in the folder of --texts, or a path of its own
    sha256: str
    origin: str


TEXTS = {
    "wiki-test": Text("wikitext2/test.txt", "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
                      "wiki.test.tokens of Salesforce's wikitext-2-v1"),
    "wiki-validation": Text("wikitext2/valid.txt",
                            "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
                            "wiki.valid.tokens of Salesforce's wikitext-2-v1"),
    "novel": Text("long/ENG18900_Doyle.txt", "0c635e01cdaf62baaaccb2d36247ffea5f70af04da5dc8aa0639eacd078344a7",
                  "the paragraphs of ENG18900 in ELTeC-eng, level 1, empty lines between them"),
    "arithmetic": Text("gsm8k/test.jsonl", "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
                       "test.jsonl of openai/grade-school-math"),
    # A path of its own: it stands in this repository.
    "code": Text(str(ROOT / "tests/data/code-opening.txt"),
                 "44cb62022f1ea3672c8aa7911f54c038922dfcd77ea500c964750dc02a15fa67",
                 "the beginning of runner/simulated/turbo.cpp as it was"),
}

LEAD = 1500  # characters of another topic
JOINED = 6000  # characters in all, more than 1,024 tokens


class Missing(Exception):
    """A text is not where it should be."""


def place(folder, name):
    path = Path(folder) / TEXTS[name].file
    if not path.is_file():
        raise Missing(f"{path} is not there; it is {TEXTS[name].origin}")
    return path


def is_the_same(folder, name):
    """Whether the folder's text is the one that docs/quality.md was made with."""
    return hashlib.sha256(place(folder, name).read_bytes()).hexdigest() == TEXTS[name].sha256


def problems(path):
    """Arithmetic problems and their solutions, as prose."""
    with open(path, encoding="utf-8") as file:
        for entry in map(json.loads, file):
            yield f"{entry['question']}\n{entry['answer']}\n\n"


def lead(folder, topic, window):
    """What a window of `topic-...` begins with instead of its own text."""
    if topic == "code":
        return place(folder, "code").read_text(encoding="utf-8")[:LEAD]
    if topic == "arithmetic":
        return "".join(problems(place(folder, "arithmetic")))[:LEAD]
    return window[:LEAD]


def topic_text(folder, topic, number):
    """Window `number`, from 1, of the test split, its beginning replaced by text of another topic."""
    text = place(folder, "wiki-test").read_text(encoding="utf-8")
    begin = text.find("\n", (number - 1) * JOINED) + 1
    if begin == 0 or begin + JOINED > len(text):
        raise Missing(f"{place(folder, 'wiki-test')} is too short for window {number} of {JOINED} characters; it is not "
                      f"{TEXTS['wiki-test'].origin}")
    window = text[begin:begin + JOINED]
    return lead(folder, topic, window) + window[LEAD:]


def sources(name):
    """Names in TEXTS of what a text is made from."""
    if name in TEXTS:
        return {name}
    return {"wiki-test", name.split("-")[1]} & TEXTS.keys()


def prepare(folder, name, scratch):
    """The path of a text; one that is joined is written to `scratch` first."""
    if name in TEXTS:
        return place(folder, name)
    _, topic, number = name.split("-")
    path = Path(scratch) / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(topic_text(folder, topic, int(number)), encoding="utf-8")
    return path
