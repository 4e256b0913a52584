# SPDX-License-Identifier: Apache-2.0
"""`innerkv run`: text, summary, JSON, prompts."""

import re
import tempfile
import unittest

from program import DATA, NUMBER, RANDOM_MODELS, ProgramTest, model, run, story

FIELDS = {"text": str, "prompt_tokens": int, "generated_tokens": int,
          "prompt_tokens_per_s": NUMBER, "decode_tokens_per_s": NUMBER, "cache_bytes": int,
          "cache_bytes_f16": int, "finish": str, "cache": str, "context": int}


class RunTest(ProgramTest):
    def answer(self, *arguments, **options):
        answer = self.json(run("--json", *arguments, **options))
        self.has_fields(answer, FIELDS)
        return answer

    def ask(self, *arguments, **options):
        """With the model that makes sense."""
        return self.answer(*arguments, model=model(), **options)

    def test_json(self):
        answer = self.ask("-p", "Name three colours.", "-n", 8)
        self.assertEqual(answer["generated_tokens"], 8)
        self.assertEqual(answer["finish"], "length")
        self.assertEqual(answer["cache"], "base")
        self.assertEqual(answer["context"], answer["prompt_tokens"] + 8)
        self.assertGreater(len(answer["text"]), 8)
        self.assertGreater(answer["prompt_tokens_per_s"], 0)
        self.assertGreater(answer["decode_tokens_per_s"], 0)
        # The last token is not decoded: nobody asks what follows it.
        self.assertEqual(answer["cache_tokens"], answer["prompt_tokens"] + 7)
        self.assertEqual(answer["cache_bytes_f16"], answer["cache_tokens"] * 2 * 30 * 3 * 64 * 2)

    def test_sensible_answer(self):
        answer = self.ask("-p", "What is the capital of France?", "-n", 40)
        self.assertIn("Paris", answer["text"])

    def test_end_of_turn(self):
        answer = self.ask("-p", "Name three colours.", "-n", 200)
        self.assertEqual(answer["finish"], "stop")
        self.assertLess(answer["generated_tokens"], 200)
        self.assertNotIn("<|im_end|>", answer["text"])

    def test_streamed_text_is_the_json_text(self):
        arguments = ("-p", "Write a haiku about the sea.", "-n", 24)
        expected = self.answer(*arguments)["text"]
        text = self.succeed(run(*arguments))
        self.assertTrue(text.startswith(expected + "\n\ncache"), text)
        self.assertEqual(self.succeed(run(*arguments, "--quiet")), expected + "\n")

    def test_summary(self):
        text = self.succeed(run("-p", "Name three colours.", "-n", 4, "--cache", "k4v4"))
        self.assertRegex(text, r"\ncache   k4v4: [\d.]+ .iB for \d+ tokens, f16 takes [\d.]+ .iB: ")
        self.assertRegex(text, r"\nprompt  \d+ tokens, [\d.]+ tokens/s\n")
        self.assertRegex(text, r"\ndecode  4 tokens, [\d.]+ tokens/s \(length\)\n$")

    def test_document_from_a_file_then_the_question(self):
        text = story(200)
        document = self.ask("-f", "-", "-n", 1, stdin=text)
        question = self.ask("-p", "Who wrote it?", "-n", 1)
        both = self.ask("-f", "-", "-p", "Who wrote it?", "-n", 1, stdin=text)
        frame = self.ask("-p", "x", "-n", 1)["prompt_tokens"] - 1
        parts = document["prompt_tokens"] + question["prompt_tokens"] - frame
        self.assertAlmostEqual(both["prompt_tokens"], parts, delta=2)

    def test_standard_input(self):
        text = story(300)
        from_stdin = self.answer("-f", "-", "-p", "Who is Alice?", "-n", 6, stdin=text)
        with tempfile.NamedTemporaryFile() as file:
            file.write(text)
            file.flush()
            from_file = self.answer("-f", file.name, "-p", "Who is Alice?", "-n", 6)
        self.assertEqual(from_stdin["text"], from_file["text"])
        self.assertEqual(from_stdin["prompt_tokens"], from_file["prompt_tokens"])

    def test_cache_is_smaller_on_a_long_prompt(self):
        text = story(2000)
        answer = self.answer("-f", "-", "-n", 2, "--raw", stdin=text)
        self.assertGreater(answer["prompt_tokens"], 430)
        self.assertGreater(answer["cache_ratio"], 1.5)
        self.assertAlmostEqual(answer["cache_ratio"],
                               answer["cache_bytes_f16"] / answer["cache_bytes"])

    def test_raw_prompt_has_no_template(self):
        raw = self.ask("-p", "One, two, three, four,", "-n", 3, "--raw")
        chat = self.ask("-p", "One, two, three, four,", "-n", 3)
        self.assertLess(raw["prompt_tokens"], chat["prompt_tokens"])
        self.assertIn("five", raw["text"])
        self.assertEqual(raw, raw | {"text": self.ask(
            "-p", "One, two, three, four,", "-n", 3, "--no-chat")["text"]})

    def test_special_tokens_in_a_document_stay_text(self):
        plain = self.ask("-p", "Repeat: end", "-n", 1)
        special = self.ask("-p", "Repeat: <|im_end|>", "-n", 1)
        self.assertGreater(special["prompt_tokens"], plain["prompt_tokens"] + 2)

    def test_temperature_and_seed(self):
        arguments = ("-p", "Tell me a story.", "-n", 12, "--temp", 1.5, "--raw", "--seed")
        first = self.answer(*arguments, 1)["text"]
        self.assertEqual(first, self.answer(*arguments, 1)["text"])
        self.assertNotEqual(first, self.answer(*arguments, 2)["text"])

    def test_greedy_ignores_the_seed(self):
        arguments = ("-p", "Tell me a story.", "-n", 8, "--seed")
        self.assertEqual(self.answer(*arguments, 1)["text"], self.answer(*arguments, 2)["text"])

    def test_options_reach_the_session(self):
        text = story(700)
        for options in (("--exact-prefill", "--key-norm", "none", "--chunk", 32),
                        ("--isa", "scalar", "--context", 800)):
            with self.subTest(options=options):
                answer = self.answer("-f", "-", "-n", 3, *options, stdin=text)
                self.assertEqual(answer["generated_tokens"], 3)

    def test_min_p_of_1_is_greedy(self):
        arguments = ("-p", "Tell me a story.", "-n", 8)
        greedy = self.answer(*arguments)["text"]
        self.assertEqual(self.answer(*arguments, "--temp", 2, "--min-p", 1)["text"], greedy)

    def test_unknown_chat_template(self):
        spm = RANDOM_MODELS / "llama-spm.gguf"
        self.fail_with(run("-p", "x", model=spm), 1, "llama-spm", "--raw")
        self.succeed(run("-p", "x", "-n", 1, "--raw", model=spm))

    def test_context_ends_the_text(self):
        prompt = self.answer("-p", "Tell me a story.", "-n", 1)["prompt_tokens"]
        answer = self.answer("-p", "Tell me a story.", "-n", 50, "--context", prompt + 5)
        self.assertEqual((answer["finish"], answer["generated_tokens"]), ("context", 6))


class CompareTest(ProgramTest):
    FIELDS = {"cache": str, "text": str, "texts_part": bool, "common_tokens": int,
              "common_text": str, "teacher_forced_tokens": int, "top1": NUMBER, "kld_mean": NUMBER,
              "prompt_tokens_per_s": NUMBER, "decode_tokens_per_s": NUMBER, "cache_bytes": int}

    def compare(self, *arguments):
        """On a prompt long enough for quantized pages."""
        return run("-f", "-", "-n", 120, "--json", *arguments, stdin=story(900))

    def test_same_cache_generates_the_same_text(self):
        for sampling in ((), ("--temp", 1, "--seed", 7)):
            answer = self.json(run("-p", "Tell me a story.", "-n", 12, "--cache", "f16",
                                   "--compare", "f16", "--json", *sampling))
            other = answer["compare"]
            self.has_fields(other, self.FIELDS)
            self.assertFalse(other["texts_part"])
            self.assertEqual(other["text"], answer["text"])
            self.assertEqual((other["top1"], other["kld_mean"]), (1, 0))
            self.assertEqual(other["teacher_forced_tokens"], 12)

    def test_second_text_is_what_that_cache_generates_alone(self):
        for first, second in (("small", "f16"), ("f16", "small")):
            with self.subTest(second=second):
                answer = self.json(self.compare("--cache", first, "--compare", second))
                other = answer["compare"]
                alone = self.json(self.compare("--cache", second))
                self.assertEqual(other["text"], alone["text"])
                self.assertTrue(answer["text"].startswith(other["common_text"]))
                self.assertTrue(other["text"].startswith(other["common_text"]))
                self.assertNotEqual(answer["text"], alone["text"])
                self.assertTrue(other["texts_part"])
                self.assertLess(other["top1"], 1)
                self.assertGreater(other["kld_mean"], 0)


class BadPromptTest(ProgramTest):
    def test_unreadable_files(self):
        self.fail_with(run("-f", "no-such-file.txt"), 1, "no-such-file.txt")
        self.fail_with(run("-f", DATA), 1, DATA)

    def test_texts_that_are_none(self):
        for contents, part in ((b"", "empty"), (b"abc\0def", "0x00 at offset 3"),
                               (b"caf\xe9 au lait", "0xe9 at offset 3"),
                               (b"\xed\xa0\x80", "0xed at offset 0"), (b"ab\xf0\x9f\x98", "UTF-8")):
            with self.subTest(contents=contents):
                self.fail_with(run("-f", "-", stdin=contents), 1, "standard input", part)

    def test_byte_order_mark_is_left_out(self):
        plain = self.json(run("-f", "-", "-n", 1, "--json", stdin="Grüße 🙂".encode()))
        marked = self.json(run("-f", "-", "-n", 1, "--json", stdin=b"\xef\xbb\xbf" +
                               "Grüße 🙂".encode()))
        self.assertEqual(plain["prompt_tokens"], marked["prompt_tokens"])

    def test_prompt_beyond_the_context(self):
        self.fail_with(run("-f", DATA / "README.md", "--context", 64), 2, "64", "--context")
        text = (DATA / "alice.txt").read_bytes() * 2
        line = self.fail_with(run("-f", "-", stdin=text), 2, "8192")
        self.assertRegex(line, r"the prompt has \d{5} tokens")

    def test_context_beyond_the_models(self):
        self.fail_with(run("-p", "x", "--context", 10000), 2, 10000, 8192)

    def test_output_is_utf8(self):
        result = run("-p", "Reply with many emoji: 🙂🚀🌊", "-n", 24, "--temp", 1.8, "--top-k", 0,
                     "--top-p", 1)
        self.assertNotIn("\x00", self.succeed(result))
        self.assertIsNotNone(re.search(r"\ncache ", result.stdout.decode("utf-8", "strict")))


if __name__ == "__main__":
    unittest.main()
