# SPDX-License-Identifier: Apache-2.0
"""Tables of docs/, as data, and their one renderer: Markdown from the reports that tools/quality.py keeps."""

import math
import re
import statistics
from typing import Callable, NamedTuple

import quality_runs as runs

TITLES = {"smollm2": "SmolLM2", "gemma3": "Gemma 3"}
TEXT_NAMES = {"wiki-test": "wiki.test.tokens", "wiki-validation": "wiki.valid.tokens", "novel": "novel.txt"}
COMMAND_WIDTH = 118
STRETCHES = 8  # of a document, in the tables: two of `eval long` each


def number(field, digits):
    return Value(lambda row: row[field], f"{{:.{digits}f}}")


def share(field):
    return Value(lambda row: row[field], "{:.1%}")


class Value(NamedTuple):
    """What a cell shows of a report's row: the mean over parts that have the cache."""

    of: Callable
    style: str

    def text(self, rows):
        return self.style.format(sum(map(self.of, rows)) / len(rows)) if rows else ""


def stretch(index):
    def mean(row):
        pair = row["by_position"][2 * index:2 * index + 2]
        return sum(part["kld_mean"] * part["tokens"] for part in pair) / sum(part["tokens"] for part in pair)
    return Value(mean, "{:.3f}")


class Change(Value):
    """Perplexity, and how far it is from the reference's."""

    def text(self, rows):
        if not rows:
            return ""
        own, other = (sum(row[name] for row in rows) / len(rows) for name in ("ppl", "ppl_against"))
        return f"{own:.2f} ({own / other - 1:+.1%})"


class Divergence(Value):
    """Mean KLD, and its standard error over windows where reports have it: their own, or that of one-window reports
    of different texts."""

    def text(self, rows):
        error = self.error(rows)
        return super().text(rows) + (f" ± {self.style.format(error)}" if error is not None else "")

    def error(self, rows):
        texts = {row.get("text") for row in rows}
        if len(texts) > 1:
            return statistics.stdev(map(self.of, rows)) / math.sqrt(len(rows)) if len(texts) == len(rows) else None
        errors = [row.get("kld_standard_error") for row in rows]
        return statistics.fmean(errors) if errors and None not in errors else None


class Column(NamedTuple):
    title: str
    model: str
    group: str  # of runs
    value: Value


class Table(NamedTuple):
    caches: tuple
    columns: list
    commands: tuple  # groups of runs whose command stands above
    bits: bool = True


def name_in(cache, model):
    """Of a table's row in a model's reports."""
    return cache.cache(model) if isinstance(cache, runs.ByLayer) else cache


def both(*columns):
    """The same columns for each model."""
    return [Column(title, model, group, value) for model in runs.MODELS for title, group, value in columns]


KLD = Divergence(*number("kld_mean", 4))
TOTAL = number("bits_per_value_total", 2)
SCORES = (("mean KLD", KLD), ("p99", number("kld_p99", 3)), ("top-1", share("top1")))


def scores(group, *more):
    return both(*((title, group, value) for title, value in (*more, *SCORES)))


ALL = (*runs.OWN, *runs.PAPER, *runs.BLOCKS, *runs.WINDOWED, *runs.KIVI, *runs.TURBO)
PERPLEXITY = number("ppl", 2)
SIZE = (("with windows", TOTAL), ("perplexity", PERPLEXITY))
RECALL = share("accuracy")
EIGHTHS = (("first", 0), ("second", 1), ("fourth", 3), ("sixth", 5), ("last", 7))
NEVER_DIFFER = Value(lambda row: row["generation"]["same"], "{:.0f}")
AGREEMENT = Value(lambda row: row["generation"]["agreement"], "{:.0%}")


def with_1024(caches):
    """The paper's norm from 1,024 tokens too, behind the one from 128."""
    place = caches.index("paper:base") + 1
    return caches[:place] + runs.PAPER_1024 + caches[place:]


TABLES = {
    "caches": Table(("f16", *ALL, *runs.LIBLLAMA[:2], *runs.UNROTATED, *runs.LIBLLAMA[2:]), scores("wiki-2k", *SIZE), ("wiki-2k",)),
    "caches-8k": Table(("f16", *with_1024(runs.AT_8K)), scores("wiki-8k", *SIZE), ("wiki-8k",)),
    "beginning": Table(("f16", *runs.FEW, *runs.RIVAL),
                       [*both(("repeat, perplexity", "repeat", PERPLEXITY), ("mean KLD", "repeat", KLD),
                              ("recall, 2k", "recall-2k", RECALL), ("8k", "recall-8k", RECALL)),
                        Column("16k", "gemma3", "recall-16k", RECALL)],
                       ("repeat", "recall-2k", "recall-8k", "recall-16k")),
    "novel": Table((*runs.NOVEL, "llama:f16", *runs.RIVAL), scores("novel-2k"), ("novel-2k",)),
    "layers": Table(("small", runs.LAYERS[0], runs.LAYERS[1], "base", runs.LAYERS[2], "k4v4", "paper:base", "sim:kivi2"),
                    scores("novel-2k"), ("novel-2k",)),
    "positions": Table(with_1024(runs.POSITIONS), both(*((name, "novel-8k", stretch(index)) for name, index in EIGHTHS)),
                       ("novel-8k",), bits=False),
    "alone": Table(sum(runs.ALONE.values(), ()), both(("agreement", "alone", AGREEMENT), ("never differ", "alone", NEVER_DIFFER)),
                   ("alone",), bits=False),
    "norms": Table(runs.NORMS, both(("test", "wiki-2k", KLD), ("validation", "validation", KLD)),
                   ("validation",), bits=False),
    "parts": Table(("base", *runs.WINDOW_SIZES, *runs.CALIBRATIONS, *runs.TRANSFORMS, "paper:base",
                    "paper:base+calibration=512"),
                   both(("mean KLD", "wiki-2k", KLD)), ("wiki-2k",), bits=False),
    "outliers": Table(runs.OUTLIERS[32],
                      [Column(f"{TITLES[model]}: {factor}" if factor == 1 else str(factor),
                              name := runs.outlier_model(model, factor), "outliers" if name != model else "wiki-2k",
                              KLD)
                       for model in runs.MODELS for factor in runs.OUTLIERS], ("outliers",), bits=False),
    "topics": Table(runs.TOPIC_CACHES, both(*((f"after {topic}", f"topic-{topic}", KLD) for topic in runs.TOPICS)),
                    ("topic-code",), bits=False),
    "presets": Table(runs.OWN + runs.PAPER, [Column(title, "smollm2", "wiki-2k", value) for title, value in
                                             (("with windows, at 2k", TOTAL), ("perplexity", Change(None, "")),
                                              *SCORES)], ()),
}


class Reports:
    """Rows of reports as `innerkv eval --json` printed them: (model, group of runs, report) of each."""

    def __init__(self, reports):
        self.rows = {}  # (model, group) -> cache -> rows of the parts that have it
        for model, group, report in reports:
            against = report["against"]
            for row in report["results"]:
                self.add(model, group, row | {"ppl_against": against.get("ppl"), "text": report.get("text")})
            self.add(model, group, {"bits_per_value": 16.0} | against)

    def add(self, model, group, row):
        self.rows.setdefault((model, group), {}).setdefault(row["cache"], []).append(row)

    def of(self, column, cache):
        """Rows that have the column's value; the reference has no divergence from itself."""
        rows = self.rows.get((column.model, column.group), {}).get(name_in(cache, column.model), [])
        return [row for row in rows if self.has(column.value, row)]

    @staticmethod
    def has(value, row):
        try:
            return isinstance(value, Change) or value.of(row) is not None
        except KeyError:
            return False

    def bits(self, columns, cache):
        """Of the format; both where head dimensions make a difference."""
        found = []
        for column in columns:
            for row in self.rows.get((column.model, column.group), {}).get(name_in(cache, column.model), []):
                text = f"{row['bits_per_value']:.2f}"
                if text not in found:
                    found.append(text)
        return ", ".join(found)


def heads(columns):
    """Titles, the model's name before its first."""
    previous = None
    for column in columns:
        name = TITLES.get(column.model)
        named = not name or column.title.startswith(name) or column.model == previous
        yield column.title if named else f"{name}: {column.title}"
        previous = column.model


def table_rows(table, reports):
    yield ["cache", *(["bits a value"] if table.bits else []), *heads(table.columns)]
    for cache in table.caches:
        cells = [column.value.text(reports.of(column, cache)) for column in table.columns]
        if any(cells):
            title = cache.title if isinstance(cache, runs.ByLayer) else f"`{cache}`"
            yield [title, *([reports.bits(table.columns, cache)] if table.bits else []), *cells]


def command(group, table):
    """One command for what the table shows of a group's parts."""
    measured = [run for run in runs.RUNS if run.group == group]
    known = {cache for run in measured for cache in run.caches}
    caches = [cache for cache in table.caches if cache in known]
    if any(isinstance(cache, runs.ByLayer) for cache in table.caches):
        caches.append("base+layers=BITS")
    first = measured[0]
    options = "".join(f" --{name} {value}" for name, value in first.options.items())
    text = TEXT_NAMES.get(first.text, "joined.txt")
    lines = [f"innerkv eval {first.measure} -m MODEL --text {text}{options} --cache \\", ""]
    for cache in caches:
        word = cache + ("," if cache != caches[-1] else "")
        if len(lines[-1]) + len(word) > COMMAND_WIDTH:
            lines[-1] += "\\"
            lines.append("")
        lines[-1] += word
    return lines


def render(name, reports):
    table = TABLES[name]
    lines = []
    if table.commands:
        lines += ["```", *(line for group in table.commands for line in command(group, table)), "```", ""]
    header, *rows = (f"| {' | '.join(cells)} |" for cells in table_rows(table, reports))
    return "\n".join([*lines, header, "|" + "---|" * (header.count(" | ") + 1), *rows])


class BadMarkers(Exception):
    """A document names tables that there are not, or none."""


def fill(document, reports, names=tuple(TABLES)):
    """The document with the tables of these names between their two marks made anew."""
    marks = re.findall(r"^<!-- table (\S+) -->$", document, flags=re.MULTILINE)
    if not marks:
        raise BadMarkers("has no line '<!-- table NAME -->'")
    for name in marks:
        if name not in TABLES:
            raise BadMarkers(f"asks for the table '{name}'; there are {', '.join(TABLES)}")
        if name not in names:
            continue
        made = f"<!-- table {name} -->\n{render(name, reports)}\n<!-- end of table -->"
        document, count = re.subn(rf"^<!-- table {name} -->\n.*?^<!-- end of table -->$",
                                  made.replace("\\", r"\\"), document, flags=re.DOTALL | re.MULTILINE)
        if count != 1:
            raise BadMarkers(f"has {count} tables '{name}' with a line '<!-- end of table -->'")
    return document
