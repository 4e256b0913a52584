#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tasks of lm-evaluation-harness on several presets of the cache, as rows of a Markdown table.

    lm_eval_presets.py MODEL [--preset NAME,...] [--limit N] [--json]

MODEL is a name or folder for from_pretrained, or a GGUF file, read once. The tasks are those of python/examples/lm_eval,
which read files of this project; each figure is given with the harness's standard error, where it has one.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import lm_eval
import torch
import transformers
from caches import source_of
from lm_eval.tasks import TaskManager

from innerkv.lm_eval import InnerKVLM

ROOT = Path(__file__).resolve().parents[2]
#: What a row has: a task of python/examples/lm_eval, its metric, a factor, digits and a heading.
COLUMNS = (
    ("passages", "acc,none", 100, 1, "passages, % right"),
    ("gsm8k-local-solutions", "bits_per_byte,none", 1, 4, "GSM8K solutions, bits a byte"),
    ("gsm8k-local", "exact_match,number", 100, 1, "GSM8K, % right"),
)


def load(name):
    """Model and tokenizer. A GGUF file is one of its folder, as transformers has it."""
    source = source_of(name)
    model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(**source)


def evaluate(model, tokenizer, preset, batch_size, limit):
    """(figure, standard error or None) of each column."""
    tasks = TaskManager(include_path="python/examples/lm_eval", include_defaults=False)
    lm = InnerKVLM(model, preset, tokenizer=tokenizer, batch_size=batch_size)
    names = [name for name, *_ in COLUMNS]
    results = lm_eval.simple_evaluate(lm, tasks=names, task_manager=tasks, limit=limit)["results"]
    figures = []
    for task, metric, factor, _, _ in COLUMNS:
        error = results[task].get(metric.replace(",", "_stderr,"))
        figures.append((factor * results[task][metric], factor * error if isinstance(error, float) else None))
    return figures


def row(preset, figures):
    cells = [f"{figure:.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None else "")
             for (figure, error), (_, _, _, digits, _) in zip(figures, COLUMNS)]
    return f"| `{preset}` | " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("model")
    parser.add_argument("--preset", default="f16,base,small")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--limit", type=int, help="documents of a task; all by default")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    name = str(Path(options.model).resolve()) if Path(options.model).exists() else options.model
    os.chdir(ROOT)  # tasks name their files from there
    model, tokenizer = load(name)
    results = {}
    for preset in options.preset.split(","):
        print(f"{preset} ...", file=sys.stderr, flush=True)
        results[preset] = evaluate(model, tokenizer, preset, options.batch_size, options.limit)
    if options.json:
        print(json.dumps({"columns": [heading for *_, heading in COLUMNS], "results": results}))
        return
    print("| preset | " + " | ".join(heading for *_, heading in COLUMNS) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for preset, figures in results.items():
        print(row(preset, figures))


if __name__ == "__main__":
    main()
