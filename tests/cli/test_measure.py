# SPDX-License-Identifier: Apache-2.0
"""`innerkv eval ppl` and `innerkv bench`: what they print, not how fast."""

import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree
from pathlib import Path

from program import DATA, NUMBER, RANDOM_MODEL, RANDOM_MODELS, ROOT, ProgramTest, innerkv, model, story


class EvalPplTest(ProgramTest):
    FIELDS = {"cache": str, "ppl": NUMBER, "kld_mean": NUMBER, "kld_p99": NUMBER, "top1": NUMBER,
              "bits_per_value": NUMBER, "tokens": int}

    def evaluate(self, *arguments, model=RANDOM_MODEL):
        return innerkv("eval", "ppl", "-m", model, "--threads", 1, "--text",
                       DATA / "wikitext-small.txt", *arguments)

    def test_json(self):
        result = self.json(self.evaluate("--ctx", 320, "--chunks", 1, "--cache", "k8v8,base",
                                         "--against", "f16", "--codec", "paper", "--json",
                                         model=model()))
        self.assertEqual((result["ctx"], result["chunks"]), (320, 1))
        names = [entry["cache"] for entry in result["results"]]
        self.assertEqual(names, ["k8v8", "base"])
        for entry in result["results"]:
            self.has_fields(entry, self.FIELDS)
            self.assertEqual(entry["tokens"], 160)
            self.assertTrue(0 < entry["kld_mean"] < entry["kld_p99"])
            self.assertTrue(0.5 < entry["top1"] <= 1)
            self.assertLess(entry["bits_per_value"], entry["bits_per_value_total"])
            self.assertLess(abs(entry["ppl"] / result["against"]["ppl"] - 1), 0.5)
        finer, coarser = result["results"]
        self.assertLess(finer["kld_mean"], coarser["kld_mean"])
        self.assertGreater(finer["top1"], coarser["top1"])
        self.assertEqual((finer["bits_per_value"], coarser["bits_per_value"]), (8.5, 3.5))

    def test_standard_error(self):
        arguments = ("--ctx", 300, "--cache", "base", "--json")
        entry, = self.json(self.evaluate("--chunks", 3, *arguments))["results"]
        means = entry["kld_by_item"]
        self.assertAlmostEqual(statistics.fmean(means), entry["kld_mean"])
        self.assertAlmostEqual(entry["kld_standard_error"], statistics.stdev(means) / math.sqrt(3))
        self.assertGreater(entry["kld_standard_error"], 0)
        alone, = self.json(self.evaluate("--chunks", 1, *arguments))["results"]
        self.assertIsNone(alone["kld_standard_error"])
        self.assertEqual(alone["kld_by_item"], means[:1])

    def test_a_cache_against_itself(self):
        result = self.json(self.evaluate("--ctx", 64, "--chunks", 2, "--cache", "f16", "--json"))
        entry, = result["results"]
        self.assertEqual((entry["kld_mean"], entry["kld_p99"], entry["top1"]), (0, 0, 1))
        self.assertEqual(entry["ppl"], result["against"]["ppl"])
        self.assertEqual(entry["tokens"], 64)
        self.assertGreater(entry["ppl"], 2)

    def test_caches_of_others(self):
        result = self.json(self.evaluate("--ctx", 384, "--chunks", 1, "--json", "--cache",
                                         "base,paper:base,sim:q4_0,sim:kivi2,sim:turbo3,llama:q4_0"))
        entries = {entry["cache"]: entry for entry in result["results"]}
        bits = {name: entry["bits_per_value"] for name, entry in entries.items()}
        self.assertEqual(bits, {"base": 3.5, "paper:base": 3.5, "sim:q4_0": 4.5, "sim:kivi2": 3,
                                "sim:turbo3": 3.25, "llama:q4_0": 4.5})
        for name, entry in entries.items():
            self.has_fields(entry, self.FIELDS)
            self.assertEqual(entry["tokens"], 192)
            self.assertGreater(entry["kld_mean"], 0, name)
        self.assertLess(entries["sim:q4_0"]["kld_mean"], entries["sim:kivi2"]["kld_mean"])
        for name in ("sim:q4_0", "sim:turbo3", "llama:q4_0"):  # no windows
            self.assertEqual(entries[name]["bits_per_value_total"], bits[name])
        self.assertGreater(entries["sim:kivi2"]["bits_per_value_total"], bits["sim:kivi2"])
        self.assertNotEqual(entries["base"]["kld_mean"], entries["paper:base"]["kld_mean"])

    def test_a_rival_against_its_own_f16(self):
        result = self.json(self.evaluate("--ctx", 384, "--chunks", 1, "--json", "--cache", "sim:q4_0",
                                         "--against", "llama:f16"))
        self.assertEqual(result["against"]["cache"], "llama:f16")
        self.assertGreater(result["results"][0]["kld_mean"], 0)

    def test_nothing_is_quantized_inside_the_windows(self):
        done = self.evaluate("--ctx", 128, "--chunks", 1, "--cache", "base,f16", "--json")
        self.assertEqual(done.returncode, 0)
        self.assertRegex(done.stderr.decode(),
                         r"^innerkv: warning: base quantized nothing in windows of 128 .* --ctx\n$")
        result = json.loads(done.stdout)
        entry = result["results"][0]
        self.assertIs(result["interrupted"], False)
        self.assertTrue(math.isclose(entry["ppl"], result["against"]["ppl"], rel_tol=1e-6))

    def test_all_cores_by_default(self):
        result = self.json(innerkv("eval", "ppl", "-m", RANDOM_MODEL, "--text", DATA / "README.md",
                                   "--ctx", 64, "--chunks", 1, "--cache", "f16", "--json"))
        self.assertEqual(result["threads"], len(os.sched_getaffinity(0)))

    def test_more_threads_than_cores(self):
        cores = len(os.sched_getaffinity(0))
        for arguments in (("run", "-m", RANDOM_MODEL, "-p", "x", "-n", 1),
                          ("eval", "ppl", "-m", RANDOM_MODEL, "--text", DATA / "README.md", "--ctx", 64,
                           "--chunks", 1, "--cache", "f16"),
                          ("bench", "attention", "--context", 64, "--repeats", 1)):
            result = innerkv(*arguments, "--threads", cores + 6, "--json")
            self.assertEqual(result.returncode, 0)
            self.assertRegex(result.stderr.decode(), rf"^innerkv: warning: --threads {cores + 6}: .* {cores}\n$")
            self.assertEqual(json.loads(result.stdout)["threads"], cores)

    def test_table(self):
        text = self.succeed(self.evaluate("--ctx", 64, "--chunks", 1, "--cache", "f16"))
        self.assertRegex(text, r"^1 window of 64 tokens, second half scored: 32 tokens; f16 has "
                               r"perplexity [\d.]+\ncache +bits a value .*\nf16 +16\.00 .*%\n$")

    def test_fewer_windows_than_asked(self):
        result = innerkv("eval", "ppl", "-m", RANDOM_MODEL, "--threads", 1, "--text", "-", "--ctx",
                         64, "--chunks", 99, "--cache", "f16", "--json", stdin=story(150))
        self.assertEqual(result.returncode, 0)
        self.assertRegex(result.stderr.decode(), r"^innerkv: warning: .* 99\n$")
        self.assertEqual(json.loads(result.stdout)["chunks"], 2)

    def test_text_shorter_than_a_window(self):
        self.fail_with(innerkv("eval", "ppl", "-m", model(), "--text", DATA / "README.md",
                               "--ctx", 4096), 2, "4096", "--ctx")

    def test_window_beyond_the_models_context(self):
        self.fail_with(self.evaluate("--ctx", 8193), 2, 8193, 8192)

    def test_unreadable_text(self):
        self.fail_with(innerkv("eval", "ppl", "-m", model(), "--text", "no-such-file"), 1,
                       "no-such-file")


class BenchAttentionTest(ProgramTest):
    FIELDS = {"name": str, "median_us": NUMBER, "min_us": NUMBER, "bytes_read": int,
              "gb_per_s": NUMBER, "percent_of_read_bandwidth": NUMBER, "ratio": NUMBER,
              "floor_us": NUMBER, "times_floor": NUMBER, "min_times_floor": NUMBER}
    SMALL = ("bench", "attention", "--context", 600, "--head-dim", 64, "--q-heads", 6, "--kv-heads",
             2, "--repeats", 3)

    def test_json(self):
        result = self.json(innerkv(*self.SMALL, "--cache", "base,k8v8", "--peer",
                                   "ggml:f16,ggml-rows:f16,ggml:q4_0", "--json"))
        self.has_fields(result, {"read_bandwidth_gb_per_s": NUMBER, "dot_gmac_per_s": NUMBER,
                                 "floor_us": NUMBER, "isa": str})
        names = [entry["name"] for entry in result["results"]]
        self.assertEqual(names, ["innerkv:base", "innerkv:k8v8", "ggml:f16", "ggml-rows:f16",
                                 "ggml:q4_0"])
        ours = result["results"][0]
        for entry in result["results"]:
            self.has_fields(entry, self.FIELDS)
            self.assertLessEqual(entry["min_us"], entry["median_us"])
            self.assertAlmostEqual(entry["ratio"], entry["median_us"] / ours["median_us"])
            self.assertAlmostEqual(entry["gb_per_s"],
                                   entry["bytes_read"] / entry["median_us"] / 1e3, places=6)
            self.assertGreater(entry["cosine"], 0.9)
            self.assertEqual("append_us" in entry, entry["name"].startswith("innerkv:"))

    def test_text_and_options(self):
        text = self.succeed(innerkv(*self.SMALL, "--batch", 2, "--threads", 1, "--cold", "--isa",
                                    "scalar", "--device", "cpu", "--seed", 5))
        self.assertRegex(text, r"batch 2, 1 query token each, 1 thread, cold\n")
        self.assertRegex(text, r"\ncontender +median us .*\ninnerkv:base ")

    def test_forks(self):
        command = (*self.SMALL, "--batch", 3, "--shared", "--cache", "base,f16", "--json")
        result = json.loads(self.succeed(innerkv(*command)))
        apart, forks, f16, f16_forks = result["results"]
        self.assertEqual([entry["name"] for entry in result["results"]],
                         ["innerkv:base", "innerkv:base:shared", "innerkv:f16",
                          "innerkv:f16:shared"])
        for entry, other in ((apart, forks), (f16, f16_forks)):
            self.assertLess(other["bytes_read"], entry["bytes_read"] / 2)
            self.assertGreater(other["cosine"], 0.9)
        self.fail_with(innerkv(*self.SMALL, "--shared"), 2, "--shared", "--batch 2")

    def test_wrong_usage(self):
        self.fail_with(innerkv("bench", "attention", "--peer", "ggml:q3_9"), 2, "q3_9", "ggml:q8_0")
        for peers in ("--peer=", "--peer=ggml:f16,", "--peer=ggml:f16,ggml:f16"):
            self.fail_with(innerkv("bench", "attention", peers), 2, "--peer")
        self.fail_with(innerkv("bench", "attention", "--q-heads", 9, "--kv-heads", 2), 2, "9", "2")
        self.fail_with(innerkv("bench", "attention", "--head-dim", 65), 2, "128")
        self.fail_with(innerkv("bench", "attention", "--head-dim", 80, "--context", 64, "--peer",
                               "ggml:q8_0"), 2, "ggml:q8_0", "32", "bench attention --help")

    def test_failures(self):
        self.fail_with(innerkv("bench", "attention", "--device", "cuda"), 1, "CUDA", "cpu")
        self.fail_with(innerkv("bench", "attention", "--context", 1 << 24, "--batch", 1000), 1,
                       " TiB for all contenders, ", "--context", "--batch")
        self.fail_with(innerkv("bench", "attention", "--context", 1 << 20, "--peer", "ggml:f16",
                               preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS,
                                                                     (1 << 32, 1 << 32))), 1,
                       "take 4.9 GiB", "ulimit -v has 4.0 GiB")


class PlotContextsTest(ProgramTest):
    def plot(self, *reports):
        with tempfile.TemporaryDirectory() as directory:
            paths = [Path(directory) / f"{number}.json" for number in range(len(reports))]
            for path, report in zip(paths, reports):
                path.write_bytes(report)
            return subprocess.run([sys.executable, ROOT / "tools" / "plot_contexts.py", *paths],
                                  capture_output=True, text=True, check=False)

    def test_attention(self):
        reports = [innerkv("bench", "attention", "--context", context, "--head-dim", 64,
                           "--q-heads", 2, "--kv-heads", 1, "--repeats", 2, "--peer", "ggml:f16",
                           "--json").stdout for context in (600, 200)]
        result = self.plot(*reports)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        svg = xml.etree.ElementTree.fromstring(result.stdout)
        lines = svg.findall("{*}polyline")
        self.assertEqual([len(line.get("points").split()) for line in lines], [2, 2])
        for line in lines:  # by context, from left to right
            left, right = (float(point.split(",")[0]) for point in line.get("points").split())
            self.assertLess(left, right)
        self.assertIn("ggml:f16, ", result.stdout)

    def test_decode(self):
        result = self.plot(innerkv("bench", "decode", "-m", RANDOM_MODEL, "--threads", 1,
                                   "--tokens", 2, "--context", "40,80", "--json").stdout)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertIn("tokens a second", result.stdout)

    def test_what_is_no_report(self):
        for report in (b"", b"{}", b"[]"):
            result = self.plot(report)
            self.assertEqual((result.returncode, result.stdout), (1, ""))
            self.assertRegex(result.stderr, r"^plot_contexts\.py: not the JSON .*\n$")


class BenchDecodeTest(ProgramTest):
    FIELDS = {"name": str, "context": int, "decode_tokens_per_s": NUMBER,
              "best_decode_tokens_per_s": NUMBER, "prompt_tokens_per_s": NUMBER,
              "peak_bytes": int}

    def bench(self, *arguments):
        return innerkv("bench", "decode", "-m", RANDOM_MODEL, "--threads", 1, "--tokens", 3,
                       *arguments)

    def test_json(self):
        result = self.json(self.bench("--context", "300,40", "--repeats", 2, "--cache", "base,f16",
                                      "--peer", "llama:f16,llama:q8_0", "--json"))
        places = [(entry["name"], entry["context"]) for entry in result["results"]]
        self.assertEqual(places, [(name, context) for context in (40, 300) for name in
                                  ("innerkv:base", "innerkv:f16", "llama:f16", "llama:q8_0")])
        for entry in result["results"]:
            self.has_fields(entry, self.FIELDS)
            self.assertLessEqual(entry["decode_tokens_per_s"], entry["best_decode_tokens_per_s"])
            self.assertGreater(entry["decode_tokens_per_s"], 0)
            self.assertGreater(entry["prompt_tokens_per_s"], 0)
            self.assertGreater(entry["peak_bytes"], RANDOM_MODEL.stat().st_size)

    def test_default_contexts_end_where_the_model_does(self):
        result = self.json(innerkv("bench", "decode", "-m", RANDOM_MODELS / "llama-q8_0.gguf",
                                   "--threads", 1, "--tokens", 2, "--repeats",
                                   1, "--json"))
        self.assertEqual([entry["context"] for entry in result["results"]], [512])

    def test_text(self):
        text = self.succeed(self.bench("--context", 64, "--seed", 5, "--isa", "scalar"))
        self.assertRegex(text, r"^3 tokens generated 3 times, 1 thread\ncontender +context ")
        self.assertRegex(text, r"\ninnerkv:base +64 ")

    def test_wrong_usage(self):
        self.fail_with(self.bench("--peer", "ggml:f16"), 2, "ggml:f16", "llama:f16")
        self.fail_with(self.bench("--peer", "llama:q3_9"), 2, "q3_9")
        self.fail_with(self.bench("--context", 9), 2, "9", "--tokens", "--repeats")
        self.fail_with(self.bench("--context", "40,49"), 2, "49 leaves no prompt after 40")
        self.fail_with(self.bench("--context", "64,x"), 2, "--context")
        self.fail_with(self.bench("--context", 1000000), 2, "1000000")

    def test_failures(self):
        self.fail_with(innerkv("bench", "decode", "-m", "no-such-file"), 1, "no-such-file")


if __name__ == "__main__":
    unittest.main()
