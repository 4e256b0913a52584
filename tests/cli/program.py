# SPDX-License-Identifier: Apache-2.0
"""Runs the program as a user would. `INNERKV_PROGRAM` names it; the model is `INNERKV_MODEL_SMOLLM2`
or what tools/model.py has in its cache; `INNERKV_TEST_MODELS` holds those with random weights."""

import functools
import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("INNERKV_PROGRAM", str(ROOT / "build" / "innerkv"))
DATA = ROOT / "tests" / "data"
RANDOM_MODELS = Path(os.environ.get("INNERKV_TEST_MODELS", ROOT / "build/tests/runner/models"))
RANDOM_MODEL = RANDOM_MODELS / "llama-long.gguf"  # talks nonsense, a token a byte, but quickly
COMMANDS = ("run", "eval ppl", "eval recall", "eval repeat", "eval long", "bench attention",
            "bench decode", "plan", "inspect", "completions")


@functools.lru_cache
def model():
    given = os.environ.get("INNERKV_MODEL_SMOLLM2")
    if given:
        return given
    printed = subprocess.run([sys.executable, ROOT / "tools" / "model.py", "smollm2"], check=True,
                             stdout=subprocess.PIPE, text=True).stdout
    return printed.split()[-1]


def story(characters):
    """The opening of a novel, UTF-8."""
    return (DATA / "alice.txt").read_text(encoding="utf-8")[:characters].encode()


def environment(**changes):
    values = {name: value for name, value in os.environ.items() if name != "INNERKV_ISA"}
    return values | changes


def innerkv(*arguments, stdin=b"", **options):
    """stdout and stderr as bytes: what is and is not UTF-8 is part of what is tested."""
    return subprocess.run([PROGRAM, *map(str, arguments)], input=stdin, capture_output=True,
                          cwd=ROOT, env=environment(), timeout=600, check=False, **options)


def run(*arguments, model=RANDOM_MODEL, **options):
    """`innerkv run` with one thread: tests run side by side."""
    return innerkv("run", "-m", model, "--threads", 1, *arguments, **options)


class ProgramTest(unittest.TestCase):
    def succeed(self, result):
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        return result.stdout.decode()

    def json(self, result):
        return json.loads(self.succeed(result))

    def fail_with(self, result, code, *parts):
        """Exit code, nothing on stdout, one line on stderr that holds every part."""
        line = result.stderr.decode()
        self.assertEqual((result.returncode, result.stdout), (code, b""), line)
        self.assertTrue(line.startswith("innerkv: "), line)
        self.assertEqual(line.count("\n"), 1, line)
        self.assertTrue(line.endswith("\n"), line)
        for part in parts:
            self.assertIn(str(part), line)
        return line

    def has_fields(self, value, fields):
        """`fields` maps names to types; more fields are welcome."""
        for name, kind in fields.items():
            self.assertIn(name, value)
            self.assertIsInstance(value[name], kind, name)
            self.assertNotIsInstance(value[name], bool if kind is not bool else type(None), name)


NUMBER = (int, float)
