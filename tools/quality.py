#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures what docs/quality.md shows, and puts the tables there.

    tools/quality.py list
    tools/quality.py run RESULTS --texts FOLDER [--jobs 4 --threads 4] [--only 'smollm2/wiki-2k*' ...]
    tools/quality.py tables RESULTS docs/quality.md docs/results.md docs/calibration.md docs/rivals.md --plot docs/quality.svg

`run` keeps a report for every run, RESULTS/MODEL/RUN.json, and goes on where it was stopped; the longest run
comes first. Stopped by Ctrl-C, or by `timeout -s INT 590`, it keeps all windows that are finished. The texts are
others' and not in this repository: docs/quality.md says where they are from, and `run` names the file that is
missing. Models are those of tools/model.py; those that are made from them, with outlier channels or weights in F32,
are put beside them, calibrations into RESULTS.
"""

import argparse
import fnmatch
import functools
import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

import fetch
import model as models
import plot_quality
import quality_reports
import quality_runs
import quality_tables
import quality_texts

ROOT = fetch.TOOLS.parent
SLOWER = {"llama:": 3, "sim:kivi": 1.5}  # than a cache that our graph reads in whole chunks
QUICK = {"ctx": 896, "chunks": 1, "documents": 1, "depths": 11, "starts": 2, "generate": 4}


def shortened(options):
    return {name: min(value, QUICK[name]) if name in QUICK else value for name, value in options.items()}


def folder_of(arguments):
    """Of reports. Short ones have a folder of their own, where they replace nothing."""
    return Path(arguments.results) / ("quick" if arguments.quick else "")


class Job:
    """One run on one model, and its report."""

    def __init__(self, run, model, arguments):
        self.run, self.model = run, model
        if arguments.quick:
            self.run = run._replace(options=shortened(run.options))
        self.name = f"{model}/{run.name}"
        self.path = folder_of(arguments) / f"{self.name}.json"

    def cost(self):
        """In units of their own: for the order, and for the time left."""
        weights = [next((weight for name, weight in SLOWER.items() if cache.startswith(name)), 1)
                   for cache in ("f16", *self.run.caches)]
        return self.run.tokens() * sum(weights) * (1 if self.model.startswith("smollm2") else 1.1)

    def report(self):
        """What was measured with these options, or None."""
        try:
            kept = quality_reports.read(self.path)
            if kept["arguments"] != self.run.arguments():
                return None
            quality_reports.check(kept["report"], self.run.measure, self.run.caches)
        except FileNotFoundError:
            return None
        except quality_reports.BadReport as problem:
            raise fetch.Failure(f"{self.path} is no report of this program: {problem}; remove it") from None
        return kept

    def keep(self, report, seconds, threads, made_with):
        kept = {"arguments": self.run.arguments(), "seconds": round(seconds, 1), "threads": threads,
                "made_with": made_with, "report": report}
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        part.replace(self.path)


def all_jobs(arguments):
    return [Job(run, model, arguments) for run in quality_runs.RUNS for model in run.models]


def chosen_jobs(arguments):
    jobs = all_jobs(arguments)
    for pattern in arguments.only or ():
        if not any(fnmatch.fnmatch(job.name, pattern) for job in jobs):
            raise fetch.Failure(f"no run is called '{pattern}'; `tools/quality.py list` has their names")
    if arguments.only:
        jobs = [job for job in jobs if any(fnmatch.fnmatch(job.name, pattern) for pattern in arguments.only)]
    return sorted(jobs, key=lambda job: -job.cost())


def plain_model(name):
    return name.partition("-")[0]


def model_path(folder, name):
    file = Path(folder) / models.MODELS[plain_model(name)].file
    kind = name.partition("-")[2]
    return file.with_name(f"{file.stem}.{kind}.gguf") if kind else file


def make_model(folder, name):
    """The model with outlier channels or with weights in F32, where it is not there yet."""
    path = model_path(folder, name)
    if path.exists():
        return
    kind = ["--factor", "1", "--f32"] if name == quality_runs.F32 else ["--factor", name.rpartition("-")[2]]
    third_party = subprocess.run([sys.executable, ROOT / "tools/third_party.py"], check=True, text=True,
                                 stdout=subprocess.PIPE).stdout.split()[-1]
    fetch.say(f"quality: making {path}")
    subprocess.run([fetch.python_environment(), ROOT / "tools/make_outlier_gguf.py",
                    model_path(folder, plain_model(name)), path, *kind],
                   check=True, env=os.environ | {"PYTHONPATH": f"{third_party}/gguf-py"})


def prepare(jobs, arguments):
    """Models and texts, before anything is measured. Returns the texts' paths."""
    for name in sorted({plain_model(job.model) for job in jobs}):
        path = model_path(arguments.models, name)
        if not path.exists():
            raise fetch.Failure(f"{path} is not there; `tools/model.py {name}` fetches it")
    for name in sorted({job.model for job in jobs}):
        if name != plain_model(name):
            make_model(arguments.models, name)
    try:
        names = {job.run.text for job in jobs}
        if any(job.run.calibrated for job in jobs):
            names.add(quality_runs.CALIBRATION["text"])
        texts = {name: quality_texts.prepare(arguments.texts, name, Path(arguments.results) / "texts")
                 for name in sorted(names)}
        for name in sorted({source for text in texts for source in quality_texts.sources(text)}):
            if not quality_texts.is_the_same(arguments.texts, name):
                fetch.say(f"quality: {quality_texts.place(arguments.texts, name)} is not the text that "
                          "docs/quality.md was made with")
    except quality_texts.Missing as missing:
        raise fetch.Failure(str(missing)) from None
    return texts


class Progress:
    """A line for every run that ends."""

    def __init__(self, jobs):
        self.cost = sum(job.cost() for job in jobs)
        self.count, self.done, self.ended = len(jobs), 0, 0
        self.began = time.monotonic()
        self.lock = threading.Lock()

    def end(self, job, outcome):
        with self.lock:
            self.ended += 1
            self.done += job.cost()
            left = (time.monotonic() - self.began) * (self.cost / self.done - 1)
            fetch.say(f"[{self.ended}/{self.count}] {job.name}: {outcome}, about {left / 60:.0f} min left")


@functools.cache
def sha256_of(path):
    return fetch.sha256_of(path)


def incomplete(report, run):
    """What is wrong with a report of fewer windows than the run asks for, as of a short text; or nothing."""
    for name in ("chunks", "documents"):
        wanted, found = run.options.get(name), report.get(name)
        if wanted != found:
            return f"{found} {name} where {wanted} were asked for; is the text too short?"
    return ""


class Stopped(Exception):
    """A program that did not succeed, and what it said."""


def output_of(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Stopped(f"failed ({done.returncode}): {done.stderr.strip() or ' '.join(map(str, command))}")
    return done


def short_hash(content):
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def make_calibration(job, texts, arguments):
    """The path of the model's calibration, made where it is not there yet: one for each program and text."""
    made = quality_runs.CALIBRATION
    model, text = model_path(arguments.models, job.model), texts[made["text"]]
    asked = shortened(made["options"]) if arguments.quick else made["options"]
    name = short_hash([sha256_of(path) for path in (arguments.program, model, text)] + [asked])
    path = folder_of(arguments) / "calibrations" / f"{job.model}.{name}.gguf"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    options = [word for name, value in asked.items() for word in (f"--{name}", str(value))]
    output_of([arguments.program, "calibrate", "-m", model, "--text", text, *options, "--threads",
               str(arguments.threads), "-o", part])
    part.replace(path)
    return path


def measure(job, texts, arguments):
    """Runs it; what is to be told of it. Raises Stopped."""
    job.path.parent.mkdir(parents=True, exist_ok=True)
    model, text = model_path(arguments.models, job.model), texts[job.run.text]
    made_with = {"program": sha256_of(arguments.program), "model": sha256_of(model), "text": sha256_of(text)}
    # What is half done belongs to these options and this program alone.
    journal = job.path.with_suffix(f".{short_hash([job.run.arguments(), made_with, arguments.threads])}.journal")
    began = time.monotonic()
    words = job.run.arguments()
    if job.run.calibrated:
        calibration = make_calibration(job, texts, arguments)
        words = [calibration if word == quality_runs.CALIBRATION_FILE else word for word in words]
    done = output_of([arguments.program, *words, "-m", model, "--text", text, "--threads", str(arguments.threads),
                      "--resume", journal, "--json"])
    for line in done.stderr.splitlines():
        if "warning: " in line:
            fetch.say(f"{job.name}: {line}")
    report = json.loads(done.stdout)
    problem = incomplete(report, job.run)
    if problem:
        raise Stopped(f"failed: {problem}")
    job.keep(report, time.monotonic() - began, arguments.threads, made_with)
    journal.unlink()
    return f"{time.monotonic() - began:.0f} s"


def check_program(program):
    """Before anything is prepared: every run would fail."""
    try:
        version = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError as problem:
        raise fetch.Failure(f"cannot run {program}: {problem.strerror}; `make build` leaves the program at "
                            "build/innerkv") from None
    if not version.startswith("innerkv "):
        raise fetch.Failure(f"{program} is not innerkv; `make build` leaves it at build/innerkv")


def run(arguments):
    chosen = chosen_jobs(arguments)
    if folder_of(arguments).exists() and not folder_of(arguments).is_dir():
        raise fetch.Failure(f"{folder_of(arguments)} is not a folder")
    jobs = [job for job in chosen if not job.report()]
    fetch.say(f"quality: {len(jobs)} of {len(chosen)} runs to do")
    check_program(arguments.program)
    texts = prepare(jobs, arguments)
    waiting = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    progress, failures, stopping = Progress(jobs), [], threading.Event()

    def work():
        while not stopping.is_set():
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                outcome = measure(job, texts, arguments)
            except (Stopped, OSError, ValueError) as problem:  # no program, no room, no JSON
                outcome = str(problem) if isinstance(problem, Stopped) else f"failed: {problem}"
                failures.append(job.name)
            if not stopping.is_set():
                progress.end(job, outcome)

    workers = [threading.Thread(target=work) for _ in range(arguments.jobs)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:
        # Ctrl-C reaches the measurements too: they end after what they keep is written.
        stopping.set()
        for worker in workers:
            worker.join()
        raise
    if failures:
        raise fetch.Failure(f"{len(failures)} runs failed: {', '.join(sorted(failures))}")


def show_runs(arguments):
    for job in chosen_jobs(arguments):
        print(job.name, *job.run.arguments(), "--text", job.run.text)


def plot(reports, path):
    """docs/quality.svg: the first table; libllama's rows, changed presets and what rotation makes better are left out."""
    drawn = [cache for cache in quality_tables.ALL if cache not in quality_runs.UNROTATED]
    pictures = {}
    for name in quality_runs.MODELS:
        rows = reports.rows.get((name, "wiki-2k"), {})
        points = {cache: (row["bits_per_value_total"], row["kld_mean"])
                  for cache in drawn if "calibration" not in cache for row in rows.get(cache, [])[:1]
                  if row["kld_mean"] > 0}  # the axis is logarithmic
        if points:
            pictures[quality_tables.TITLES[name]] = points
    if not pictures:
        raise fetch.Failure("the results have nothing to draw; `run` the wiki-2k runs first")
    Path(path).write_text("\n".join(plot_quality.draw(pictures)) + "\n", encoding="utf-8")


def check_mixture(found):
    """Refuses reports that differ in what must be one: figures beside each other are then of one build, and no last
    bit differs for another reason than the cache."""
    kinds = {}  # what must be one -> its value -> names of runs
    for job, kept in found:
        made_with = kept["made_with"]
        for kind, value in ((f"model '{job.model}'", made_with["model"]),
                            (f"text '{job.run.text}'", made_with["text"]),
                            ("program", made_with["program"]), ("number of threads", str(kept["threads"])),
                            ("instruction set", kept["report"]["isa"])):
            kinds.setdefault(kind, {}).setdefault(value, []).append(job.name)
    for kind, values in kinds.items():
        if len(values) > 1:
            raise fetch.Failure(
                f"reports are not of one {kind}: "
                + "; ".join(f"{value[:12]} {' '.join(sorted(names))}" for value, names in values.items())
                + ". Remove those that are to be measured again")


def tables(arguments):
    """All tables of the documents, or those that show a run of --only: from all reports there are, the others
    stay as they are."""
    if arguments.quick:
        raise fetch.Failure("the figures of --quick are of shorter windows than the commands above the tables say; "
                            "`run` without --quick measures what `tables` shows")
    wanted = {(job.model, job.run.group) for job in chosen_jobs(arguments)}
    names = [name for name, table in quality_tables.TABLES.items()
             if any((column.model, group) in wanted for column in table.columns for group in column.groups)]
    shown = {(column.model, group) for name in names for column in quality_tables.TABLES[name].columns
             for group in column.groups}
    if arguments.plot:
        shown |= {(model, "wiki-2k") for model in quality_runs.MODELS}
    jobs = [job for job in all_jobs(arguments) if (job.model, job.run.group) in shown]
    found = [(job, kept) for job in jobs if (kept := job.report())]
    if not found:
        raise fetch.Failure(f"{arguments.results} has no report of `tools/quality.py run`")
    missing = {job.name for job in jobs} - {job.name for job, _ in found}
    if missing:
        fetch.say(f"quality: cells are empty where runs are missing: {', '.join(sorted(missing))}")
    check_mixture(found)
    reports = quality_tables.Reports([(job.model, job.run, kept["report"]) for job, kept in found])
    filled = {}
    for path in map(Path, arguments.document):
        try:
            filled[path] = quality_tables.fill(path.read_text(encoding="utf-8"), reports, names)
        except quality_tables.BadMarkers as problem:
            raise fetch.Failure(f"{path} {problem}") from None
    for path, text in filled.items():
        path.write_text(text, encoding="utf-8")
    if arguments.plot:
        plot(reports, arguments.plot)


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="run|tables|list")

    def add(name, action, what):
        command = commands.add_parser(name, help=what, description=what)
        command.set_defaults(action=action, results="", only=None)
        command.add_argument("--only", nargs="+", metavar="NAME",
                             help="runs as `list` names them; * stands for anything. Of tables, those that show one")
        command.add_argument("--quick", action="store_true",
                             help="one short window a run, to see that everything runs; not for tables")
        return command

    command = add("run", run, "Measure what is not there yet")
    command.add_argument("results", metavar="RESULTS", help="a folder")
    command.add_argument("--texts", required=True, metavar="FOLDER")
    command.add_argument("--models", default=fetch.cache_path() / "models", metavar="FOLDER",
                         help="default: that of tools/model.py")
    command.add_argument("--program", default=ROOT / "build/innerkv", metavar="FILE")
    command.add_argument("--jobs", type=positive, default=1, metavar="N", help="runs at a time")
    command.add_argument("--threads", type=positive, default=os.cpu_count(), metavar="N", help="of each")
    command = add("tables", tables, "Put the tables into documents")
    command.add_argument("results", metavar="RESULTS", help="the folder")
    command.add_argument("document", nargs="+", metavar="FILE.md")
    command.add_argument("--plot", metavar="FILE.svg", help="draw KLD against bits")
    add("list", show_runs, "Show the runs and their options")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    arguments.action(arguments)


if __name__ == "__main__":
    fetch.run_main(main)
