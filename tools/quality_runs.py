# SPDX-License-Identifier: Apache-2.0
"""The runs behind the tables of docs/, as data: which caches are measured, on what, how.

A run is one `innerkv eval` on one model. Runs whose names differ behind a point only, such as
`wiki-2k.presets` and `wiki-2k.blocks`, are one measurement in several processes, so that they are short enough to
share a machine: of the same windows with other caches, or of the same caches with other windows. Their rows go
into one table. Contenders are compared with f16 in every run of its own.
"""

from typing import NamedTuple

MODELS = ("smollm2", "gemma3")
# Made from a plain model: `MODEL-outliers-FACTOR`, and with all weights in F32 `MODEL-f32`. Of Gemma 3 norms of
# queries and keys alone change, so there factor 1 is the model itself; no factor changes its keys' codes.
OUTLIERS = {"smollm2": (1, 8, 32, 128), "gemma3": (32,)}
F32 = "smollm2-f32"

# What the file of --calibration is made from, for runs that have one.
CALIBRATION = {"text": "wiki-validation", "options": {"ctx": 2048, "chunks": 8}}
CALIBRATION_FILE = "calibration.gguf"


class Run(NamedTuple):
    name: str
    measure: str  # of `innerkv eval`
    text: str  # of quality_texts.TEXTS, or one that it joins
    options: dict  # of the measure
    caches: tuple
    models: tuple = MODELS
    calibrated: bool = False  # with a calibration of the model

    @property
    def group(self):
        return self.name.partition(".")[0]

    def arguments(self):
        words = ["eval", self.measure]
        for name, value in self.options.items():
            words += [f"--{name}", str(value)]
        if self.calibrated:
            words += ["--calibration", CALIBRATION_FILE]
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
    return model if (model, factor) == ("gemma3", 1) else f"{model}-outliers-{factor}"


PRESETS = ("base", "small", "hybrid", "k4v4", "k4v3", "k4v2", "k8v8",
           "paper:base", "paper:base+calibration=512", "paper:small", "paper:hybrid", "paper:k4v4")
BLOCKS = ("sim:q8_0+rot", "sim:q5_1+rot", "sim:q5_0+rot", "sim:q4_0", "sim:q4_0+rot", "sim:turbo3", "sim:turbo4",
          "sim:kivi2", "sim:kivi4")
UNROTATED = ("sim:q8_0", "sim:q5_1", "sim:q5_0", "sim:q4_1", "sim:q4_1+rot")
WINDOWED = ("sim:q4_0+rot+windows", "sim:turbo3+windows", "sim:turbo4+windows")
LIBLLAMA = ("llama:f16", "llama:q4_0+rot")
NORMS = ("base+norm=prefill", "base+norm=none")
PARTS = ("base+queries=off", "base+sink=0", "base+recent=32", "base+epoch=65536", "base+centre=off", "base+rotate=off")
LENGTHS = ("base+sink=4", "base+sink=64", "base+recent=64", "base+recent=128", "base+calibration=64",
           "base+calibration=256", "base+calibration=1024")
LONG = ("k4v4", "base", "small", "sim:q4_0+rot", "paper:base+calibration=1024")
FAR = ("k4v4", "base", "sim:q4_0+rot")
BEGINNING = (*FAR, "small", "paper:base", "sim:kivi2", "llama:q4_0+rot")
NOVEL = ("base", "small", "k4v4", "k8v8", "paper:base", "sim:q4_0+rot", "sim:kivi2", "sim:kivi4", "llama:q4_0+rot")
ALONE = ("k8v8", "k4v4", "base", "sim:q4_0+rot")
CALIBRATED = ("base", "k4v4")
FLOOR = ("base", "k4v4", "k8v8", "paper:base")
SIMULATED = ("llama:q8_0+rot", "sim:q8_0+rot", "llama:q4_0", "sim:q4_0", "llama:q4_0+rot", "sim:q4_0+rot")
APART = ("sim:q4_0+rot", "f16")
OUTLIER_CACHES = ("base", "k4v4", *NORMS)
LAYERS = (
    ByLayer("by layer, 3.0 bits", "222232333333223333332222222232222243422243222243332232223322",
            "222322222232232232233333333333323232"),
    ByLayer("by layer, 3.25 bits", "322332343433234343332222222232322243432243323243432233223333",
            "222322222243333232333343343333323333"),
    ByLayer("by layer, 3.5 bits", "322333343444334444333322222242323243433244333244442233223333",
            "322323322343333333333343443433333333"),
)
TOPICS = ("code", "arithmetic", "itself")
TOPIC_WINDOWS = range(1, 7)

WINDOWS_2K = {"ctx": 2048, "chunks": 3}

RUNS = [
    Run("wiki-2k.presets", "ppl", "wiki-test", WINDOWS_2K, PRESETS),
    Run("wiki-2k.blocks", "ppl", "wiki-test", WINDOWS_2K, BLOCKS),
    Run("wiki-2k.others", "ppl", "wiki-test", WINDOWS_2K, (*WINDOWED, *LIBLLAMA)),
    Run("wiki-2k.parts", "ppl", "wiki-test", WINDOWS_2K, (*NORMS, *PARTS)),
    Run("wiki-2k.unrotated", "ppl", "wiki-test", WINDOWS_2K, UNROTATED),
    Run("wiki-2k.lengths", "ppl", "wiki-test", WINDOWS_2K, LENGTHS),
    Run("floor", "ppl", "wiki-test", WINDOWS_2K, FLOOR, (F32,)),
    Run("simulation", "ppl", "wiki-test", {"ctx": 512, "chunks": 3}, SIMULATED, (F32,)),
    Run("apart", "ppl", "wiki-test", {"ctx": 1024, "chunks": 3, "against": "llama:q4_0+rot"}, APART, ("gemma3",)),
    Run("calibrated", "ppl", "wiki-test", WINDOWS_2K, CALIBRATED, calibrated=True),
    Run("calibrated", "ppl", "wiki-test", WINDOWS_2K, ("base",), ("smollm2-outliers-32",), calibrated=True),
    Run("repeat", "repeat", "wiki-test", {"ctx": 2048, "documents": 3}, BEGINNING),
    Run("recall-2k", "recall", "wiki-test", {"ctx": 2048, "documents": 3, "depths": 36}, BEGINNING),
    Run("recall-8k", "recall", "wiki-test", {"ctx": 8192, "documents": 2, "depths": 40}, FAR),
    Run("recall-16k", "recall", "wiki-test", {"ctx": 16384, "documents": 1, "depths": 40}, FAR, ("gemma3",)),
    Run("novel-2k", "ppl", "novel", WINDOWS_2K, (*NOVEL, *NORMS)),
    *(Run("novel-2k.layers", "ppl", "novel", WINDOWS_2K, tuple(bits.cache(model) for bits in LAYERS), (model,))
      for model in MODELS),
    Run("novel-8k", "long", "novel", {"ctx": 8192, "documents": 2, "starts": 0}, LONG),
    Run("alone", "long", "novel", {"ctx": 2048, "documents": 1, "starts": 8, "generate": 64}, ALONE),
    *(Run(f"topic-{topic}.{window}", "ppl", f"topic-{topic}-{window}", {"ctx": 1024, "chunks": 1}, ("base",))
      for topic in TOPICS for window in TOPIC_WINDOWS),
    Run("outliers", "ppl", "wiki-test", WINDOWS_2K, OUTLIER_CACHES, ("smollm2-outliers-1",)),
    Run("outliers", "ppl", "wiki-test", WINDOWS_2K, ("base",), ("smollm2-outliers-8", "smollm2-outliers-128")),
    Run("outliers", "ppl", "wiki-test", WINDOWS_2K, (*OUTLIER_CACHES, "paper:base"),
        ("smollm2-outliers-32", "gemma3-outliers-32")),
]
