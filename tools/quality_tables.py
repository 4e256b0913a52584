# SPDX-License-Identifier: Apache-2.0
"""Tables of docs/, as data, and their one renderer: Markdown from the reports that tools/quality.py keeps."""

import math
import re
import statistics
from typing import Callable, NamedTuple

import quality_runs as runs

TITLES = {"smollm2": "SmolLM2", "gemma3": "Gemma 3", runs.F32: "SmolLM2 in F32"}
TEXT_NAMES = {"wiki-test": "wiki.test.tokens", "wiki-validation": "wiki.valid.tokens", "novel": "novel.txt"}
COMMAND_WIDTH = 118


class Value(NamedTuple):
    """What a cell shows of a report's row: the mean over reports of different windows."""

    of: Callable
    style: str

    def text(self, rows):
        return self.style.format(statistics.fmean(map(self.of, rows))) if rows else ""


def number(field, digits):
    return Value(lambda row: row[field], f"{{:.{digits}f}}")


def share(field):
    return Value(lambda row: row[field], "{:.1%}")


def eighth(index):
    """Mean KLD of an eighth of a document: two of the sixteen stretches of `eval long`."""
    def mean(row):
        pair = row["by_position"][2 * index:2 * index + 2]
        return sum(part["kld_mean"] * part["tokens"] for part in pair) / sum(part["tokens"] for part in pair)
    return Value(mean, "{:.3f}")


def by_window(rows):
    """Mean KLD of each window, whichever text stands before it."""
    return {(row["window"], index): mean for row in rows for index, mean in enumerate(row["kld_by_item"])}


def with_error(values, style):
    """The mean of values of one window each, and its standard error; of one window there is none."""
    text = style.format(statistics.fmean(values))
    if len(values) < 2:
        return text
    return f"{text} ± {style.format(statistics.stdev(values) / math.sqrt(len(values))).lstrip('+')}"


class Divergence(Value):
    """Mean KLD and its standard error over windows, which have equally many tokens."""

    def text(self, rows):
        return with_error(by_window(rows).values(), self.style) if rows else ""


class Column(NamedTuple):
    title: str
    model: str
    group: str  # of runs
    value: Value

    @property
    def groups(self):
        return {self.group}

    def text(self, reports, cache):
        return self.value.text(reports.of(self.model, self.group, cache, self.value))


class Difference(NamedTuple):
    """A column: mean KLD less that of another cache, or of the same in another group, window by window."""

    title: str
    model: str
    group: str
    other_group: str
    other_cache: str = ""  # empty: the same

    @property
    def groups(self):
        return {self.group, self.other_group}

    def text(self, reports, cache):
        own = by_window(reports.of(self.model, self.group, cache, KLD))
        other = by_window(reports.of(self.model, self.other_group, self.other_cache or cache, KLD))
        if not own or own.keys() != other.keys() or (self.group, cache) == (self.other_group, self.other_cache):
            return ""
        return with_error([own[window] - other[window] for window in own], "{:+.4f}")


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


KLD = Divergence(lambda row: row["kld_mean"], "{:.4f}")
TOTAL = number("bits_per_value_total", 2)
PERPLEXITY = number("ppl", 2)
SIZE = (("with windows", TOTAL), ("perplexity", PERPLEXITY))
SCORES = (("mean KLD", KLD), ("p99", number("kld_p99", 3)), ("top-1", share("top1")))
RECALL = share("accuracy")
EIGHTHS = (("first", 0), ("second", 1), ("fourth", 3), ("sixth", 5), ("last", 7))
NEVER_DIFFER = Value(lambda row: row["generation"]["same"], "{:.0f}")
AGREEMENT = Value(lambda row: row["generation"]["agreement"], "{:.0%}")
ALL = (*runs.PRESETS, *runs.BLOCKS, *runs.UNROTATED, *runs.WINDOWED)


def scores(group, *more):
    return both(*((title, group, value) for title, value in (*more, *SCORES)))


def own_and_calibrated(model):
    return [Column("own norms", model, "outliers" if "outliers" in model else "wiki-2k", KLD),
            Column("calibrated", model, "calibrated", KLD),
            Difference("difference", model, "calibrated", "outliers" if "outliers" in model else "wiki-2k")]


def after_topics(model):
    return [*(Column(f"after {topic}", model, f"topic-{topic}", KLD) for topic in runs.TOPICS),
            *(Difference(f"{topic} less itself", model, f"topic-{topic}", "topic-itself")
              for topic in runs.TOPICS if topic != "itself")]


def outliers(model):
    """Beside a model the same with factors; that with factor 1 has the same tensors in the same types."""
    factors = sorted({1, *runs.OUTLIERS[model]})
    names = [runs.outlier_model(model, factor) for factor in factors]
    return [Column(f"{TITLES[model]}: {factor}" if factor == 1 else str(factor), name,
                   "outliers" if name != model else "wiki-2k", KLD) for factor, name in zip(factors, names)]


TABLES = {
    "caches": Table(("f16", *ALL, *runs.LIBLLAMA), scores("wiki-2k", *SIZE), ("wiki-2k",)),
    "floor": Table(("f16", *runs.FLOOR),
                   [Column(title, model, group, value) for model, group in (("smollm2", "wiki-2k"), (runs.F32, "floor"))
                    for title, value in (("perplexity", PERPLEXITY), *SCORES)], ("floor",), bits=False),
    "caches-8k": Table(("f16", *runs.LONG), scores("novel-8k", *SIZE), ("novel-8k",)),
    "positions": Table(runs.LONG, both(*((name, "novel-8k", eighth(index)) for name, index in EIGHTHS)), ("novel-8k",),
                       bits=False),
    "beginning": Table(("f16", *runs.BEGINNING),
                       [*both(("repeat, perplexity", "repeat", PERPLEXITY), ("mean KLD", "repeat", KLD),
                              ("recall, 2k", "recall-2k", RECALL), ("8k", "recall-8k", RECALL)),
                        Column("16k", "gemma3", "recall-16k", RECALL)],
                       ("repeat", "recall-2k", "recall-8k", "recall-16k")),
    "novel": Table(runs.NOVEL, scores("novel-2k"), ("novel-2k",)),
    "layers": Table(("small", runs.LAYERS[0], runs.LAYERS[1], "base", runs.LAYERS[2], "k4v4", "paper:base", "sim:kivi2"),
                    scores("novel-2k"), ("novel-2k",)),
    "alone": Table(runs.ALONE, both(("agreement", "alone", AGREEMENT), ("never differ", "alone", NEVER_DIFFER)),
                   ("alone",), bits=False),
    "norms": Table(("base", *runs.NORMS),
                   [column for model in runs.MODELS for name, group in (("WikiText-2", "wiki-2k"), ("novel", "novel-2k"))
                    for column in (Column(name, model, group, KLD), Difference("less base", model, group, group, "base"))],
                   ("wiki-2k", "novel-2k"), bits=False),
    "parts": Table(("base", *runs.PARTS, *runs.LENGTHS, "paper:base", "paper:base+calibration=512"),
                   [column for model in runs.MODELS
                    for column in (Column("mean KLD", model, "wiki-2k", KLD),
                                   Difference("less base", model, "wiki-2k", "wiki-2k", "base"))], ("wiki-2k",),
                   bits=False),
    "calibrated": Table(runs.CALIBRATED, [column for model in runs.MODELS for column in own_and_calibrated(model)],
                        ("calibrated",), bits=False),
    "outliers": Table((*runs.OUTLIER_CACHES, "paper:base"), [*outliers("smollm2"), *outliers("gemma3")], ("outliers",),
                      bits=False),
    "outliers-calibrated": Table(("base",), own_and_calibrated("smollm2-outliers-32"), ("calibrated",),
                                 bits=False),
    "topics": Table(("base",), [column for model in runs.MODELS for column in after_topics(model)], ("topic-code",),
                    bits=False),
    "simulation": Table(runs.SIMULATED, [Column(title, runs.F32, "simulation", value) for title, value in SCORES],
                        ("simulation",)),
    "apart": Table(runs.APART, [Column(title, "gemma3", "apart", value) for title, value in SCORES], ("apart",)),
}


class Reports:
    """Rows of reports as `innerkv eval --json` printed them: (model, run, report) of each."""

    def __init__(self, reports):
        self.rows = {}  # (model, group of runs) -> cache -> rows
        for model, run, report in reports:
            window = run.text.rpartition("-")[2]  # of joined texts, their number
            for row in ({"bits_per_value": 16.0} | report["against"], *report["results"]):
                rows = self.rows.setdefault((model, run.group), {}).setdefault(row["cache"], [])
                rows.append(row | {"window": window})

    def of(self, model, group, cache, value):
        """Rows that have the value; the reference has no divergence from itself."""
        return [row for row in self.rows.get((model, group), {}).get(name_in(cache, model), [])
                if self.has(value, row)]

    @staticmethod
    def has(value, row):
        try:
            return value.of(row) is not None
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
        cells = [column.text(reports, cache) for column in table.columns]
        if any(cells):
            title = cache.title if isinstance(cache, runs.ByLayer) else f"`{cache}`"
            yield [title, *([reports.bits(table.columns, cache)] if table.bits else []), *cells]


def option_words(options):
    return "".join(f" --{name} {value}" for name, value in options.items())


def command(group, table):
    """One command for what the table shows of a group's parts, behind what makes the calibration where it has one."""
    measured = [run for run in runs.RUNS if run.group == group]
    known = {cache for run in measured for cache in run.caches}
    caches = [cache for cache in table.caches if cache in known]
    if any(isinstance(cache, runs.ByLayer) for cache in table.caches):
        caches.append("base+layers=BITS")
    first = measured[0]
    text = TEXT_NAMES.get(first.text, "joined.txt")
    lines, options = [], option_words(first.options)
    if first.calibrated:
        made = runs.CALIBRATION
        lines.append(f"innerkv calibrate -m MODEL --text {TEXT_NAMES[made['text']]}{option_words(made['options'])}"
                     f" -o {runs.CALIBRATION_FILE}")
        options += f" --calibration {runs.CALIBRATION_FILE}"
    lines += [f"innerkv eval {first.measure} -m MODEL --text {text}{options} --cache \\", ""]
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
