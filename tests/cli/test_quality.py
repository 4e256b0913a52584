# SPDX-License-Identifier: Apache-2.0
"""tools/quality.py: its runs and tables fit together; it measures, goes on and fills documents. Short runs on
random models: what comes out is checked against the reports, not against docs/quality.md."""

import json
import subprocess
import sys
import tempfile
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

    def test_every_cell_has_a_run(self):
        for name, table in quality_tables.TABLES.items():
            for column in table.columns:
                measured = {cache for run in quality_runs.RUNS if run.group == column.group
                            and column.model in run.models for cache in run.caches}
                shown = {quality_tables.name_in(cache, column.model) for cache in table.caches}
                self.assertTrue(measured & shown, (name, column.title))
            for cache in set(table.caches) - {"f16"}:
                self.assertTrue(any(quality_tables.name_in(cache, model_name) in run.caches
                                    for run in quality_runs.RUNS for model_name in quality_runs.MODELS), (name, cache))

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
        row = {name: 0.5 for name in quality_reports.FIGURES[measure]}
        if measure == "long":
            row |= {"by_position": [{"kld_mean": 0.1, "tokens": 9}] * 16, "generation": {"same": 1, "agreement": None}}
        return {"against": {"cache": "f16", "ppl": 2.0, "accuracy": 0.5},
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
                 (put("kld_standard_error", "x"), "no figure kld_standard_error"), (put("by_position", [1] * 16), "no object"),
                 (put("by_position", []), "no 16 stretches"), (put("by_position", [{}] * 16), "no figure kld_mean"),
                 (put("generation", {"same": 1, "agreement": "x"}), "agreement"), (without("generation"), "no generation"),
                 (lambda report: report["results"].reverse(), "caches are small, base, not base, small"))
        for change, part in cases:
            report = self.good()
            change(report)
            with self.subTest(part=part), self.assertRaisesRegex(quality_reports.BadReport, part):
                quality_reports.check(report, "long", self.RUN.caches)


class RenderTest(unittest.TestCase):
    @staticmethod
    def reports(**klds):
        """Of wiki-2k on SmolLM2, each cache in a report of its own."""
        return quality_tables.Reports(
            ("smollm2", "wiki-2k",
             {"against": {"cache": "f16", "ppl": 20.0, "tokens": 5},
              "results": [{"cache": cache, "ppl": 21.0, "kld_mean": kld, "kld_p99": 2 * kld, "top1": 0.5,
                           "bits_per_value": 3.5, "bits_per_value_total": 4.25}]})
            for cache, kld in klds.items())

    def test_cells_without_a_report_are_empty(self):
        text = quality_tables.render("presets", self.reports(small=0.25, base=0.125))
        self.assertEqual(text.splitlines(), [
            "| cache | bits a value | SmolLM2: with windows, at 2k | perplexity | mean KLD | p99 | top-1 |",
            "|---|---|---|---|---|---|---|",
            "| `base` | 3.50 | 4.25 | 21.00 (+5.0%) | 0.1250 | 0.250 | 50.0% |",
            "| `small` | 3.50 | 4.25 | 21.00 (+5.0%) | 0.2500 | 0.500 | 50.0% |"])
        both = quality_tables.render("caches", self.reports(base=0.125)).splitlines()
        self.assertIn("| `f16` | 16.00 |  | 20.00 |  |  |  |  |  |  |  |  |", both)
        self.assertIn("| `base` | 3.50 | 4.25 | 21.00 | 0.1250 | 0.250 | 50.0% |  |  |  |  |  |", both)

    @staticmethod
    def error_of(*rows):
        return quality_tables.KLD.text([{"kld_mean": 0.25, **row} for row in rows])

    def test_standard_errors(self):
        self.assertEqual(self.error_of({"text": "a", "kld_standard_error": 0.0125}), "0.2500 ± 0.0125")
        self.assertEqual(self.error_of({"text": "a"}), "0.2500")
        self.assertEqual(self.error_of({"text": "a", "kld_standard_error": None}), "0.2500")
        # The same windows in two reports, and a window each in two.
        self.assertEqual(self.error_of(*[{"text": "a", "kld_standard_error": 0.0125}] * 2), "0.2500 ± 0.0125")
        self.assertEqual(self.error_of({"text": "a"}, {"text": "b", "kld_mean": 0.75}), "0.5000 ± 0.2500")

    def test_the_command_names_what_the_table_shows(self):
        lines = quality_tables.command("wiki-2k", quality_tables.TABLES["parts"])
        self.assertEqual(lines[0], "innerkv eval ppl -m MODEL --text wiki.test.tokens --ctx 2048 --chunks 3 --cache \\")
        caches = "".join(line.removesuffix("\\") for line in lines[1:]).split(",")
        self.assertEqual(tuple(caches), quality_tables.TABLES["parts"].caches)
        self.assertLess(max(map(len, lines)), 121)

    def test_marks(self):
        made = quality_tables.fill("a\n<!-- table presets -->\nold\n<!-- end of table -->\nz\n",
                                   self.reports(base=0.125))
        self.assertRegex(made, r"^a\n<!-- table presets -->\n\| cache (.*\n){3}<!-- end of table -->\nz\n$")
        self.assertEqual(quality_tables.fill(made, self.reports(base=0.125)), made)
        # Of two tables the one that is not asked for stays.
        two = made + "<!-- table norms -->\nold\n<!-- end of table -->\n"
        self.assertEqual(quality_tables.fill(two, self.reports(base=0.125), ["presets"]), two)
        self.assertIn("\nold\n", two)
        for document, part in (("no table", "no line"), ("<!-- table x -->\n<!-- end of table -->\n", "'x'"),
                               ("<!-- table presets -->\n", "0 tables"),
                               (made + made, "2 tables")):
            with self.assertRaisesRegex(quality_tables.BadMarkers, part):
                quality_tables.fill(document, self.reports(base=0.125))


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


class MeasureTest(unittest.TestCase):
    """Two runs of one window on a model with random weights."""

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

    def quality(self, command, *arguments):
        return subprocess.run([sys.executable, "-B", ROOT / "tools/quality.py", command, *map(str, arguments)],
                              capture_output=True, text=True, check=False, timeout=600)

    def stub(self, text):
        """A program that says it is innerkv and then does what a shell's text says."""
        path = self.results / text.replace(" ", "-")
        path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo innerkv 0 && exit\n{text}\n')
        path.chmod(0o755)
        return path

    def as_whole(self, name):
        """A short run's report as if it had been made with the run's own options."""
        model_name, _, run_name = name.partition("/")
        run = next(run for run in quality_runs.RUNS if run.name == run_name and model_name in run.models)
        self.change(name, lambda kept: kept.update(arguments=run.arguments()))

    def change(self, name, how):
        path = self.results / f"{name}.json"
        kept = json.loads(path.read_text())
        how(kept)
        path.write_text(json.dumps(kept))

    def run_some(self, *names, program=PROGRAM, texts=None):
        return self.quality("run", self.results, "--quick", "--texts", texts or self.folder / "texts", "--models",
                            self.folder / "models", "--program", program, "--jobs", 2, "--threads", 1, "--only", *names)

    def test_measures_goes_on_and_fills_documents(self):
        names = ("*/validation", "smollm2/topic-itself.1", "smollm2/wiki-2k.others")
        first = self.run_some(*names)
        self.assertEqual((first.returncode, first.stdout), (0, ""), first.stderr)
        self.assertIn("quality: 4 of 4 runs to do\n", first.stderr)
        self.assertRegex(first.stderr, r"\[4/4\] .*: \d+ s, about 0 min left\n$")
        paths = sorted(str(path.relative_to(self.results)) for path in self.results.glob("*/*.json"))
        self.assertEqual(paths, ["gemma3/validation.json", "smollm2/topic-itself.1.json",
                                 "smollm2/validation.json", "smollm2/wiki-2k.others.json"])
        self.assertEqual(list(self.results.glob("*/*.journal")), [])
        kept = json.loads((self.results / "gemma3/validation.json").read_text())
        # One that is gone, and one of other options, are made again.
        (self.results / "smollm2/topic-itself.1.json").unlink()
        (self.results / "gemma3/validation.json").write_text(json.dumps(kept | {"arguments": []}))
        second = self.run_some(*names)
        self.assertEqual(second.returncode, 0, second.stderr)
        self.assertIn("quality: 2 of 4 runs to do\n", second.stderr)
        again = json.loads((self.results / "gemma3/validation.json").read_text())
        self.assertEqual(again["report"]["results"], kept["report"]["results"])
        document, picture = self.results / "x.md", self.results / "x.svg"
        other = "<!-- table novel -->\nas it was\n<!-- end of table -->\n"
        empty = f"<!-- table norms -->\n<!-- end of table -->\n{other}"
        document.write_text(empty)
        # Figures of short runs are for no document, and are not taken for those of whole ones.
        for more, part in ((["--quick"], "error: the figures of --quick "), ([], "error: .* has no report ")):
            refused = self.quality("tables", self.results, document, *more)
            self.assertEqual((refused.returncode, document.read_text()), (1, empty))
            self.assertRegex(refused.stderr, f"^{part}.*\n$")
        for path in paths:
            self.as_whole(path.removesuffix(".json"))
        done = self.quality("tables", self.results, document, "--plot", picture, "--only", *names)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stderr, r"^quality: cells are empty where runs are missing: (?!.*novel).*\n$")
        self.assertTrue(document.read_text().endswith(other))
        kld = again["report"]["results"][0]["kld_mean"]
        self.assertRegex(document.read_text(), rf"\n\| `base` \|  \| [\d.]+ \|  \| {kld:.4f} \|\n")
        self.assertEqual(len(xml.etree.ElementTree.parse(picture).getroot().findall("{*}circle")), 5 + 5)  # and the legend
        # Of another program, which is told; of another model, which is refused.
        self.change("gemma3/validation", lambda kept: kept["made_with"].update(program="other"))
        done = self.quality("tables", self.results, document, "--only", *names)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stderr, r"\nquality: reports are not of one program: (?=.*other gemma3/validation).*\n$")
        self.change("smollm2/validation", lambda kept: kept["made_with"].update(model="other"))
        filled = document.read_text()
        done = self.quality("tables", self.results, document, "--only", *names)
        self.assertEqual((done.returncode, document.read_text()), (1, filled))
        self.assertIn("error: reports are not of one model 'smollm2': ", done.stderr)
        # A report that lacks something is named, and nothing is written.
        self.change("smollm2/validation", lambda kept: kept["report"]["results"][0].pop("kld_mean"))
        done = self.quality("tables", self.results, document, "--only", *names)
        self.assertEqual((done.returncode, document.read_text()), (1, filled))
        self.assertRegex(done.stderr, r"^error: .*/smollm2/validation.json is no report of this program: base has no "
                                      r"figure kld_mean; remove it\n$")

    def test_a_run_that_was_stopped_goes_on(self):
        self.assertEqual(self.run_some("smollm2/validation").returncode, 0)
        path = self.results / "smollm2/validation.json"
        kept = json.loads(path.read_text())
        journal = path.with_suffix(".journal")
        path.unlink()
        subprocess.run([PROGRAM, *kept["arguments"], "-m", self.folder / "models" / model.MODELS["smollm2"].file,
                        "--text", self.folder / "texts/wikitext2/valid.txt", "--threads", "1", "--resume", journal],
                       check=True, stdout=subprocess.DEVNULL)
        lines = journal.read_text().splitlines()
        changed = json.loads(lines[1])
        changed["caches"][1] = changed["caches"][2]
        journal.write_text(f"{lines[0]}\n{json.dumps(changed)}\n")
        self.assertEqual(self.run_some("smollm2/validation").returncode, 0)
        base, prefill, _ = json.loads(path.read_text())["report"]["results"]
        self.assertEqual(base["kld_mean"], prefill["kld_mean"])  # as the journal has it

    def test_a_report_of_other_options_does_not_cost_the_journal(self):
        path = self.results / "smollm2/validation.json"
        path.parent.mkdir()
        made_with = {"program": "", "model": "", "text": ""}
        path.write_text(json.dumps({"arguments": [], "threads": 1, "made_with": made_with, "report": {}}))
        path.with_suffix(".journal").write_text("of those options")
        self.assertEqual(self.run_some("smollm2/validation", program=self.stub("exit 1")).returncode, 1)
        self.assertEqual(list(self.results.glob("smollm2/*")), [])
        # What is half done then stays, and is used: this program says so by refusing what is no journal.
        path.with_suffix(".journal").write_text("no journal")
        result = self.run_some("smollm2/validation")
        self.assertEqual(result.returncode, 1)
        self.assertIn("validation.journal", result.stderr)

    def test_a_damaged_report(self):
        path = self.results / "smollm2/validation.json"
        path.parent.mkdir()
        made_with = '"made_with": {"program": "", "model": "", "text": ""}'
        for content in ("{", "[]", "7", "null", "[" * 100000, "{}", '{"arguments": []}', '{"arguments": 7, "threads": 1}',
                        '{"arguments": [], "threads": 1, "made_with": {}, "report": {}}',
                        f'{{"arguments": [], "threads": 1, {made_with}, "report": []}}'):
            path.write_text(content)
            result = self.run_some("smollm2/validation")
            self.assertEqual(result.returncode, 1)
            self.assertRegex(result.stderr, rf"^error: {path} is no report of this program: .*; remove it\n$")

    def test_what_cannot_run(self):
        for names, changes, part in ((("no-such-run",), {}, "'no-such-run'"),
                                     (("smollm2/validation",), {"texts": "nowhere"}, "nowhere/.* wiki.valid.tokens"),
                                     (("*/validation",), {"program": self.stub("exit 1")}, "2 runs failed: gemma3/val"),
                                     (("smollm2/validation",), {"program": "nowhere"}, "cannot run nowhere: No such file.*make"),
                                     (("smollm2/validation",), {"program": "/bin/false"}, "/bin/false is not innerkv"),
                                     (("smollm2/validation",), {"program": self.stub("exit 0")}, "1 runs failed")):
            result = self.run_some(*names, **changes)
            self.assertEqual((result.returncode, result.stdout), (1, ""))
            self.assertRegex(result.stderr.splitlines()[-1], rf"^error: .*{part}")
        self.assertEqual(list(self.results.glob("*/*.json")), [])


if __name__ == "__main__":
    unittest.main()
