# SPDX-License-Identifier: Apache-2.0
"""tools/quality.py: its runs and tables fit together; it measures, goes on and fills documents. Short runs on
random models: what comes out is checked against the reports, not against docs/quality.md."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import xml.etree.ElementTree
from pathlib import Path

from program import DATA, PROGRAM, RANDOM_MODELS, ROOT

sys.path.insert(0, str(ROOT / "tools"))
import model
import plot_quality
import quality
import quality_reports
import quality_runs
import quality_tables
import quality_texts

STAND_INS = {"wiki-test": "wikitext-small.txt", "wiki-validation": "alice.txt", "novel": "time-machine-opening.txt"}


class RunsAndTablesTest(unittest.TestCase):
    def test_names_of_runs_differ(self):
        names = [(model_name, run.name) for run in quality_runs.RUNS for model_name in run.models]
        self.assertEqual(len(names), len(set(names)))

    def test_runs_of_a_group_share_their_terms(self):
        terms = {}
        for run in quality_runs.RUNS:
            joined = run.text.rpartition("-")[0] if run.text.startswith("topic-") else run.text
            self.assertEqual(terms.setdefault(run.group, (run.measure, joined, run.options)),
                             (run.measure, joined, run.options), run.name)

    @staticmethod
    def measured(model_name, group):
        return [cache for run in quality_runs.RUNS if run.group == group and model_name in run.models
                for cache in run.caches]

    def test_every_column_and_row_has_a_run(self):
        for name, table in quality_tables.TABLES.items():
            for column in table.columns:
                for group in column.groups:
                    shown = {quality_tables.name_in(cache, column.model) for cache in table.caches}
                    self.assertTrue({*self.measured(column.model, group)} & shown, (name, column.title))
            for cache in {*table.caches} - {"f16"}:
                self.assertTrue(any(quality_tables.name_in(cache, column.model) in self.measured(column.model, column.group)
                                    for column in table.columns),
                                (name, cache))

    def test_what_is_compared_has_run_on_the_same_windows(self):
        windows = {}
        for run in quality_runs.RUNS:
            for model_name in run.models:
                for cache in run.caches:
                    windows.setdefault((model_name, run.group, cache), []).append((run.text.rpartition("-")[2], run.options))
        compared = [(column, cache) for table in quality_tables.TABLES.values() for column in table.columns
                    if isinstance(column, quality_tables.Difference) for cache in table.caches]
        self.assertTrue(compared)
        for column, cache in compared:
            own = windows.get((column.model, column.group, cache))
            if own:
                self.assertEqual(own, windows.get((column.model, column.other_group, column.other_cache or cache)))

    def test_no_window_is_measured_twice(self):
        seen = [(model_name, run.group, run.text, cache) for run in quality_runs.RUNS for model_name in run.models
                for cache in run.caches]
        self.assertEqual(len(seen), len(set(seen)))

    def test_every_mean_divergence_has_an_error(self):
        windows = {}
        for run in quality_runs.RUNS:
            for model_name in run.models:
                for cache in run.caches:
                    windows.setdefault((model_name, run.group, cache), 0)
                    windows[model_name, run.group, cache] += run.options.get("chunks") or run.options["documents"]
        for name, table in quality_tables.TABLES.items():
            for column in table.columns:
                if isinstance(column, quality_tables.Difference) or column.value is quality_tables.KLD:
                    for cache in table.caches:
                        self.assertNotEqual(windows.get((column.model, column.group, cache)), 1, (name, column.title, cache))

    def test_every_run_is_in_a_table(self):
        shown = {(column.model, column.group, quality_tables.name_in(cache, column.model))
                 for table in quality_tables.TABLES.values() for column in table.columns for cache in table.caches}
        for run in quality_runs.RUNS:
            for model_name in run.models:
                for cache in run.caches:
                    self.assertIn((model_name, run.group, cache), shown)

    def test_the_documents_ask_for_every_table(self):
        marks = [line.split()[2] for path in (ROOT / "docs").glob("*.md")
                 for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("<!-- table ")]
        self.assertEqual(sorted(marks), sorted(quality_tables.TABLES))


class ReportTest(unittest.TestCase):
    def test_fewer_windows_than_asked_for(self):
        for run in quality_runs.RUNS:
            full = {name: run.options[name] for name in ("chunks", "documents") if name in run.options}
            self.assertEqual(quality.incomplete(full, run), "")
        self.assertIn("2 chunks where 3 were", quality.incomplete({"chunks": 2}, quality_runs.RUNS[0]))


    RUN = quality_runs.Run("x", "long", "novel", {}, ("base", "small"))

    def good(self, measure="long"):
        row = {name: 0.5 for name in quality_reports.FIGURES[measure]} | {"kld_by_item": [0.25, 0.75]}
        if measure == "long":
            row |= {"by_position": [{"kld_mean": 0.1, "tokens": 9}] * 16, "generation": {"same": 1, "agreement": None}}
        return {"isa": "scalar", "against": {"cache": "f16", "ppl": 2.0, "accuracy": 0.5},
                "results": [row | {"cache": name} for name in self.RUN.caches]}

    def test_good_reports(self):
        for measure in quality_reports.FIGURES:
            quality_reports.check(self.good(measure), measure, self.RUN.caches)

    def test_reports_of_a_wrong_shape_are_told(self):
        def without(name):
            return lambda report: report["results"][1].pop(name)

        def put(name, value):
            return lambda report: report["results"][1].update({name: value})

        cases = ((lambda report: report.pop("results"), "no results"), (lambda report: report.pop("against"), "no against"),
                 (lambda report: report.update(results={}), "no results that is of type list"),
                 (lambda report: report["results"].__setitem__(0, 7), "a result is no object"),
                 (lambda report: report["against"].pop("ppl"), "against has no figure ppl"), (without("cache"), "no cache"),
                 (without("kld_mean"), "small has no figure kld_mean"), (put("ppl", "2"), "small has no figure ppl"),
                 (put("ppl", True), "no figure ppl"), (put("top1", float("nan")), "no figure top1"), (put("ppl", None), "ppl"),
                 (put("kld_by_item", [0.5, "x"]), "no figures kld_by_item"), (put("kld_by_item", []), "no figures kld_by_item"),
                 (without("kld_by_item"), "no kld_by_item"), (lambda report: report.pop("isa"), "no isa"), (put("by_position", [1] * 16), "no object"),
                 (put("by_position", []), "no 16 stretches"), (put("by_position", [{}] * 16), "no figure kld_mean"),
                 (put("generation", {"same": 1, "agreement": "x"}), "agreement"), (without("generation"), "no generation"),
                 (lambda report: report["results"].reverse(), "caches are small, base, not base, small"))
        for change, part in cases:
            report = self.good()
            change(report)
            with self.subTest(part=part), self.assertRaisesRegex(quality_reports.BadReport, part):
                quality_reports.check(report, "long", self.RUN.caches)


class RenderTest(unittest.TestCase):
    RUN = quality_runs.Run("wiki-2k.presets", "ppl", "wiki-test", {}, ())
    ROW = {"ppl": 21.0, "kld_p99": 0.25, "top1": 0.5, "bits_per_value": 3.5, "bits_per_value_total": 4.25}

    @classmethod
    def report(cls, *means, cache="base"):
        row = cls.ROW | {"cache": cache, "kld_by_item": list(means), "kld_mean": sum(means) / len(means)}
        return {"against": {"cache": "f16", "ppl": 20.0, "tokens": 5}, "results": [row]}

    @classmethod
    def reports(cls, **means):
        """Of wiki-2k on SmolLM2, each cache in a report of its own."""
        return quality_tables.Reports(("smollm2", cls.RUN, cls.report(*values, cache=cache))
                                      for cache, values in means.items())

    def test_cells_without_a_report_are_empty(self):
        text = quality_tables.render("caches", self.reports(small=[0.25], base=[0.125]))
        self.assertEqual(text.splitlines()[-4:], [
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
            "| `f16` | 16.00 |  | 20.00 |  |  |  |  |  |  |  |  |",
            "| `base` | 3.50 | 4.25 | 21.00 | 0.1250 | 0.250 | 50.0% |  |  |  |  |  |",
            "| `small` | 3.50 | 4.25 | 21.00 | 0.2500 | 0.250 | 50.0% |  |  |  |  |  |"])

    def test_standard_errors(self):
        column = quality_tables.Column("", "smollm2", "wiki-2k", quality_tables.KLD)
        self.assertEqual(column.text(self.reports(base=[0.25]), "base"), "0.2500")
        self.assertEqual(column.text(self.reports(base=[0.0, 0.5]), "base"), "0.2500 ± 0.2500")
        self.assertEqual(column.text(self.reports(base=[0.25, 0.25, 0.25]), "base"), "0.2500 ± 0.0000")

    @classmethod
    def topics(cls, **means):
        """Each window in a report of its own; None: there is no report."""
        return quality_tables.Reports(
            ("smollm2", quality_runs.Run(f"topic-{topic}.{window}", "ppl", f"topic-{topic}-{window}", {}, ()),
             cls.report(mean))
            for topic, values in means.items() for window, mean in enumerate(values) if mean is not None)

    def test_differences_are_taken_window_by_window(self):
        column = quality_tables.Difference("", "smollm2", "topic-code", "topic-itself")
        reports = self.topics(code=[0.5, 1.5], itself=[0.75, 1.25])
        mean = quality_tables.Column("", "smollm2", "topic-code", quality_tables.KLD)
        self.assertEqual(mean.text(reports, "base"), "1.0000 ± 0.5000")
        self.assertEqual(column.text(reports, "base"), "+0.0000 ± 0.2500")
        self.assertEqual(column.text(self.topics(code=[0.5, 1.5], itself=[0.75, 1.75]), "base"), "-0.2500 ± 0.0000")
        # Where a window is missing on one side, none is compared with another.
        for itself in ([0.75], [0.75, None, 1.0], []):
            self.assertEqual(column.text(self.topics(code=[0.5, 1.5], itself=itself), "base"), "")

    def test_differences_from_another_cache(self):
        column = quality_tables.Difference("", "smollm2", "wiki-2k", "wiki-2k", "base")
        reports = self.reports(base=[0.25, 0.5], small=[0.5, 0.75])
        self.assertEqual([column.text(reports, cache) for cache in ("base", "small")], ["", "+0.2500 ± 0.0000"])

    def test_the_command_names_what_the_table_shows(self):
        lines = quality_tables.command("wiki-2k", quality_tables.TABLES["parts"])
        self.assertEqual(lines[0], "innerkv eval ppl -m MODEL --text wiki.test.tokens --ctx 2048 --chunks 3 --cache \\")
        caches = "".join(line.removesuffix("\\") for line in lines[1:]).split(",")
        self.assertEqual(tuple(caches), quality_tables.TABLES["parts"].caches)
        self.assertLess(max(map(len, lines)), 121)

    def test_marks(self):
        reports = self.reports(base=[0.125])
        made = quality_tables.fill("a\n<!-- table parts -->\nold\n<!-- end of table -->\nz\n", reports)
        self.assertRegex(made, r"^a\n<!-- table parts -->\n```\n(.*\n)+```\n\n\| cache (.*\n){3}<!-- end of table -->\nz\n$")
        self.assertEqual(quality_tables.fill(made, reports), made)
        # Of two tables the one that is not asked for stays.
        two = made + "<!-- table norms -->\nold\n<!-- end of table -->\n"
        self.assertEqual(quality_tables.fill(two, reports, ["parts"]), two)
        self.assertIn("\nold\n", two)
        for document, part in (("no table", "no line"), ("<!-- table x -->\n<!-- end of table -->\n", "'x'"),
                               ("<!-- table parts -->\n", "0 tables"),
                               (made + made, "2 tables")):
            with self.assertRaisesRegex(quality_tables.BadMarkers, part):
                quality_tables.fill(document, reports)


class PictureTest(unittest.TestCase):
    def test_the_line_joins_what_nothing_beats(self):
        points = {"base": (4, 0.01), "small": (3, 0.02), "paper:small": (3.5, 0.05), "sim:q4_0": (6, 0.005),
                  "sim:q8_0": (8, 0.006)}
        svg = xml.etree.ElementTree.fromstring("\n".join(plot_quality.draw({"A model": points})))
        circles = [(circle.get("cx"), circle.get("cy")) for circle in svg.findall("{*}circle")][:5]
        places = dict(zip(("small", "paper:small", "base", "q4_0", "q8_0"), circles))  # by bits
        texts = [text.text for text in svg.findall("{*}text")]
        for name in places:
            self.assertIn(name, texts)
        front = [line for line in svg.findall("{*}line") if line.get("stroke-dasharray")]
        ends = [((line.get("x1"), line.get("y1")), (line.get("x2"), line.get("y2"))) for line in front]
        self.assertEqual(ends, [(places["small"], places["base"]), (places["base"], places["q4_0"])])


class TextsTest(unittest.TestCase):
    def test_sources(self):
        self.assertEqual(quality_texts.sources("novel"), {"novel"})
        self.assertEqual(quality_texts.sources("topic-code-1"), {"wiki-test", "code"})
        self.assertEqual(quality_texts.sources("topic-itself-2"), {"wiki-test"})

    def test_the_code_is_what_was_measured(self):
        self.assertTrue(quality_texts.is_the_same("nowhere", "code"))

    def test_joined_texts_differ_in_their_beginning_alone(self):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            for name, content in (("wiki-test", (DATA / "wikitext-small.txt").read_text(encoding="utf-8")),
                                  ("arithmetic", '{"question": "1 + 1?", "answer": "2"}\n' * 200)):
                path = folder / quality_texts.TEXTS[name].file
                path.parent.mkdir()
                path.write_text(content, encoding="utf-8")
            for number in (1, 3):
                texts = [quality_texts.topic_text(folder, topic, number) for topic in quality_runs.TOPICS]
                beginnings = {text[:quality_texts.LEAD] for text in texts}
                self.assertEqual((len(beginnings), {len(text) for text in texts}), (3, {quality_texts.JOINED}))
                self.assertEqual(len({text[quality_texts.LEAD:] for text in texts}), 1)
            self.assertNotEqual(texts[0], quality_texts.topic_text(folder, "code", 1))
            with self.assertRaisesRegex(quality_texts.Missing, "too short for window 10 of"):
                quality_texts.topic_text(folder, "code", 10)


class MeasureTest(unittest.TestCase):
    """Runs of one window on models with random weights."""

    @classmethod
    def setUpClass(cls):
        scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(scratch.cleanup)
        cls.folder = Path(scratch.name)
        (cls.folder / "models").mkdir()
        for name, file in (("smollm2", "llama-long"), ("gemma3", "gemma3")):
            (cls.folder / "models" / model.MODELS[name].file).symlink_to(RANDOM_MODELS / f"{file}.gguf")
        for name, file in STAND_INS.items():
            path = cls.folder / "texts" / quality_texts.TEXTS[name].file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(DATA / file)

    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.results = Path(scratch.name)
        self.quick = self.results / "quick"

    def quality(self, command, *arguments):
        return subprocess.run([sys.executable, "-B", ROOT / "tools/quality.py", command, *map(str, arguments)],
                              capture_output=True, text=True, check=False, timeout=600)

    def stub(self, text):
        """A program that says it is innerkv and then does what a shell's text says."""
        path = self.results / f"stub-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo innerkv 0 && exit\n{text}\n')
        path.chmod(0o755)
        return path

    def as_whole(self, name):
        """A short run's report as if it had been made with the run's own options."""
        model_name, _, run_name = name.partition("/")
        run = next(run for run in quality_runs.RUNS if run.name == run_name and model_name in run.models)
        (self.results / model_name).mkdir(exist_ok=True)
        (self.quick / f"{name}.json").replace(self.results / f"{name}.json")
        self.change(self.results / f"{name}.json", lambda kept: kept.update(arguments=run.arguments()))

    @staticmethod
    def change(path, how):
        kept = json.loads(path.read_text())
        how(kept)
        path.write_text(json.dumps(kept))

    def run_some(self, *names, program=PROGRAM, texts=None):
        return self.quality("run", self.results, "--quick", "--texts", texts or self.folder / "texts", "--models",
                            self.folder / "models", "--program", program, "--jobs", 2, "--threads", 1, "--only", *names)

    def test_measures_goes_on_and_fills_documents(self):
        names = ("smollm2/calibrated", "gemma3/calibrated", "smollm2/topic-itself.1", "smollm2/wiki-2k.others")
        first = self.run_some(*names)
        self.assertEqual((first.returncode, first.stdout), (0, ""), first.stderr)
        self.assertIn("quality: 4 of 4 runs to do\n", first.stderr)
        self.assertRegex(first.stderr, r"\[4/4\] .*: \d+ s, about 0 min left\n$")
        paths = sorted(str(path.relative_to(self.quick)) for path in self.quick.glob("*/*.json"))
        self.assertEqual(paths, sorted(f"{name}.json" for name in names))
        self.assertEqual(list(self.results.glob("*/*.json")), [])  # short ones replace nothing
        self.assertEqual(list(self.quick.glob("*/*.journal")), [])
        report = json.loads((self.quick / "gemma3/calibrated.json").read_text())
        self.assertRegex(report["report"]["calibration"], r"/quick/calibrations/gemma3\.[0-9a-f]{12}\.gguf$")
        # One that is gone, and one of other options, are made again.
        (self.quick / "smollm2/topic-itself.1.json").unlink()
        (self.quick / "gemma3/calibrated.json").write_text(json.dumps(report | {"arguments": []}))
        second = self.run_some(*names)
        self.assertEqual(second.returncode, 0, second.stderr)
        self.assertIn("quality: 2 of 4 runs to do\n", second.stderr)
        again = json.loads((self.quick / "gemma3/calibrated.json").read_text())
        self.assertEqual(again["report"]["results"], report["report"]["results"])
        document, picture = self.results / "x.md", self.results / "x.svg"
        other = "<!-- table novel -->\nas it was\n<!-- end of table -->\n"
        empty = f"<!-- table calibrated -->\n<!-- end of table -->\n{other}"
        document.write_text(empty)
        # Figures of short runs are for no document, and are not taken for those of whole ones.
        for more, part in ((["--quick"], "error: the figures of --quick "), ([], "error: .* has no report ")):
            refused = self.quality("tables", self.results, document, *more)
            self.assertEqual((refused.returncode, document.read_text()), (1, empty))
            self.assertRegex(refused.stderr, f"^{part}.*\n$")
        for path in paths:
            self.as_whole(path.removesuffix(".json"))
        fill = ("tables", self.results, document, "--plot", picture, "--only", *names)
        done = self.quality(*fill)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stderr, r"^quality: cells are empty where runs are missing: (?=.*gemma3/wiki-2k.presets).*\n$")
        self.assertTrue(document.read_text().endswith(other))
        kld = again["report"]["results"][0]["kld_mean"]
        self.assertRegex(document.read_text(), rf"\n\| `base` \|  \| [\d.]+ \|  \|  \| {kld:.4f} \|  \|\n")
        self.assertIn("\ninnerkv calibrate -m MODEL --text wiki.valid.tokens ", document.read_text())
        circles = xml.etree.ElementTree.parse(picture).getroot().findall("{*}circle")
        self.assertEqual(len(circles), len(quality_runs.WINDOWED) + len(plot_quality.COLOURS))  # and the legend
        # What is not of one build is refused, and nothing is written.
        filled = document.read_text()
        gemma3, smollm2 = (self.results / f"{name}/calibrated.json" for name in ("gemma3", "smollm2"))
        for path, how, kind in ((gemma3, lambda kept: kept["made_with"].update(program="other"), "program"),
                                (gemma3, lambda kept: kept.update(threads=77), "number of threads"),
                                (gemma3, lambda kept: kept["report"].update(isa="other"), "instruction set"),
                                (smollm2, lambda kept: kept["made_with"].update(text="other"), "text 'wiki-test'"),
                                (smollm2, lambda kept: kept["made_with"].update(model="other"), "model 'smollm2'")):
            before = path.read_text()
            self.change(path, how)
            done = self.quality(*fill)
            self.assertEqual((done.returncode, document.read_text()), (1, filled))
            self.assertRegex(done.stderr, rf"\nerror: reports are not of one {kind}: .*(77|other) {path.parent.name}/calibrated")
            path.write_text(before)
        # A report that lacks something is named, and nothing is written.
        self.change(smollm2, lambda kept: kept["report"]["results"][0].pop("kld_mean"))
        done = self.quality(*fill)
        self.assertEqual((done.returncode, document.read_text()), (1, filled))
        self.assertRegex(done.stderr, r"^error: .*/smollm2/calibrated.json is no report of this program: base has no "
                                      r"figure kld_mean; remove it\n$")

    def test_a_run_that_was_stopped_goes_on(self):
        # All windows are done, and then it fails once: what is kept of them is what the next run shows.
        failed = self.results / "failed"
        program = self.stub(f'"{PROGRAM}" "$@" || exit\n[ "$1" != eval ] || [ -e {failed} ] || {{ touch {failed}; exit 1; }}')
        self.assertEqual(self.run_some("smollm2/calibrated", program=program).returncode, 1)
        journal, = self.quick.glob("smollm2/calibrated.*.journal")
        lines = journal.read_text().splitlines()
        changed = json.loads(lines[1])
        changed["caches"][1] = changed["caches"][2]
        journal.write_text(f"{lines[0]}\n{json.dumps(changed)}\n")
        again = self.run_some("smollm2/calibrated", program=program)
        self.assertEqual(again.returncode, 0, again.stderr)
        base, k4v4 = json.loads((self.quick / "smollm2/calibrated.json").read_text())["report"]["results"]
        self.assertEqual(base["kld_mean"], k4v4["kld_mean"])
        self.assertEqual(list(self.quick.glob("smollm2/*.journal")), [])

    def test_ctrl_c_begins_nothing_more(self):
        started = self.results / "started"
        program = self.stub(f'touch {started}; trap "exit 130" INT; while :; do sleep 0.1; done')
        arguments = ["run", self.results, "--quick", "--texts", self.folder / "texts", "--models", self.folder / "models",
                     "--program", program, "--jobs", 1, "--only", "smollm2/topic-itself.*"]
        with subprocess.Popen([sys.executable, "-B", ROOT / "tools/quality.py", *map(str, arguments)], start_new_session=True,
                              stderr=subprocess.PIPE, text=True) as process:
            try:
                for _ in range(600):
                    if started.exists():
                        break
                    time.sleep(0.1)
                os.killpg(process.pid, signal.SIGINT)
                said = process.communicate(timeout=60)[1]
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        self.assertEqual(process.returncode, 130, said)
        self.assertNotRegex(said, r"\[\d/6\]|Traceback")

    def test_a_report_of_other_options_stays_until_there_is_a_new_one(self):
        path = self.quick / "smollm2/calibrated.json"
        path.parent.mkdir(parents=True)
        made_with = {"program": "", "model": "", "text": ""}
        old = json.dumps({"arguments": [], "threads": 1, "made_with": made_with, "report": {}})
        path.write_text(old)
        self.assertEqual(self.run_some("smollm2/calibrated", program=self.stub("exit 1")).returncode, 1)
        self.assertEqual(path.read_text(), old)
        self.assertEqual(self.run_some("smollm2/calibrated").returncode, 0)
        self.assertNotEqual(path.read_text(), old)

    def test_a_damaged_report(self):
        path = self.quick / "smollm2/calibrated.json"
        path.parent.mkdir(parents=True)
        made_with = '"made_with": {"program": "", "model": "", "text": ""}'
        for content in ("{", "[]", "7", "null", "[" * 100000, "{}", '{"arguments": []}', '{"arguments": 7, "threads": 1}',
                        '{"arguments": [], "threads": 1, "made_with": {}, "report": {}}',
                        f'{{"arguments": [], "threads": 1, {made_with}, "report": []}}'):
            path.write_text(content)
            result = self.run_some("smollm2/calibrated")
            self.assertEqual(result.returncode, 1)
            self.assertRegex(result.stderr, rf"^error: {path} is no report of this program: .*; remove it\n$")

    def test_what_cannot_run(self):
        for names, changes, part in ((("no-such-run",), {}, "'no-such-run'"),
                                     (("smollm2/calibrated",), {"texts": "nowhere"}, "nowhere/.* wiki.test.tokens"),
                                     (("smollm2/calibrated", "gemma3/calibrated"), {"program": self.stub("exit 1")}, "2 runs failed: gemma3/cal"),
                                     (("smollm2/calibrated",), {"program": "nowhere"}, "cannot run nowhere: No such file.*make"),
                                     (("smollm2/calibrated",), {"program": "/bin/false"}, "/bin/false is not innerkv"),
                                     (("smollm2/calibrated",), {"program": self.stub("exit 0")}, "1 runs failed")):
            result = self.run_some(*names, **changes)
            self.assertEqual((result.returncode, result.stdout), (1, ""))
            self.assertRegex(result.stderr.splitlines()[-1], rf"^error: .*{part}")
        self.assertEqual(list(self.quick.glob("*/*.json")), [])


if __name__ == "__main__":
    unittest.main()
