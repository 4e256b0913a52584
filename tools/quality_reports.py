# SPDX-License-Identifier: Apache-2.0
"""Reports that tools/quality.py keeps, as they are read again: what is not one is told, not traced back."""

import json
import math
from numbers import Real

KEPT = {"arguments": list, "threads": int, "made_with": dict, "report": dict}
MADE_WITH = ("program", "model", "text")
SCORES = ("ppl", "kld_mean", "kld_p99", "top1", "bits_per_value", "bits_per_value_total")
# Figures of a row, by measure of `innerkv eval`; quality_tables shows them.
FIGURES = {"ppl": SCORES, "repeat": SCORES, "long": SCORES,
           "recall": ("accuracy", "bits_per_value", "bits_per_value_total")}
STRETCHES = 16  # of `eval long`


class BadReport(Exception):
    """What is wrong with a file."""


def require(condition, problem):
    if not condition:
        raise BadReport(problem)


def is_figure(value):
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def require_fields(where, entry, fields):
    require(isinstance(entry, dict), f"{where} is no object")
    for name, kind in fields.items():
        require(isinstance(entry.get(name), kind), f"{where} has no {name} that is of type {kind.__name__}")


def require_figures(where, entry, names):
    for name in names:
        require(is_figure(entry.get(name)), f"{where} has no figure {name}")


def read(path):
    """The object in a file. Raises BadReport, and FileNotFoundError."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as problem:
        raise BadReport(str(problem)) from None
    require_fields("it", kept, KEPT)
    require_fields("made_with", kept["made_with"], dict.fromkeys(MADE_WITH, str))
    return kept


def check_long(where, row):
    require_fields(where, row, {"by_position": list, "generation": dict})
    require(len(row["by_position"]) == STRETCHES, f"{where} has no {STRETCHES} stretches by_position")
    for part in row["by_position"]:
        require(isinstance(part, dict), f"{where} has a stretch that is no object")
        require_figures(f"a stretch of {where}", part, ("kld_mean", "tokens"))
    generation = row["generation"]
    require(is_figure(generation.get("same")), f"{where} has no figure generation.same")
    agreement = generation.get("agreement")
    require(agreement is None or is_figure(agreement), f"{where} has no figure generation.agreement")


def check(report, measure, caches):
    """Raises BadReport unless a report of `innerkv eval` has what tables show of it."""
    require_fields("the report", report, {"isa": str, "against": dict, "results": list})
    require_fields("against", report["against"], {"cache": str})
    for row in report["results"]:
        require_fields("a result", row, {"cache": str})
        require_figures(row["cache"], row, FIGURES[measure])
        if measure != "recall":
            require_fields(row["cache"], row, {"kld_by_item": list})
            require(row["kld_by_item"] and all(map(is_figure, row["kld_by_item"])),
                    f"{row['cache']} has no figures kld_by_item")
        if measure == "long":
            check_long(row["cache"], row)
    against = "accuracy" if measure == "recall" else "ppl"
    require_figures("against", report["against"], (against,))
    found = [row["cache"] for row in report["results"]]
    require(found == list(caches), f"its caches are {', '.join(found)}, not {', '.join(caches)}")
