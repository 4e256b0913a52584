# SPDX-License-Identifier: Apache-2.0
"""Help, wrong usage, exit codes, shell completions."""

import os
import random
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

import program
from program import COMMANDS, ProgramTest, innerkv, model


def one_core():
    """The program takes all cores it may; tests run side by side."""
    os.sched_setaffinity(0, {random.choice(sorted(os.sched_getaffinity(0)))})


def examples(command):
    """The command lines below "Examples:" in a command's help; lines that end in \\ go on."""
    text = innerkv(*command.split(), "--help").stdout.decode()
    lines = text.split("Examples:\n")[1].replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip()]


class HelpTest(ProgramTest):
    def test_version(self):
        self.assertRegex(self.succeed(innerkv("--version")), r"^innerkv \d+\.\d+\.\d+\n$")

    def test_help_of_everything(self):
        for command in ("", "eval", "bench", *COMMANDS):
            text = self.succeed(innerkv(*command.split(), "--help"))
            self.assertIn("Usage: innerkv", text)
            self.assertEqual(text, self.succeed(innerkv(*command.split(), "-h")))

    def test_help_lists_every_command(self):
        text = self.succeed(innerkv("--help"))
        for command in COMMANDS:
            self.assertRegex(text, rf"\n  {command.split()[0]} ")

    def run_lines(self, lines):
        self.assertGreaterEqual(len(lines), 2)
        with tempfile.TemporaryDirectory() as scratch:
            os.symlink(program.PROGRAM, Path(scratch) / "innerkv")
            path = scratch + os.pathsep + os.environ["PATH"]
            for line in lines:
                self.assertIn("innerkv", line)
                result = subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=program.ROOT,
                                        env=program.environment(PATH=path, MODEL=str(program.RANDOM_MODEL),
                                                                TMPDIR=scratch),
                                        capture_output=True, timeout=600, check=False,
                                        preexec_fn=one_core)
                self.assertEqual((result.returncode, result.stderr), (0, b""), line)

    def run_examples(self, command):
        self.run_lines([line.replace("model.gguf", '"$MODEL"') for line in examples(command)])

    def test_examples_of_the_manual(self):
        manual = (program.ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
        blocks = re.findall(r"```sh\n(.*?)```", manual, re.DOTALL)
        self.run_lines([line for block in blocks for line in block.splitlines()])

    def test_examples_of_run(self):
        self.run_examples("run")

    def test_examples_of_eval_ppl(self):
        self.run_examples("eval ppl")

    def test_examples_of_calibrate(self):
        self.run_examples("calibrate")

    def test_examples_of_eval_recall(self):
        self.run_examples("eval recall")

    def test_examples_of_eval_repeat(self):
        self.run_examples("eval repeat")

    def test_examples_of_eval_long(self):
        self.run_examples("eval long")

    def test_examples_of_bench_attention(self):
        self.run_examples("bench attention")

    def test_examples_of_bench_decode(self):
        self.run_examples("bench decode")

    def test_examples_of_plan(self):
        self.run_examples("plan")

    def test_examples_of_inspect(self):
        self.run_examples("inspect")

    def test_examples_of_completions(self):
        self.run_examples("completions")


class WrongUsageTest(ProgramTest):
    def test_no_command(self):
        for arguments in ((), ("eval",), ("bench",)):
            self.fail_with(innerkv(*arguments), 2, "command", "--help")

    def test_unknown_command(self):
        self.fail_with(innerkv("frobnicate"), 2, "frobnicate")
        self.fail_with(innerkv("eval", "frobnicate"), 2, "frobnicate", "innerkv eval --help")

    def test_unknown_option(self):
        for command in COMMANDS:
            self.fail_with(innerkv(*command.split(), "--frobnicate"), 2, "there is no option --frobnicate",
                           f"{command} --help")
        for command in ((), ("eval",), ("bench",)):
            self.fail_with(innerkv(*command, "--frobnicate"), 2, "there is no option --frobnicate", "--help")

    def test_too_much(self):
        self.fail_with(innerkv("run", "-m", "x", "-p", "x", "y"), 2, "'y' is one argument too many", "run --help")
        self.fail_with(innerkv("plan", "-m", "x", "--context", 9, "--context", 9), 2,
                       "--context is given more than once", "plan --help")
        self.fail_with(innerkv("run", "-m", "x", "-p", "x", "--cache", "base", "--cache", "f16"), 2, "--cache is given")

    def test_limits_are_in_the_help(self):
        for command, limits in (("eval ppl", ("--ctx N:64..16777216", "--chunks N:1..")),
                                ("eval recall", ("--ctx N:512..", "--depths N:2..40", "--documents N:1..")),
                                ("eval repeat", ("--ctx N:512..", "--passage N:16..1048576")),
                                ("eval long", ("--ctx N:128..", "--starts N:0..4096", "--generate N:1..1048576")),
                                ("calibrate", ("--ctx N:256..",)), ("run", ("--chunk N:multiple of 32",))):
            text = self.succeed(innerkv(*command.split(), "--help"))
            for limit in limits:
                self.assertIn(limit, text)

    def test_missing_options(self):
        self.fail_with(innerkv("run", "-p", "x"), 2, "--model")
        self.fail_with(innerkv("run", "-m", "x"), 2, "-p", "-f")
        self.fail_with(innerkv("eval", "ppl", "-m", "x"), 2, "--text")
        self.fail_with(innerkv("plan", "-m", "x"), 2, "--context")
        self.fail_with(innerkv("inspect"), 2, "file")
        self.fail_with(innerkv("calibrate", "-m", "x", "-o", "x"), 2, "--text")
        self.fail_with(innerkv("calibrate", "-m", "x", "--text", "x"), 2, "--output")

    def test_empty_names_of_files(self):
        for option, arguments in (("--model", ("run", "-p", "x", "-m", "")),
                                  ("--model", ("plan", "--context", 9, "-m", "")),
                                  ("--calibration", ("run", "-m", "x", "-p", "x", "--calibration", "")),
                                  ("--resume", ("eval", "ppl", "-m", "x", "--text", "x", "--resume", "")),
                                  ("--text", ("eval", "ppl", "-m", "x", "--text", "")),
                                  ("--output", ("calibrate", "-m", "x", "--text", "x", "-o", "")),
                                  ("file", ("inspect", ""))):
            self.fail_with(innerkv(*arguments), 2, option, "empty", "--help")

    def test_option_without_value(self):
        self.fail_with(innerkv("run", "-m"), 2, "--model needs a value: FILE")
        self.fail_with(innerkv("plan", "-m", "x", "--context"), 2, "--context needs a value: N:1..")

    def test_unknown_preset_lists_those_there_are(self):
        plan = self.json(innerkv("plan", "-m", model(), "--context", 100, "--json"))
        presets = [result["cache"] for result in plan["results"]]
        self.assertGreaterEqual(len(presets), 2)
        for arguments in (("run", "-m", "x", "-p", "x"), ("plan", "-m", "x", "--context", "9"),
                          ("eval", "ppl", "-m", "x", "--text", "x"), ("bench", "attention")):
            self.fail_with(innerkv(*arguments, "--cache", "basis"), 2, "basis", *presets)
        self.fail_with(innerkv("run", "-m", "x", "-p", "x", "--compare", "q9"), 2, "q9", *presets)

    def test_lists_of_presets(self):
        for cache in ("", ",", "base,", ",base", "base,,f16", "base,base", "base, f16"):
            self.fail_with(innerkv("plan", "-m", "x", "--context", 9, "--cache", cache), 2)

    def test_numbers(self):
        wholes = ("0", "-1", "1.5", "abc", "", "nan", "99999999999999999999", "4x", "0600", "0x40")
        cases = [(("run", "-m", "x", "-p", "x", option), wholes)
                 for option in ("-n", "--context", "--chunk", "--threads")]
        cases += [(("eval", "ppl", "-m", "x", "--text", "x", option), wholes)
                  for option in ("--ctx", "--chunks", "--threads")]
        cases += [(("calibrate", "-m", "x", "--text", "x", "-o", "x", option), wholes)
                  for option in ("--ctx", "--chunks", "--threads")]
        cases += [(("eval", command, "-m", "x", "--text", "x", option), wholes)
                  for command, option in (("recall", "--ctx"), ("recall", "--depths"),
                                          ("recall", "--documents"), ("repeat", "--passage"),
                                          ("long", "--generate"))]
        cases += [(("bench", "attention", option), wholes)
                  for option in ("--head-dim", "--q-heads", "--kv-heads", "--context", "--batch",
                                 "--threads", "--repeats")]
        cases += [(("bench", "decode", "-m", "x", option), wholes)
                  for option in ("--context", "--tokens", "--repeats", "--threads")]
        cases += [(("plan", "-m", "x", "--context", "9", "--batch"), wholes),
                  (("plan", "-m", "x", "--context"), wholes),
                  (("run", "-m", "x", "-p", "x", "--temp"), ("-1", "nan", "inf", "abc", "")),
                  (("run", "-m", "x", "-p", "x", "--top-p"), ("0", "-0.1", "1.1", "nan", "abc")),
                  (("run", "-m", "x", "-p", "x", "--min-p"), ("-0.1", "1.1", "nan", "abc")),
                  (("run", "-m", "x", "-p", "x", "--top-k"), ("-1", "abc")),
                  (("run", "-m", "x", "-p", "x", "--seed"), ("-1", "abc", "99999999999")),
                  (("bench", "attention", "--seed"), ("-1", "9223372036854775808"))]
        for arguments, values in cases:
            for value in values:
                with self.subTest(arguments=arguments, value=value):
                    self.fail_with(innerkv(*arguments[:-1], f"{arguments[-1]}={value}"
                                           if arguments[-1].startswith("--")
                                           else f"{arguments[-1]}{value}"), 2)

    def test_ranges_are_told(self):
        for option, value, part in (("--top-p", 0, "above 0 and up to 1"), ("--seed", -1, "0 to 4294967295")):
            self.fail_with(innerkv("run", "-m", "x", "-p", "x", f"{option}={value}"), 2, option, value, part)

    def test_what_does_not_fit_into_a_context(self):
        eval_ = ("eval", "repeat", "-m", "x", "--text", "x")
        self.fail_with(innerkv(*eval_, "--ctx", 512, "--passage", 81), 2, "--ctx 512", "--passage 81", 514)
        self.fail_with(innerkv("eval", "long", "-m", "x", "--text", "x", "--ctx", 200, "--generate", 137), 2,
                       "--ctx 200", "--generate")

    def test_plots_are_svg(self):
        for command in ("ppl", "recall", "repeat", "long"):
            for name in ("plot.png", "plot", "plot.svg.gz", ""):
                self.fail_with(innerkv("eval", command, "-m", "x", "--text", "x", f"--plot={name}"), 2,
                               "--plot", ".svg")

    def test_unknown_isa(self):
        for arguments in (("run", "-m", "x", "-p", "x"), ("eval", "ppl", "-m", "x", "--text", "x"),
                          ("bench", "attention")):
            self.fail_with(innerkv(*arguments, "--isa", "vax"), 2, "vax", "scalar")

    def test_quiet_leaves_nothing_to_compare(self):
        self.fail_with(innerkv("run", "-m", "x", "-p", "x", "-q", "--compare", "f16"), 2, "--quiet",
                       "--compare")

    def test_names_from_a_list(self):
        self.fail_with(innerkv("run", "-m", "x", "-p", "x", "--key-norm", "some"), 2, "prefill")
        self.fail_with(innerkv("eval", "ppl", "-m", "x", "--text", "x", "--codec", "best"), 2,
                       "paper")
        self.fail_with(innerkv("completions", "tcsh"), 2, "bash")

    def test_contenders_from_a_list(self):
        for option in ("--cache", "--against"):
            self.fail_with(innerkv("eval", "ppl", "-m", "x", "--text", "x", option, "sim:q3_0"), 2,
                           option, "'sim:q3_0'", "base", "paper:PRESET", "sim:q4_0[+rot][+windows]",
                           "sim:kivi2", "llama:q8_0[+rot]")
        self.fail_with(innerkv("run", "-m", "x", "-p", "x", "--cache", "sim:q4_0"), 2, "sim:q4_0", "base")

    def test_settings(self):
        """All before a file is opened, as wrong usage, in the setting's own name."""
        evaluate = ("eval", "ppl", "-m", "x", "--text", "x")
        for settings, part in (("sink=4x", "'4x' is not a whole number"), ("sink=4+sink=8", "sink is named twice"),
                               ("recent=33", "multiple of 32"), ("epoch=100", "multiple of 32"),
                               ("calibration=0", "from 1 to"), ("sinks=4", "no setting 'sinks=4'")):
            for option in ("--cache", "--against"):
                line = self.fail_with(innerkv(*evaluate, option, f"base+{settings}"), 2, option, part)
                self.assertNotIn("transform", line)
        for setting in ("centre=on", "rotate=on", "norm=balanced", "calibration=128", "epoch=256"):
            self.fail_with(innerkv(*evaluate, "--codec", "paper", "--cache", f"k4v4,base+{setting}"), 2, "--codec paper",
                           f"undo {setting.split('=')[0]} of base+{setting}", "paper:PRESET")
        self.fail_with(innerkv(*evaluate, "--cache", "base+norm=none", "--key-norm", "prefill"), 2, "base+norm=none")

    def test_prompt_that_is_not_utf8(self):
        self.fail_with(innerkv("run", "-m", "x", "-p", b"caf\xe9".decode("utf-8", "surrogateescape")),
                       2, "UTF-8")


class CompletionsTest(ProgramTest):
    def complete(self, *words):
        quoted = " ".join(f"'{word}'" for word in words)
        script = (f"source <('{program.PROGRAM}' completions bash); COMP_WORDS=({quoted}); "
                  f"COMP_CWORD={len(words) - 1}; _innerkv; printf '%s\\n' \"${{COMPREPLY[@]}}\"")
        result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        return result.stdout.split()

    def test_commands_and_options(self):
        self.assertEqual(self.complete("innerkv", "ru"), ["run"])
        self.assertEqual(self.complete("innerkv", "eval", ""),
                         ["ppl", "recall", "repeat", "long", "--help", "-h"])
        self.assertEqual(self.complete("innerkv", "run", "--exact"), ["--exact-prefill"])
        self.assertEqual(self.complete("innerkv", "bench", "attention", "--kv"), ["--kv-heads"])

    def test_every_long_option_is_there(self):
        for command in COMMANDS:
            text = innerkv(*command.split(), "--help").stdout.decode().split("Examples:")[0]
            options = set(re.findall(r"^ .*?(--[a-z][a-z0-9-]*)", text, re.MULTILINE))
            offered = self.complete("innerkv", *command.split(), "--")
            self.assertLessEqual(options, set(offered), command)


if __name__ == "__main__":
    unittest.main()
