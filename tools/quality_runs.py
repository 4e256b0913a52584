# SPDX-License-Identifier: Apache-2.0
"""The runs behind docs/quality.md, as data: which caches are measured, on what, how.

A run is one `innerkv eval` on one model. Runs whose names differ behind a point only, such as
`wiki-2k.presets` and `wiki-2k.blocks`, are one measurement in several processes: their rows go into one
table. Contenders are compared with f16 in every run of its own.
"""

from typing import NamedTuple

MODELS = ("smollm2", "gemma3")


class Run(NamedTuple):
    name: str
    measure: str  # of `innerkv eval`
    text: str  # of quality_texts.TEXTS, or one that it joins
    options: dict  # of the measure
    caches: tuple
    models: tuple = MODELS
    late: bool = False  # begun when all others are, in case the time does not suffice

    @property
    def group(self):
        return self.name.partition(".")[0]

    def arguments(self):
        words = ["eval", self.measure]
        for name, value in self.options.items():
            words += [f"--{name}", str(value)]
        return words + ["--cache", ",".join(self.caches)]

    def tokens(self):
        """That a cache reads, questions left out: what a run takes is about this times its caches."""
        windows = self.options.get("chunks") or self.options.get("documents", 1)
        starts = self.options.get("starts", 0)
        # A start reads half of a document on average, and then writes.
        return windows * (self.options["ctx"] * (1 + starts / 2) + starts * self.options.get("generate", 0))


class ByLayer(NamedTuple):
    """Bits of each layer that `innerkv calibrate --bits` chose, for each model; docs/quality.md has the command."""

    title: str
    smollm2: str
    gemma3: str

    def cache(self, model):
        return f"base+layers={getattr(self, model)}"


def outlier_model(model, factor):
    """Of Gemma 3 only norms of queries and keys change, so factor 1 is the model itself."""
    return model if (model, factor) == ("gemma3", 1) else f"{model}-outliers-{factor}"


OWN = ("base", "small", "hybrid", "k4v4", "k4v3", "k4v2", "k8v8")
PAPER = ("paper:base", "paper:base+calibration=512", "paper:small", "paper:hybrid", "paper:k4v4")
BLOCKS = ("sim:q8_0", "sim:q8_0+rot", "sim:q5_1", "sim:q5_1+rot", "sim:q5_0", "sim:q5_0+rot", "sim:q4_1",
          "sim:q4_1+rot", "sim:q4_0", "sim:q4_0+rot")
WINDOWED = ("sim:q4_0+rot+windows", "sim:turbo3+windows", "sim:turbo4+windows")
KIVI = ("sim:kivi2", "sim:kivi4")
TURBO = ("sim:turbo3", "sim:turbo4")
LIBLLAMA = ("llama:f16", "llama:q8_0+rot", "llama:q4_1+rot", "llama:q4_0", "llama:q4_0+rot")
UNROTATED = ("llama:q4_1",)
RIVAL = ("llama:q4_0+rot",)  # what sim:q4_0+rot simulates
PAPER_1024 = ("paper:base+calibration=1024",)
AT_8K = ("base", "small", "k4v4", "paper:base", "sim:q4_0+rot", "sim:q4_0+rot+windows", "sim:kivi2")
# What is left of the beginning, and texts written alone: a choice, since these take longest.
FEW = ("k4v4", "base", "small", "sim:q4_0+rot", "paper:base", "sim:kivi2")
FAR = ("k4v4", "base", "sim:q4_0+rot")
NOVEL = ("base", "small", "k4v4", "paper:base", "sim:q5_0+rot", "sim:q4_0+rot", *KIVI)
POSITIONS = ("k4v4", "base", "small", "sim:q4_0+rot", "paper:base")
ALONE = {"ours": ("k8v8", "k4v4", "base", "small"), "others": ("sim:q4_0+rot", "paper:base")}
NORMS = ("base", "base+norm=prefill", "base+norm=none")
WINDOW_SIZES = tuple(f"base+{part}" for part in ("sink=0", "sink=4", "sink=64", "recent=32", "recent=64", "recent=128"))
CALIBRATIONS = tuple(f"base+calibration={tokens}" for tokens in (64, 256, 512, 1024))
TRANSFORMS = tuple(f"base+{part}" for part in ("epoch=1024", "epoch=65536",
                                               "centre=off", "rotate=off", "norm=prefill", "norm=none"))
OUTLIER_NORMS = ("base", "k4v4", "base+norm=prefill", "base+norm=none")
OUTLIERS = {1: OUTLIER_NORMS, 8: ("base",), 32: OUTLIER_NORMS + ("paper:base",), 128: ("base",)}  # by factor
LAYERS = (
    ByLayer("by layer, 3.0 bits", "222232333333223333332222222232222243422243222243332232223322",
            "222322222232232232233333333333323232"),
    ByLayer("by layer, 3.25 bits", "322332343433234343332222222232322243432243323243432233223333",
            "222322222243333232333343343333323333"),
    ByLayer("by layer, 3.5 bits", "322333343444334444333322222242323243433244333244442233223333",
            "322323322343333333333343443433333333"),
)
TOPICS = ("code", "arithmetic", "itself")
TOPIC_CACHES = ("base", "base+norm=none")
TOPIC_WINDOWS = (1, 2)


def parts(name, measure, text, options, caches, **more):
    return [Run(f"{name}.{part}", measure, text, options, names, **more) for part, names in caches.items()]


WINDOWS_2K = {"ctx": 2048, "chunks": 3}

RUNS = [
    *parts("wiki-2k", "ppl", "wiki-test", WINDOWS_2K,
           {"presets": OWN + PAPER, "blocks": BLOCKS + TURBO, "others": WINDOWED + KIVI + LIBLLAMA,
            "unrotated": UNROTATED,
            "parts": WINDOW_SIZES + CALIBRATIONS + TRANSFORMS}),
    *parts("wiki-8k", "ppl", "wiki-test", {"ctx": 8192, "chunks": 1}, {"caches": AT_8K, "paper": PAPER_1024}),
    *parts("repeat", "repeat", "wiki-test", {"ctx": 3072, "documents": 2}, {"caches": FEW, "libllama": RIVAL}),
    *parts("recall-2k", "recall", "wiki-test", {"ctx": 2048, "documents": 4, "depths": 27},
           {"caches": FEW, "libllama": RIVAL}),
    Run("recall-8k", "recall", "wiki-test", {"ctx": 8192, "documents": 2, "depths": 40}, FAR),
    Run("recall-16k", "recall", "wiki-test", {"ctx": 16384, "documents": 1, "depths": 40}, FAR, ("gemma3",)),
    *parts("novel-2k", "ppl", "novel", WINDOWS_2K, {"caches": NOVEL, "libllama": ("llama:f16", *RIVAL)}),
    *(Run("novel-2k.layers", "ppl", "novel", WINDOWS_2K, tuple(bits.cache(model) for bits in LAYERS), (model,))
      for model in MODELS),
    *parts("novel-8k", "long", "novel", {"ctx": 8192, "documents": 1, "starts": 0},
           {"caches": POSITIONS, "paper": PAPER_1024}),
    *parts("alone", "long", "novel", {"ctx": 2048, "documents": 2, "starts": 6, "generate": 64}, ALONE),
    Run("validation", "ppl", "wiki-validation", WINDOWS_2K, NORMS),
    *(Run(f"topic-{topic}.{window}", "ppl", f"topic-{topic}-{window}", {"ctx": 2048, "chunks": 1}, TOPIC_CACHES,
          late=True)
      for topic in TOPICS for window in TOPIC_WINDOWS),
    *(Run("outliers", "ppl", "wiki-test", WINDOWS_2K, caches, (outlier_model(model, factor),))
      for model in MODELS for factor, caches in OUTLIERS.items() if outlier_model(model, factor) != model),
]
