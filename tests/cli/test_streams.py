# SPDX-License-Identifier: Apache-2.0
"""Pipes, terminals, Ctrl-C."""

import json
import os
import pty
import signal
import subprocess
import threading
import time
import unittest

import program
from program import DATA, ProgramTest, innerkv, model


def command(*arguments):
    return [program.PROGRAM, *map(str, arguments)]


def start(*arguments, **options):
    return subprocess.Popen(command(*arguments), cwd=program.ROOT, env=program.environment(),
                            stdin=subprocess.DEVNULL, **options)


def run_with_terminal(arguments, term="xterm"):
    """Runs with stderr on a terminal; returns exit code, stdout, what the terminal got."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(command(*arguments), cwd=program.ROOT, stdin=subprocess.DEVNULL,
                               env=program.environment(TERM=term), stdout=subprocess.PIPE,
                               stderr=follower)
    os.close(follower)
    shown = []

    def read():
        try:
            while block := os.read(leader, 4096):
                shown.append(block)
        except OSError:
            pass  # the other side is closed

    reader = threading.Thread(target=read)
    reader.start()
    stdout = process.communicate(timeout=600)[0]
    reader.join()
    os.close(leader)
    return process.returncode, stdout, b"".join(shown).decode()


class ProgressTest(ProgramTest):
    RUN = ("run", "--threads", 1, "-f", DATA / "README.md", "-n", 2, "--json")

    def test_bar_on_a_terminal(self):
        code, stdout, shown = run_with_terminal([*self.RUN, "-m", model()])
        self.assertEqual(code, 0)
        json.loads(stdout)
        self.assertRegex(shown, r"prompt \[#*\.*\] \d+/\d+ tokens")
        self.assertRegex(shown, r"\d/s  \d+ s left")
        self.assertTrue(shown.endswith("\r\x1b[K"), repr(shown[-20:]))

    def test_no_bar_elsewhere(self):
        self.assertEqual(innerkv(*self.RUN, "-m", model()).stderr, b"")
        self.assertEqual(run_with_terminal([*self.RUN, "-m", model()], term="dumb")[2], "")

    def test_bars_of_eval_and_bench(self):
        shown = run_with_terminal(["eval", "ppl", "-m", model(), "--text", DATA / "alice.txt",
                                   "--ctx", 128, "--chunks", 1, "--threads", 1])[2]
        self.assertRegex(shown, r"eval ppl \[.*\] \d+/254 tokens")
        shown = run_with_terminal(["bench", "attention", "--context", 512, "--repeats", 3])[2]
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
    def interrupted(self, process, seconds=60):
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=seconds)
        self.assertEqual(process.returncode, 130, stderr)
        return stdout.decode(), stderr.decode()

    def test_in_the_text(self):
        process = start(*OutputTest.LONG, "-m", model(), stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE)
        begin = process.stdout.read(10).decode("utf-8", "replace")
        text, errors = self.interrupted(process)
        self.assertEqual(errors, "")
        self.assertTrue(begin)
        self.assertRegex(text, r"\ncache   base: ")
        self.assertRegex(text, r"\ndecode  \d+ tokens, [\d.]+ tokens/s \(interrupted\)\n$")

    def test_in_the_prompt(self):
        process = start("run", "-m", model(), "--threads", 1, "-f", DATA / "alice.txt", "--json",
                        "--chunk", 32, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(1.5)
        text, errors = self.interrupted(process)
        answer = json.loads(text)
        self.assertEqual(errors, "")
        self.assertEqual((answer["finish"], answer["generated_tokens"]), ("interrupted", 0))
        self.assertLess(answer["prompt_tokens"], 7000)

    def test_eval_before_the_first_window(self):
        process = start("eval", "ppl", "-m", model(), "--threads", 1, "--text", DATA / "alice.txt",
                        "--ctx", 4096, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(1.5)
        text, errors = self.interrupted(process)
        self.assertEqual(text, "")
        self.assertRegex(errors, r"^innerkv: .*interrupted.*\n$")

    def test_bench_keeps_what_it_measured(self):
        leader = start("bench", "attention", "--context", 512, "--repeats", 1000000, "--json",
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(2)
        text, errors = self.interrupted(leader)
        self.assertEqual(errors, "")
        self.assertGreater(json.loads(text)["rounds"], 0)


if __name__ == "__main__":
    unittest.main()
