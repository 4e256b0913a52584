# SPDX-License-Identifier: Apache-2.0
"""Pipes, terminals, Ctrl-C."""

import json
import os
import pty
import re
import signal
import subprocess
import threading
import time
import unittest

import program
from program import DATA, RANDOM_MODEL, ProgramTest, innerkv, model


def command(*arguments):
    return [program.PROGRAM, *map(str, arguments)]


def start(*arguments, **options):
    return subprocess.Popen(command(*arguments), cwd=program.ROOT, env=program.environment(),
                            stdin=subprocess.DEVNULL, **options)


class OnTerminal:
    """A process with stderr on a terminal."""

    def __init__(self, *arguments, term="xterm"):
        self.leader, follower = pty.openpty()
        self.process = subprocess.Popen(command(*arguments), cwd=program.ROOT,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=follower, env=program.environment(TERM=term))
        os.close(follower)
        self.shown = ""
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self):
        try:
            while block := os.read(self.leader, 4096):
                self.shown += block.decode("utf-8", "replace")
        except OSError:
            pass  # the other side is closed

    def wait_for(self, pattern):
        end = time.monotonic() + 60
        while not re.search(pattern, self.shown, re.DOTALL):
            if time.monotonic() > end or self.process.poll() is not None:
                raise AssertionError(f"no {pattern!r} in {self.shown!r}")
            time.sleep(0.01)

    def finish(self):
        """Exit code, stdout, what the terminal got."""
        stdout = self.process.communicate(timeout=600)[0].decode()
        self.reader.join()
        os.close(self.leader)
        return self.process.returncode, stdout, self.shown


class ProgressTest(ProgramTest):
    RUN = ("run", "--threads", 1, "-m", RANDOM_MODEL, "-p", "Tell me a story.", "-n", 2, "--json")

    def test_bar_on_a_terminal(self):
        code, stdout, shown = OnTerminal(*self.RUN).finish()
        self.assertEqual(code, 0)
        json.loads(stdout)
        self.assertRegex(shown, r"prompt \[#*\.*\] \d+/\d+ tokens")
        self.assertRegex(shown, r"\d/s  \d+ s left")
        self.assertTrue(shown.endswith("\r\x1b[K"), repr(shown[-20:]))

    def test_no_bar_elsewhere(self):
        self.assertEqual(innerkv(*self.RUN).stderr, b"")
        self.assertEqual(OnTerminal(*self.RUN, term="dumb").finish()[2], "")

    def test_bars_of_eval_and_bench(self):
        shown = OnTerminal("eval", "ppl", "-m", RANDOM_MODEL, "--text", DATA / "alice.txt", "--ctx",
                           64, "--chunks", 1, "--threads", 1).finish()[2]
        self.assertRegex(shown, r"eval ppl \[.*\] \d+/126 tokens")
        shown = OnTerminal("bench", "attention", "--context", 512, "--repeats", 3).finish()[2]
        self.assertRegex(shown, r"measuring \[.*\] 3/3 rounds")


class OutputTest(ProgramTest):
    LONG = ("run", "--threads", 1, "-p", "Write a very long story.", "--raw", "-n", 2000)

    def test_closed_pipe_ends_the_run(self):
        process = start(*self.LONG, "-m", model(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.read(5)
        process.stdout.close()
        stderr = process.stderr.read()
        process.stderr.close()
        self.assertEqual((process.wait(timeout=60), stderr), (141, b""))

    def test_closed_pipe_of_results(self):
        for arguments in (("inspect", model()), ("--help",), ("completions", "bash")):
            reader, writer = os.pipe()
            os.close(reader)
            process = start(*arguments, stdout=writer, stderr=subprocess.PIPE)
            os.close(writer)
            stderr = process.communicate(timeout=60)[1]
            self.assertEqual((process.returncode, stderr), (141, b""))

    def test_unwritable_output(self):
        for arguments in (("inspect", model(), "--json"), (*self.LONG, "-m", model()), ("--help",),
                          ("plan", "-m", model(), "--context", 9)):
            with open("/dev/full", "wb") as full:
                result = subprocess.run(command(*arguments), cwd=program.ROOT, stdout=full,
                                        stderr=subprocess.PIPE, timeout=60, check=False)
            self.assertEqual(result.returncode, 1)
            self.assertRegex(result.stderr.decode(), r"^innerkv: cannot write to .*: .*\n$")


class InterruptTest(ProgramTest):
    def interrupted(self, process):
        """What was written after Ctrl-C: stdout, and the terminal without its bars."""
        process.process.send_signal(signal.SIGINT)
        code, stdout, shown = process.finish()
        self.assertEqual(code, 130, shown)
        return stdout, shown.rpartition("\x1b[K")[2]

    def nothing_was_done(self, text, errors, in_json):
        self.assertRegex(errors, r"^innerkv: .*interrupted.*\n$")
        if in_json:
            result = json.loads(text)
            self.assertEqual((result["interrupted"], result["results"]), (True, []))
        else:
            self.assertEqual(text, "")

    def test_in_the_text(self):
        process = start(*OutputTest.LONG, "-m", model(), stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE)
        begin = process.stdout.read(10).decode("utf-8", "replace")
        process.send_signal(signal.SIGINT)
        text, errors = process.communicate(timeout=60)
        self.assertEqual((process.returncode, errors), (130, b""))
        self.assertTrue(begin)
        self.assertRegex(text.decode(), r"\ncache   base: ")
        self.assertRegex(text.decode(),
                         r"\ndecode  \d+ tokens, [\d.]+ tokens/s \(interrupted\)\n$")

    def test_in_the_prompt(self):
        process = OnTerminal("run", "-m", model(), "--threads", 1, "-f", DATA / "alice.txt",
                             "--json", "--chunk", 32)
        process.wait_for(r"prompt \[")
        text, errors = self.interrupted(process)
        answer = json.loads(text)
        self.assertEqual(errors, "")
        self.assertEqual((answer["finish"], answer["generated_tokens"]), ("interrupted", 0))
        self.assertLess(answer["prompt_tokens"], 7000)
        self.assertGreater(answer["prompt_length"], 7000)

    COMPARE = ("run", "--threads", 1, "-f", DATA / "README.md", "--chunk", 32, "-n", 1,
               "--compare", "f16")

    def test_in_the_comparison(self):
        process = OnTerminal(*self.COMPARE, "-m", model())
        process.wait_for(r"\] 0/\d+ tokens.*prompt [^\r]*\] 0/\d+ tokens")
        text, errors = self.interrupted(process)
        self.assertEqual(errors, "")
        self.assertRegex(text, r"\ndecode  1 tokens, .*\(length\)\ncomparison interrupted\n$")

    def test_before_the_comparison(self):
        process = OnTerminal(*self.COMPARE, "--json", "-m", model())
        process.wait_for(r"prompt \[")
        answer = json.loads(self.interrupted(process)[0])
        self.assertIsNone(answer["compare"])

    def test_before_the_input_is_read(self):
        process = subprocess.Popen(command("run", "-m", model(), "-f", "-"), cwd=program.ROOT,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
        process.stdin.write(b"The beginning")
        process.stdin.flush()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(timeout=10), -signal.SIGINT)
        process.communicate()

    def test_eval_before_the_first_window(self):
        for measure, *terms in (("ppl", "--ctx", 512), ("recall", "--ctx", 768, "--depths", 2), ("long", "--ctx", 512),
                                ("repeat", "--ctx", 640, "--passage", 64)):
            arguments = ("eval", measure, "--threads", 1, "--text", DATA / "alice.txt", *terms)
            process = OnTerminal(*arguments, "-m", model(), "--json")
            process.wait_for(rf"eval {measure} \[")
            text, errors = self.interrupted(process)
            self.nothing_was_done(text, errors, True)
            # The fields of a run that was not stopped.
            whole = self.json(innerkv(*arguments, "-m", RANDOM_MODEL, "--json"))
            self.assertEqual(list(json.loads(text)), list(whole))
        process = OnTerminal("eval", "ppl", "-m", model(), "--threads", 1, "--text", DATA / "alice.txt", "--ctx", 512)
        process.wait_for(r"eval ppl \[")
        self.nothing_was_done(*self.interrupted(process), False)

    def test_bench_while_caches_are_filled(self):
        for options in ((), ("--json",)):
            process = OnTerminal("bench", "attention", "--context", 1 << 20, *options)
            process.wait_for(r"filling caches \[")
            self.nothing_was_done(*self.interrupted(process), bool(options))

    def test_bench_keeps_what_it_measured(self):
        process = OnTerminal("bench", "attention", "--context", 512, "--repeats", 1000000, "--json")
        process.wait_for(r"measuring \[.*\] [1-9]")
        text, errors = self.interrupted(process)
        self.assertEqual(errors, "")
        measured = json.loads(text)
        self.assertGreater(measured["rounds"], 0)
        self.assertIs(measured["interrupted"], True)

    def test_eval_keeps_the_windows_it_measured(self):
        process = OnTerminal("eval", "ppl", "-m", RANDOM_MODEL, "--threads", 1, "--text",
                             DATA / "alice.txt", "--ctx", 64, "--cache", "f16", "--json")
        process.wait_for(r"eval ppl \[.*\] [1-9]\d{3}/")
        text, errors = self.interrupted(process)
        self.assertEqual(errors, "")
        measured = json.loads(text)
        self.assertGreater(measured["chunks"], 0)
        self.assertIs(measured["interrupted"], True)


if __name__ == "__main__":
    unittest.main()
