# SPDX-License-Identifier: Apache-2.0
"""`innerkv inspect` and `innerkv plan`; model files that cannot be used."""

import os
import tempfile
import unittest
from pathlib import Path

from program import DATA, NUMBER, RANDOM_MODEL, RANDOM_MODELS, ProgramTest, innerkv, model, run


class InspectTest(ProgramTest):
    def test_json(self):
        info = self.json(innerkv("inspect", model(), "--json"))
        self.has_fields(info, {"path": str, "name": str, "weight_type": str, "parameters": int,
                               "sliding_window": list, "embedding_dim": int})
        expected = {"architecture": "llama", "layers": 30, "q_heads": 9, "kv_heads": 3,
                    "head_dim": 64, "context_length": 8192, "vocabulary_size": 49152,
                    "file_bytes": 98362432, "has_chat_template": True}
        self.assertEqual(info | expected, info)

    def test_text(self):
        text = self.succeed(innerkv("inspect", model()))
        for part in ("llama", "Q4_1", "9 query, 3 key-value, dimension 64", "8192 tokens"):
            self.assertIn(part, text)

    def test_fifo(self):
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "fifo"
            os.mkfifo(path)
            self.fail_with(innerkv("inspect", path), 1, path, "not a regular file")

    def test_other_files(self):
        self.fail_with(innerkv("inspect", "cache.ikv"), 1, "cache.ikv", "GGUF")
        self.fail_with(innerkv("inspect", DATA / "alice.txt"), 1, "alice.txt")


class HostileTextTest(ProgramTest):
    """A file's text must not act on the terminal."""

    def expect_harmless(self, text):
        self.assertNotRegex(text, r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")

    def test_control_characters(self):
        contents = (RANDOM_MODELS / "llama-q8_0.gguf").read_bytes()
        named = contents.replace(b"random llama-q8_0", b"\x1b[2J\nlla\xc2\x9b\r-q8_0 ")
        at = contents.index(b"llama", contents.index(b"general.architecture"))
        foreign = contents[:at] + b"\x1b]0;x" + contents[at + 5:]
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "hostile.gguf"
            path.write_bytes(named)
            text = self.succeed(innerkv("inspect", path))
            self.expect_harmless(text)
            self.assertEqual(text.count("\n"),
                             self.succeed(innerkv("inspect", model())).count("\n"))
            self.assertIn("[2J", text)
            self.expect_harmless(self.succeed(innerkv("plan", "-m", path, "--context", 64)))
            path.write_bytes(foreign)
            self.expect_harmless(self.fail_with(innerkv("inspect", path), 1, "]0;x"))


class PlanTest(ProgramTest):
    def plan(self, *arguments):
        return self.json(innerkv("plan", "-m", model(), "--json", *arguments))

    def test_json(self):
        plan = self.plan("--context", 7000)
        self.assertEqual((plan["context"], plan["batch"]), (7000, 1))
        for result in plan["results"]:
            self.has_fields(result, {"cache": str, "bits_per_value": NUMBER, "bytes": int,
                                     "bytes_per_token": NUMBER, "bytes_f16": int, "ratio": NUMBER,
                                     "reserved_bytes": int})
            self.assertEqual(result["bytes_f16"], 7000 * 2 * 30 * 3 * 64 * 2)
            self.assertAlmostEqual(result["ratio"], result["bytes_f16"] / result["bytes"])
            self.assertAlmostEqual(result["bytes_per_token"], result["bytes"] / 7000)
            self.assertGreaterEqual(result["reserved_bytes"], result["bytes"])

    def test_base_is_3_9_times_smaller_at_7000_tokens(self):
        base, = self.plan("--context", 7000, "--cache", "base")["results"]
        self.assertGreaterEqual(base["ratio"], 3.9)

    def test_batch(self):
        one, = self.plan("--context", 1000, "--cache", "base")["results"]
        many, = self.plan("--context", 1000, "--cache", "base", "--batch", 16)["results"]
        self.assertEqual(many["bytes"], 16 * one["bytes"])

    def test_agrees_with_a_run(self):
        answer = self.json(run("-f", DATA / "README.md", "-n", 60, "--json", "--cache", "base"))
        planned, = self.json(innerkv("plan", "-m", RANDOM_MODEL, "--json", "--cache", "base",
                                     "--context", answer["cache_tokens"]))["results"]
        self.assertEqual(answer["cache_bytes"], planned["bytes"])
        self.assertEqual(answer["cache_bytes_f16"], planned["bytes_f16"])

    def test_text(self):
        text = self.succeed(innerkv("plan", "-m", model(), "--context", 8192, "--cache",
                                    "k8v8,base"))
        self.assertLess(text.index("k8v8"), text.index("base"))

    def test_context_beyond_the_models(self):
        self.fail_with(innerkv("plan", "-m", model(), "--context", 8193), 2, 8193, 8192)


class UnusableModelTest(ProgramTest):
    def test_every_command_says_it_in_one_line(self):
        with tempfile.TemporaryDirectory() as scratch:
            files = {"missing.gguf": None, "empty.gguf": b"", "text.gguf": b"hello\n" * 100,
                     "magic.gguf": b"GGUF", "short.gguf": Path(model()).read_bytes()[:100000],
                     "zeros.gguf": b"GGUF" + bytes(4096)}
            for name, contents in files.items():
                path = Path(scratch) / name
                if contents is not None:
                    path.write_bytes(contents)
                for arguments in (("inspect", path), ("plan", "--context", 9, "-m", path),
                                  ("run", "-p", "x", "-m", path),
                                  ("eval", "ppl", "--text", DATA / "alice.txt", "-m", path)):
                    with self.subTest(name=name, command=arguments[0]):
                        self.fail_with(innerkv(*arguments), 1, name)
            self.fail_with(innerkv("inspect", scratch), 1, scratch)

    def test_weights_cut_off(self):
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "cut.gguf"
            path.write_bytes(Path(model()).read_bytes()[:50_000_000])
            self.fail_with(innerkv("run", "-p", "x", "-m", path), 1, "cut.gguf")


if __name__ == "__main__":
    unittest.main()
