# SPDX-License-Identifier: Apache-2.0
"""`innerkv calibrate`, and what uses its file."""

import os
import signal
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

import program
from program import DATA, NUMBER, RANDOM_MODEL, RANDOM_MODELS, ProgramTest, innerkv, model, run, story

TEXT = DATA / "wikitext-small.txt"


class CalibrateTest(ProgramTest):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.output = Path(scratch.name) / "calibration.gguf"

    def calibrate(self, *arguments, model=RANDOM_MODEL, **options):
        return innerkv("calibrate", "-m", model, "--threads", 1, "-o", self.output, *arguments,
                       **options)

    def make(self, **options):
        return self.json(self.calibrate("--text", TEXT, "--ctx", 512, "--chunks", 1, "--json",
                                        **options))

    def test_json(self):
        result = self.make()
        self.has_fields(result, {"model_file": str, "text": str, "output": str, "ctx": int,
                                 "chunks": int, "threads": int, "model_hash": str,
                                 "text_hash": str, "norm_min": NUMBER, "norm_max": NUMBER})
        expected = {"architecture": "llama", "model": "random llama-long", "tokens": 512 - 32,
                    "layers": 3, "kv_heads": 2, "head_dim": 64}
        self.assertEqual(result | expected, result)
        # random keys have no outliers
        self.assertEqual((result["norm_min"], result["norm_max"]), (1, 1))
        self.assertGreater(result["centre_max"], 0)

    def test_inspect_tells_what_calibrate_told(self):
        made = self.make()
        shown = self.json(innerkv("inspect", self.output, "--json"))
        self.assertEqual(shown, {name: made[name] for name in shown})
        text = self.succeed(self.calibrate("--text", TEXT, "--ctx", 512, "--chunks", 1))
        self.assertEqual(text, f"{self.output}\n" + self.succeed(innerkv("inspect", self.output)))

    def test_standard_input(self):
        result = self.json(self.calibrate("--text", "-", "--ctx", 256, "--chunks", 1, "--json",
                                          stdin=story(600)))
        self.assertEqual(result["text_hash"], fnv1a(story(600)))

    def test_a_run_uses_it(self):
        self.make()
        arguments = ("-f", DATA / "README.md", "-n", 8, "--json", "--compare", "f16")
        plain = self.json(run(*arguments))
        calibrated = self.json(run(*arguments, "--calibration", self.output))
        self.assertGreater(plain["prompt_tokens"], 256)
        self.assertNotEqual(plain["compare"]["kld_mean"], calibrated["compare"]["kld_mean"])
        # neither norms nor centres of its own
        self.assertLess(calibrated["cache_bytes"], plain["cache_bytes"])

    def test_it_belongs_to_one_model(self):
        self.make()
        other = RANDOM_MODELS / "llama-q8_0.gguf"
        self.fail_with(run("-p", "x", "-n", 1, "--calibration", self.output, model=other), 1,
                       self.output, "another model", "random llama-long", "innerkv calibrate")

    def test_files_that_are_none(self):
        for path, part in ((RANDOM_MODEL, "not a calibration"), (TEXT, "not a GGUF file"),
                           ("no-such-file", "cannot open: No such file")):
            self.fail_with(run("-p", "x", "-n", 1, "--calibration", path), 1, path, part)
        self.make()
        self.output.write_bytes(self.output.read_bytes()[:-100])
        for arguments in (("inspect", self.output),
                          ("run", "-m", RANDOM_MODEL, "-p", "x", "--calibration", self.output)):
            self.fail_with(innerkv(*arguments), 1, self.output)

    def test_combinations_without_meaning(self):
        evaluate = ("eval", "ppl", "-m", "x", "--text", "x", "--calibration", "x")
        ask = ("run", "-m", "x", "-p", "x", "--calibration", "x")
        for command in (evaluate, ask):
            self.fail_with(innerkv(*command, "--cache", "f16"), 2, "--calibration", "f16")
            self.fail_with(innerkv(*command, "--key-norm", "none"), 2, "--calibration", "--key-norm")
            self.fail_with(innerkv(*command, "--codec", "paper"), 2, "--calibration", "--codec")
        self.fail_with(innerkv(*evaluate, "--cache", "base,f16"), 2, "f16")
        self.fail_with(innerkv(*evaluate, "--cache", "k4v4,paper:base"), 2, "--calibration", "paper:base")
        # Whatever the value: the defaults too.
        for setting in ("norm=none", "centre=off", "rotate=off", "calibration=64", "epoch=512", "norm=balanced",
                        "centre=on", "rotate=on", "calibration=128", "epoch=256", "queries=on"):
            self.fail_with(innerkv(*evaluate, "--cache", f"k4v4,base+{setting}"), 2, "--calibration",
                           f"undo {setting.split('=')[0]} of base+{setting}")
        self.fail_with(innerkv(*evaluate, "--cache", "sim:q4_0+rot"), 2, "--calibration",
                       "somebody else's cache", "without --calibration")
        # Windows are no part of a key transform: only the model is missing.
        self.fail_with(innerkv(*evaluate, "--cache", "base+sink=4+recent=64"), 1, "x")

    def test_nothing_it_reads_is_overwritten(self):
        for option, path in (("--text", RANDOM_MODEL), ("--text", TEXT)):
            result = innerkv("calibrate", "-m", RANDOM_MODEL, option, path, "-o", path)
            self.fail_with(result, 2, path, "-o")

    def test_text_shorter_than_a_window(self):
        self.fail_with(self.calibrate("--text", DATA / "README.md"), 2, 2048, "--ctx")
        self.assertFalse(self.output.exists())

    def test_the_default_is_what_a_text_has(self):
        self.assertEqual(self.json(self.calibrate("--text", "-", "--ctx", 256, "--json",
                                                  stdin=story(600)))["chunks"], 2)
        self.assertEqual(self.json(self.calibrate("--text", "-", "--ctx", 256, "--json",
                                                  stdin=story(3000)))["chunks"], 8)

    def test_output_that_cannot_be_written(self):
        # before anything is read
        self.fail_with(innerkv("calibrate", "-m", "no-such-model", "--text", "no-such-text", "-o",
                               "/no-such-folder/x"), 1,
                       "/no-such-folder/x: cannot be written: No such file or directory")

    def test_a_fifo_is_left_alone(self):
        os.mkfifo(self.output)
        self.fail_with(self.calibrate("--text", TEXT, "--ctx", 256, "--chunks", 1), 1, self.output,
                       "not a regular file")
        self.assertTrue(self.output.is_fifo())

    def test_interrupted(self):
        with subprocess.Popen([program.PROGRAM, "calibrate", "-m", model(), "--text", TEXT, "--ctx",
                               "8192", "--chunks", "2", "--threads", "1", "-o", self.output],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              env=program.environment()) as process:
            while caught_signals(process.pid) & (1 << (signal.SIGINT - 1)) == 0:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=600)
        self.assertEqual((process.returncode, out), (130, b""), errors)
        self.assertRegex(errors.decode(), rf"innerkv: interrupted; {self.output} was not written\n$")
        self.assertEqual(os.listdir(self.output.parent), [])


def caught_signals(pid):
    """A process's mask of signals that have a handler."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.split("SigCgt:")[1].split()[0], 16)


def fnv1a(data):
    value = 0xcbf29ce484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001b3 % 2**64
    return f"{value:016x}"


if __name__ == "__main__":
    unittest.main()
