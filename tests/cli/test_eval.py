# SPDX-License-Identifier: Apache-2.0
"""`innerkv eval recall`, `repeat`, `long`, and what all measurements share: plots, resuming."""

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
import xml.etree.ElementTree
from pathlib import Path

import program
from program import DATA, NUMBER, RANDOM_MODEL, ProgramTest, innerkv, model

PPL_FIELDS = {"cache": str, "ppl": NUMBER, "kld_mean": NUMBER, "kld_p99": NUMBER, "top1": NUMBER,
              "bits_per_value": NUMBER, "tokens": int}


def arguments_of(measurement, *arguments, of=RANDOM_MODEL):
    return ("eval", measurement, "-m", of, "--threads", 1, "--text", DATA / "wikitext-small.txt",
            *arguments)


class EvalTest(ProgramTest):
    def evaluate(self, measurement, *arguments, of=RANDOM_MODEL):
        return self.json(innerkv(*arguments_of(measurement, *arguments, of=of), "--json"))

    def weighs_the_same(self, entry):
        """Stretches of by_position sum to the whole."""
        parts = entry["by_position"]
        self.assertEqual(sum(part["tokens"] for part in parts), entry["tokens"])
        for name, whole in (("kld_mean", entry["kld_mean"]), ("top1", entry["top1"])):
            mean = sum(part["tokens"] * part[name] for part in parts) / entry["tokens"]
            self.assertTrue(math.isclose(mean, whole, rel_tol=1e-9, abs_tol=1e-12), name)
        log = sum(part["tokens"] * math.log(part["ppl"]) for part in parts) / entry["tokens"]
        self.assertTrue(math.isclose(math.exp(log), entry["ppl"], rel_tol=1e-9))

    def is_the_reference(self, entry, against):
        self.assertEqual((entry["kld_mean"], entry["kld_p99"], entry["kld_max"], entry["top1"]),
                         (0, 0, 0, 1))
        self.assertEqual(entry["ppl"], against["ppl"])


class RecallTest(EvalTest):
    def test_json(self):
        result = self.evaluate("recall", "--ctx", 700, "--depths", 5, "--documents", 2, "--cache",
                               "f16,base")
        self.assertEqual((result["documents"], result["key_norm"]), (2, None))
        same, quantized = result["results"]
        for entry in (result["against"], same, quantized):
            self.has_fields(entry, {"cache": str, "accuracy": NUMBER, "items": int,
                                    "log_likelihood": NUMBER, "by_depth": list})
            self.assertEqual(entry["items"], 10)
            self.assertEqual([part["depth"] for part in entry["by_depth"]], [0, 0.25, 0.5, 0.75, 1])
            for name in ("accuracy", "log_likelihood"):
                mean = sum(part[name] for part in entry["by_depth"]) / 5
                self.assertAlmostEqual(mean, entry[name])
        self.assertEqual(same, result["against"])
        self.assertEqual((same["kld_mean"], same["top1"]), (0, 1))
        self.assertGreater(quantized["kld_mean"], 0)
        self.assertNotEqual(quantized["log_likelihood"], same["log_likelihood"])

    def test_a_model_recalls_what_the_text_says(self):
        result = self.evaluate("recall", "--ctx", 800, "--depths", 4, "--documents", 1, "--cache",
                               "k8v8", of=model())
        for entry in (result["against"], *result["results"]):
            self.assertGreaterEqual(entry["accuracy"], 0.75)  # of values from 10000 to 99999
            self.assertGreater(entry["log_likelihood"], -4)  # chance: -11.4

    def test_table(self):
        text = self.succeed(innerkv(*arguments_of("recall", "--ctx", 600, "--depths", 3,
                                                  "--documents", 1)))
        self.assertRegex(text, r"^1 document of 544 tokens, 3 facts in each: 3 answers a cache\n"
                               r"cache +right +log p +mean KLD +0% +50% +100%\nf16 .*\nbase .*%\n$")

    def test_no_room(self):
        result = innerkv(*arguments_of("recall", "--ctx", 512, "--depths", 40, "--documents", 1))
        self.fail_with(result, 2, "--depths 40", "--ctx")


class RepeatTest(EvalTest):
    def test_json(self):
        result = self.evaluate("repeat", "--ctx", 640, "--passage", 100, "--documents", 2,
                               "--cache", "f16,base")
        self.assertEqual((result["documents"], result["passage"], result["between"]), (2, 100, 280))
        same, quantized = result["results"]
        for entry in result["results"]:
            self.has_fields(entry, PPL_FIELDS)
            self.assertEqual(entry["tokens"], 200)
            self.assertEqual(len(entry["by_position"]), 16)
            self.weighs_the_same(entry)
        self.is_the_reference(same, result["against"])
        self.assertGreater(quantized["kld_mean"], 0)

    def test_the_second_reading_is_predicted(self):
        result = self.evaluate("repeat", "--ctx", 512, "--passage", 64, "--documents", 1, "--cache",
                               "k8v8", of=model())
        for entry in (result["against"], *result["results"]):
            self.assertLess(entry["ppl"], 0.3 * entry["ppl_first"])

    def test_text_is_too_short(self):
        self.fail_with(innerkv("eval", "repeat", "-m", RANDOM_MODEL, "--text", DATA / "README.md",
                               "--ctx", 2000), 2, "document of 1744 tokens (--ctx 2000 less", "--passage 256", "smaller --ctx")


class LongTest(EvalTest):
    def test_json(self):
        result = self.evaluate("long", "--ctx", 400, "--documents", 2, "--starts", 3, "--generate",
                               20, "--cache", "f16,base")
        same, quantized = result["results"]
        for entry in result["results"]:
            self.has_fields(entry, PPL_FIELDS)
            self.assertEqual(entry["tokens"], 2 * 399)
            self.assertEqual(entry["by_position"][0]["position"], 1)
            self.weighs_the_same(entry)
            starts = entry["generation"]["starts"]
            self.assertEqual([(one["document"], one["start"]) for one in starts],
                             [(0, 126), (0, 253), (0, 380), (1, 126), (1, 253), (1, 380)])
            shares = [1 if one["first_divergence"] is None
                      else one["first_divergence"] / one["generated"] for one in starts]
            self.assertAlmostEqual(sum(shares) / 6, entry["generation"]["agreement"])
            self.assertEqual(shares.count(1), entry["generation"]["same"])
        self.is_the_reference(same, result["against"])
        self.assertEqual((same["generation"]["agreement"], same["generation"]["same"]), (1, 6))
        # What lies in the fp16 windows is not quantized yet.
        self.assertEqual(quantized["by_position"][0]["kld_mean"], 0)
        self.assertGreater(quantized["by_position"][-1]["kld_mean"], 0)

    def test_more_starts_than_places(self):
        arguments = ("--ctx", 200, "--generate", 100, "--documents", 1, "--cache", "f16")
        result = self.evaluate("long", *arguments, "--starts", 100)
        starts = result["results"][0]["generation"]["starts"]
        self.assertEqual([start["start"] for start in starts], list(range(1, 101)))
        self.fail_with(innerkv(*arguments_of("long", *arguments, "--starts", 101)), 2,
                       "--starts 101", "100 places", "--ctx")

    def test_no_texts(self):
        text = self.succeed(innerkv(*arguments_of("long", "--ctx", 300, "--starts", 0)))
        self.assertRegex(text, r"^1 document of 300 tokens, all scored: 299 tokens; .*\n.*\nbase .*\n$")
        # Nor does --generate matter then.
        self.succeed(innerkv(*arguments_of("long", "--ctx", 200, "--starts", 0, "--generate", 300,
                                          "--cache", "f16")))


class ContenderTest(EvalTest):
    """Names of other caches and of settings, beside the ppl that has tests of its own."""
    CASES = {"recall": ("--ctx", 700, "--depths", 2, "--documents", 1),
             "repeat": ("--ctx", 600, "--passage", 64, "--documents", 1),
             "long": ("--ctx", 400, "--starts", 1, "--generate", 4)}
    CACHES = ["base", "paper:base", "base+sink=0", "sim:q4_0+rot", "sim:kivi2"]

    def test_run_everywhere(self):
        for measurement, arguments in self.CASES.items():
            with self.subTest(measurement=measurement):
                result = self.evaluate(measurement, *arguments, "--cache", ",".join(self.CACHES))
                entries = {entry["cache"]: entry for entry in result["results"]}
                self.assertEqual(list(entries), self.CACHES)
                divergences = [entry["kld_mean"] for entry in entries.values()]
                self.assertGreater(min(divergences), 0)
                self.assertEqual(len(set(divergences)), len(self.CACHES))  # no two are one cache
                self.assertLess(entries["base"]["kld_mean"], entries["paper:base"]["kld_mean"])

    def test_unknown(self):
        for measurement, arguments in self.CASES.items():
            for cache, part in (("sim:q3_9", "sim:q4_0"), ("base+sinks=4", "sink=N")):
                self.fail_with(innerkv(*arguments_of(measurement, *arguments, "--cache", cache)), 2,
                               cache.split("+")[-1], part)


class PlotTest(EvalTest):
    CASES = (("ppl", "--ctx", 300, "--chunks", 2),
             ("recall", "--ctx", 600, "--depths", 4, "--documents", 1),
             ("repeat", "--ctx", 512, "--passage", 64, "--documents", 1),
             ("long", "--ctx", 400, "--starts", 0))

    def test_well_formed(self):
        with tempfile.TemporaryDirectory() as scratch:
            for measurement, *arguments in self.CASES:
                plot = Path(scratch) / f"{measurement}.svg"
                self.succeed(innerkv(*arguments_of(measurement, *arguments), "--cache", "base,k8v8",
                                     "--plot", plot))
                root = xml.etree.ElementTree.parse(plot).getroot()
                name = "{http://www.w3.org/2000/svg}"
                self.assertEqual(root.tag, name + "svg")
                texts = [element.text for element in root.iter(name + "text")]
                for cache in ("base", "k8v8"):
                    self.assertTrue(any(text.startswith(cache) for text in texts), texts)
                for element in root.iter(name + "text"):
                    self.assertTrue(0 <= float(element.get("x")) <= float(root.get("width")))
                    self.assertTrue(0 <= float(element.get("y")) <= float(root.get("height")))

    def test_inputs_are_not_overwritten(self):
        with tempfile.TemporaryDirectory() as scratch:
            text = Path(scratch) / "text.svg"
            shutil.copy(DATA / "README.md", text)
            before = text.read_bytes()
            measured = ("eval", "ppl", "-m", RANDOM_MODEL, "--text", text, "--ctx", 64, "--chunks", 1)
            done = text.with_name("done.svg")
            for arguments, what in ((("--plot", text), "the text"), (("--resume", text), "the text"),
                                    (("--resume", RANDOM_MODEL), "the model"),
                                    (("--resume", done, "--plot", done), "what is done")):
                self.fail_with(innerkv(*measured, *arguments), 2, what, "choose another")
            self.assertEqual(text.read_bytes(), before)
            self.assertFalse(done.exists())

    def test_unwritable(self):
        for folder in ("/proc", "/no-such-folder"):
            self.fail_with(innerkv("eval", "ppl", "-m", "no-such-model", "--text", "no-such-text",
                                   "--plot", f"{folder}/x.svg"), 1,
                           f"cannot write {folder}/x.svg: No such file or directory")

    def test_a_full_disk_leaves_the_figures_and_no_file(self):
        with tempfile.TemporaryDirectory() as scratch:
            # Ignored, as Python does itself, SIGXFSZ lets the write fail.
            result = innerkv(*arguments_of("ppl", "--ctx", 64, "--chunks", 1, "--cache", "f16"),
                             "--plot", f"{scratch}/x.svg", restore_signals=False,
                             preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)))
            self.assertEqual(result.returncode, 1)
            self.assertRegex(result.stderr.decode(),
                             rf"^innerkv: cannot write {scratch}/x.svg: File too large\n$")
            self.assertIn(b"perplexity", result.stdout)
            self.assertEqual(os.listdir(scratch), [])


class ResumeTest(EvalTest):
    CASES = {"ppl": ("--ctx", 400, "--chunks", 30),
             "recall": ("--ctx", 700, "--depths", 5, "--documents", 16),
             "repeat": ("--ctx", 600, "--passage", 64, "--documents", 20),
             "long": ("--ctx", 700, "--documents", 2, "--starts", 8, "--generate", 16)}

    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.file = Path(scratch.name) / "done.jsonl"

    def resumed(self, measurement, *arguments):
        return innerkv(*arguments_of(measurement, *self.CASES[measurement], *arguments), "--json",
                       "--resume", self.file)

    def lines(self):
        return self.file.read_bytes().count(b"\n") if self.file.exists() else 0

    def test_interrupted_and_gone_on_with(self):
        for measurement, arguments in self.CASES.items():
            with self.subTest(measurement=measurement):
                self.file.unlink(missing_ok=True)
                command = arguments_of(measurement, *arguments)
                whole = self.succeed(innerkv(*command, "--json"))
                process = subprocess.Popen([program.PROGRAM, *map(str, command), "--json", "--resume",
                                            str(self.file)], cwd=program.ROOT, env=program.environment(),
                                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                end = time.monotonic() + 60
                while self.lines() < 3:
                    self.assertLess(time.monotonic(), end)
                    time.sleep(0.001)
                process.send_signal(signal.SIGINT)
                partial = json.loads(process.communicate(timeout=60)[0])
                self.assertEqual(process.returncode, 130)
                self.assertIs(partial["interrupted"], True)
                before = self.file.read_bytes()
                self.assertTrue(before.endswith(b"\n"))
                self.assertEqual(self.succeed(self.resumed(measurement)), whole)
                after = self.file.read_bytes()
                self.assertTrue(after.startswith(before))
                self.assertGreater(len(after), len(before))
                # And once more: all is there.
                self.assertEqual(self.succeed(self.resumed(measurement)), whole)
                self.assertEqual(self.file.read_bytes(), after)

    def test_killed_in_a_line(self):
        whole = self.succeed(self.resumed("repeat"))
        contents = self.file.read_bytes()
        self.file.write_bytes(contents[:len(contents) * 2 // 3])
        self.assertEqual(self.succeed(self.resumed("repeat")), whole)
        self.assertEqual(self.file.read_bytes(), contents)

    def test_another_measurement(self):
        short = ("--chunks", 1, "--ctx", 64, "--cache", "f16")
        command = ("eval", "ppl", "-m", RANDOM_MODEL, "--threads", 1, "--resume", self.file)
        text = ("--text", DATA / "README.md")
        self.succeed(innerkv(*command, *text, *short))
        before = self.file.read_bytes()
        cases = (((*text, "--chunks", 1, "--ctx", 65, "--cache", "f16"), ("ctx is 64", "65")),
                 ((*text, "--chunks", 2, "--ctx", 64, "--cache", "f16"), ("chunks is 1", "2")),
                 ((*text, *short[:-1], "base"), ("cache", "f16", "base")),
                 ((*text, *short, "--codec", "paper"), ("codec", "paper")),
                 ((*text, *short, "--arithmetic", "exact"), ("arithmetic", "exact")),
                 ((*text, *short, "--key-norm", "none"), ("key_norm", "none")),
                 ((*text, *short, "--isa", "scalar"), ("isa", "scalar")),
                 (("--text", DATA / "alice.txt", *short), ("text_fingerprint",)))
        for arguments, parts in cases:
            self.fail_with(innerkv(*command, *arguments), 1, self.file, *parts)
        other = program.RANDOM_MODELS / "llama-q8_0.gguf"
        self.fail_with(innerkv("eval", "ppl", "-m", other, "--resume", self.file, *text, *short), 1,
                       "model_")
        self.fail_with(innerkv("eval", "long", "-m", RANDOM_MODEL, "--resume", self.file, *text,
                               "--ctx", 128), 1, "eval ppl", "eval long")
        self.assertEqual(self.file.read_bytes(), before)

    def test_another_calibration(self):
        paths = [self.file.with_name(f"{chunks}.gguf") for chunks in (1, 2)]
        for chunks, path in enumerate(paths, 1):
            self.succeed(innerkv("calibrate", "-m", RANDOM_MODEL, "--threads", 1, "--text",
                                 DATA / "wikitext-small.txt", "--ctx", 256, "--chunks", chunks, "-o",
                                 path))
        self.succeed(self.resumed("repeat", "--calibration", paths[0]))
        before = self.file.read_bytes()
        self.succeed(self.resumed("repeat", "--calibration", paths[0]))
        self.fail_with(self.resumed("repeat", "--calibration", paths[1]), 1, self.file, "calibration")
        self.fail_with(self.resumed("repeat"), 1, self.file, "calibration")
        self.assertEqual(self.file.read_bytes(), before)

    def test_all_is_told_of_what_the_file_remembers(self):
        """Bits belong to a cache's format, and no cache runs where everything is in the file."""
        caches = "base,paper:small,sim:q4_0"
        first = self.json(self.resumed("repeat", "--cache", caches))
        self.assertEqual([entry["bits_per_value"] for entry in first["results"]], [3.5, 3.0, 4.5])
        self.assertEqual(self.json(self.resumed("repeat", "--cache", caches)), first)

    def test_nothing_is_left_of_what_cannot_be_run(self):
        """The options are looked at before the file is made."""
        caches = ("--cache", "base+norm=none", "--key-norm", "prefill")
        self.fail_with(self.resumed("ppl", *caches), 2, "--key-norm prefill", "base+norm=none")
        self.assertFalse(self.file.exists())

    def test_broken_files(self):
        for contents, parts in ((b"Once upon a time", ("not a file that --resume wrote",)),
                                (b"{}\n", (":1:", "not a file that --resume wrote")),
                                (b"[" * 100000 + b"\n", (":1:",))):
            self.file.write_bytes(contents)
            self.fail_with(self.resumed("ppl"), 1, self.file, *parts)
            self.assertEqual(self.file.read_bytes(), contents)
        self.fail_with(innerkv(*arguments_of("ppl", "--resume", "/proc")), 1, "/proc")
        self.fail_with(innerkv(*arguments_of("ppl", "--resume", "/dev/zero")), 1, "not a regular file")

    def test_full_disk(self):
        def few_bytes():
            resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        result = innerkv(*arguments_of("ppl", *self.CASES["ppl"], "--resume", self.file),
                         preexec_fn=few_bytes, restore_signals=False)
        self.fail_with(result, 1, f"cannot write to {self.file}")
        whole = self.succeed(self.resumed("ppl"))
        self.assertEqual(whole, self.succeed(innerkv(*arguments_of("ppl", *self.CASES["ppl"]), "--json")))


if __name__ == "__main__":
    unittest.main()
