# SPDX-License-Identifier: Apache-2.0
"""`innerkv calibrate`, and what uses its file."""

import itertools
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


class CalibrationTest(ProgramTest):
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


class CalibrateTest(CalibrationTest):
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


class BitsTest(CalibrationTest):
    """`--bits`: llama-long has 3 layers, whose heads of 64 channels take 2.5, 3.5 or 4.5 bits a value."""

    WINDOWS = ("--text", TEXT, "--ctx", 384, "--chunks", 2)

    EXACT_MODEL = RANDOM_MODELS / "llama.gguf"  # in F32, whose products round nothing to 8 bits

    def measure(self, bits, *arguments, of=RANDOM_MODEL):
        return self.json(self.calibrate(*self.WINDOWS, "--bits", bits, "--json", *arguments, model=of))

    def evaluate(self, cache, *arguments, of=RANDOM_MODEL):
        result = self.json(innerkv("eval", "ppl", "-m", of, "--threads", 1, *self.WINDOWS, "--cache", cache, "--json",
                                   *arguments))
        return result["results"]

    def test_json(self):
        result = self.measure(3)
        expected = {"type": "calibration", "ctx": 384, "chunks": 2, "tokens": 2 * (384 - 32), "layers": 3,
                    "bits_per_value": 3.0}
        self.assertEqual(result | expected, result)
        self.assertNotIn("norm_min", result)
        shown = self.json(innerkv("inspect", self.output, "--json"))
        self.assertEqual(shown, {name: result[name] for name in shown})
        text = self.succeed(innerkv("inspect", self.output))
        digits = "".join(str(bits) for layer in result["layer_bits"] for bits in layer)
        self.assertIn("bits of each layer", text)
        self.assertIn("3.00 a value", text)
        self.assertIn(digits, text)

    def test_it_measures_as_eval_does(self):
        result = self.measure(3, of=self.EXACT_MODEL)
        entries = self.evaluate("base+layers=444444,base+layers=444442,base+layers=442444", of=self.EXACT_MODEL)
        finest, values, keys = (entry["kld_mean"] for entry in entries)
        close = {"delta": 1e-3 * finest}
        self.assertAlmostEqual(result["kld_at_4_bits"], finest, **close)
        above = result["kld_added_at_2_bits"]
        self.assertEqual(len(above), 3)
        self.assertAlmostEqual(above[2][1], values - finest, **close)
        self.assertAlmostEqual(above[1][0], keys - finest, **close)
        self.assertGreater(values - finest, 0.1 * finest)

    def test_the_bits_lose_least_of_all(self):
        """By the rule of docs/calibration.md, over all 729 there are."""
        result = self.measure(3.25)
        self.assertLessEqual(result["bits_per_value"], 3.25)
        added = [side for layer in result["kld_added_at_2_bits"] for side in layer]
        chosen = [bits for layer in result["layer_bits"] for bits in layer]

        def loss(bits):
            scale = [max(side, 1e-9) / (1 / 9 - 1 / 225) for side in added]
            return sum(s / (2**b - 1)**2 for s, b in zip(scale, bits))

        within = [bits for bits in itertools.product((2, 3, 4), repeat=6) if sum(bits) / 6 + 0.5 <= 3.25]
        self.assertAlmostEqual(loss(chosen), min(map(loss, within)), places=9)

    def test_what_uses_it(self):
        self.measure(3)
        by_file, = self.evaluate("base", "--calibration", self.output)
        digits = "".join(str(bits) for layer in self.json(innerkv("inspect", self.output, "--json"))["layer_bits"]
                         for bits in layer)
        named, plain = self.evaluate(f"base+layers={digits},base")
        self.assertEqual((by_file["bits_per_value"], plain["bits_per_value"]), (3.0, 3.5))
        self.assertEqual(by_file["kld_mean"], named["kld_mean"])
        self.assertNotEqual(by_file["kld_mean"], plain["kld_mean"])
        self.assertLess(by_file["bits_per_value_total"], plain["bits_per_value_total"])

        answer = self.json(run("-f", DATA / "README.md", "-n", 8, "--json", "--calibration", self.output))
        planned, = self.json(innerkv("plan", "-m", RANDOM_MODEL, "--json", "--calibration", self.output, "--context",
                                     answer["cache_tokens"]))["results"]
        self.assertEqual((planned["cache"], planned["bits_per_value"]), ("base", 3.0))
        self.assertEqual(answer["cache_bytes"], planned["bytes"])
        bench = self.json(innerkv("bench", "decode", "-m", RANDOM_MODEL, "--threads", 1, "--context", 400, "--tokens", 4,
                                  "--repeats", 1, "--cache", "base", "--calibration", self.output, "--json"))
        self.assertEqual(bench["calibration"], str(self.output))
        self.assertEqual(len(bench["results"]), 1)

    def test_with_a_key_transform(self):
        transform = self.make(model=self.EXACT_MODEL)
        both = self.output.with_name("both.gguf")
        result = self.json(innerkv("calibrate", "-m", self.EXACT_MODEL, "--threads", 1, "-o", both, *self.WINDOWS,
                                   "--bits", 3, "--calibration", self.output, "--json"))
        for name in ("norm_min", "norm_max", "centre_max"):
            self.assertEqual(result[name], transform[name])
        self.assertEqual(result["bits_per_value"], 3.0)
        finest, = self.evaluate("base+layers=444444", "--calibration", self.output, of=self.EXACT_MODEL)
        self.assertAlmostEqual(result["kld_at_4_bits"], finest["kld_mean"], delta=1e-3 * finest["kld_mean"])
        self.assertIn("norm and centre of keys, bits of each layer", self.succeed(innerkv("inspect", both)))
        self.fail_with(innerkv("calibrate", "-m", RANDOM_MODEL, *self.WINDOWS, "--bits", 3, "-o", self.output,
                               "--calibration", self.output), 2, "-o", self.output)

    def test_combinations_without_meaning(self):
        self.measure(3)
        undone = "brings the bits of every layer, 3.00 a value, and would undo those of"
        for cache in ("small", "k8v8+sink=4", "hybrid", "base+layers=333333"):
            self.fail_with(innerkv("eval", "ppl", "-m", "x", "--text", "x", "--calibration", self.output, "--cache",
                                   cache), 2, f"{undone} {cache}; name base")
        self.fail_with(run("-p", "x", "--cache", "base", "--compare", "small", "--calibration", self.output), 2, undone)
        self.fail_with(innerkv("plan", "-m", RANDOM_MODEL, "--context", 99, "--cache", "base,k4v4", "--calibration",
                               self.output), 2, f"{undone} k4v4")
        self.fail_with(innerkv("eval", "ppl", "-m", "x", "--text", "x", "--codec", "paper", "--cache",
                               "base+layers=333333"), 2, "--codec paper", "base+layers=333333")
        other = RANDOM_MODELS / "gemma3.gguf"
        for command in (("run", "-p", "x", "-n", 1), ("plan", "--context", 99)):
            self.fail_with(innerkv(*command, "-m", other, "--calibration", self.output), 1, self.output,
                           "another model", "innerkv calibrate")
        self.fail_with(run("-p", "x", "-n", 1, "--cache", "base+layers=3333"), 2, "no cache preset")

    def test_layers_of_another_model(self):
        self.fail_with(innerkv("eval", "ppl", "-m", RANDOM_MODEL, "--threads", 1, "--text", TEXT, "--ctx", 384,
                               "--chunks", 1, "--cache", "base+layers=3333"), 1, "bits (layers=) of 2 layers", "has 3")

    def test_bits_that_cannot_be_had(self):
        for bits in ("2.4", "4.6", "1"):
            self.fail_with(self.calibrate(*self.WINDOWS, "--bits", bits), 2, f"--bits {bits}", "2.50 to 4.50")
        for bits in ("0", "x", "nan", "17"):
            self.fail_with(self.calibrate(*self.WINDOWS, "--bits", bits), 2, "--bits", bits)
        self.assertFalse(self.output.exists())

    def test_windows_that_quantize_nothing(self):
        self.fail_with(self.calibrate("--text", TEXT, "--ctx", 256, "--chunks", 1, "--bits", 3), 2, "--ctx 256",
                       "nothing is quantized")

    def test_bits_of_a_file_are_chosen_anew(self):
        self.make()
        both = self.output.with_name("both.gguf")
        chosen = []
        for given, made in ((self.output, both), (both, self.output)):
            result = innerkv("calibrate", "-m", RANDOM_MODEL, "--threads", 1, "-o", made, *self.WINDOWS, "--bits", 3,
                             "--calibration", given, "--json")
            chosen.append(self.json(result))
        first, second = ({name: value for name, value in result.items() if name != "output"} for result in chosen)
        self.assertEqual(first, second)

    def test_a_key_transform_needs_bits(self):
        self.fail_with(self.calibrate(*self.WINDOWS, "--calibration", "x"), 2, "--calibration", "--bits")
        self.measure(3)
        self.fail_with(innerkv("calibrate", "-m", "x", *self.WINDOWS, "--bits", 3, "-o", f"{self.output}.2",
                               "--calibration", self.output), 2, "holds no key transform")

    def test_interrupted(self):
        with subprocess.Popen([program.PROGRAM, "calibrate", "-m", model(), "--text", TEXT, "--ctx", "512",
                               "--chunks", "1", "--bits", "3", "--threads", "1", "-o", self.output],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=program.environment()) as process:
            while caught_signals(process.pid) & (1 << (signal.SIGINT - 1)) == 0:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=600)
        self.assertEqual((process.returncode, out), (130, b""), errors)
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
