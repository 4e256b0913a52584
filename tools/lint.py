#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""clang-format, clang-tidy, shellcheck and pyflakes on the project's files; last line `N passed, N failed`.

    tools/lint.py BUILD_DIR       check; BUILD_DIR holds compile_commands.json
    tools/lint.py --fix-format    format the sources in place

A file that clang-tidy found clean is not looked at again until the file, a header it includes, its
command, .clang-tidy or clang-tidy itself changes: the cache directory remembers a hash of these.
"""

import concurrent.futures
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import fetch

ROOT = fetch.TOOLS.parent
SOURCES = (".h", ".cpp", ".cu", ".cuh")


def tracked_files():
    """Files of the project: tracked, or new and not ignored."""
    listing = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT)
    paths = (ROOT / name for name in listing.decode().split("\0") if name)
    return sorted(path for path in paths if path.is_file())


def sources():
    return [path for path in tracked_files() if path.suffix in SOURCES]


def python_scripts():
    return [path for path in tracked_files() if path.suffix == ".py"]


def shell_scripts():
    """Known by their first line."""
    found = []
    for path in tracked_files():
        with open(path, "rb") as file:
            if b"bash" in file.readline() and path.suffix in ("", ".sh"):
                found.append(path)
    return found


def run(command, **options):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors="replace", cwd=ROOT, check=False, **options)


def check_format(path):
    result = run(["clang-format", "--dry-run", "--Werror", path])
    return result.returncode == 0, result.stdout


def check_shell(path):
    result = run(["shellcheck", path])
    return result.returncode == 0, result.stdout


def check_python(path):
    """Syntax, names that are not there, imports that nobody uses."""
    result = run(["pyflakes3", path])
    return result.returncode == 0, result.stdout


class Tidy:
    """clang-tidy on entries of compile_commands.json."""

    def __init__(self, build_dir):
        self.build_dir = build_dir
        self.memory = fetch.cache_dir() / "clang-tidy"
        self.memory.mkdir(exist_ok=True)
        configuration = (ROOT / ".clang-tidy").read_bytes()
        version = subprocess.check_output(["clang-tidy", "--version"])
        self.base = hashlib.sha256(configuration + version).digest()

    def entries(self):
        """Our own translation units, each once. Not tests': GoogleTest's headers and macros take a third of the whole
        time, and what is wrong in a test shows when it runs, under sanitizers too."""
        with open(self.build_dir / "compile_commands.json", encoding="utf-8") as file:
            entries = {Path(entry["file"]): entry for entry in json.load(file)}
        ours = {path for path in sources() if path.relative_to(ROOT).parts[0] != "tests"}
        return [entries[path] for path in sorted(entries) if path in ours]

    def options(self, entry):
        options = ["--extra-arg=-Wno-unknown-warning-option", entry["file"]]
        if Path(entry["file"]).relative_to(ROOT).parts[0] in ("bench", "cli"):
            # The analyzer spends most of the time there, in other libraries' templates.
            options.append("--checks=-clang-analyzer-*")
        return options

    def key(self, entry):
        """A hash of all that the outcome depends on; None if it does not preprocess."""
        words = shlex.split(entry["command"])
        words = words[1:] if Path(words[0]).name == "ccache" else words
        words = words[:words.index("-o")] + words[words.index("-o") + 2:]
        listing = subprocess.run([*words, "-MM", "-MT", "x"], cwd=entry["directory"], text=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
        if listing.returncode:
            return None
        digest = hashlib.sha256(self.base)
        digest.update("\0".join([*words, *self.options(entry)]).replace(str(ROOT), "").encode())
        for name in listing.stdout.replace("\\\n", " ").split()[1:]:
            digest.update((Path(entry["directory"]) / name).read_bytes())
        return digest.hexdigest()

    def check(self, entry):
        key = self.key(entry)
        if key and (self.memory / key).exists():
            return True, ""
        result = run(["clang-tidy", "--quiet", "-p", self.build_dir, *self.options(entry)])
        clean = result.returncode == 0
        if clean and key:
            (self.memory / key).touch()
        return clean, re.sub(r"^\d+ warnings generated\.\n", "", result.stdout)


def run_checks(checks):
    """Runs (name, function, argument) in parallel; returns how many passed and failed."""
    counts = {True: 0, False: 0}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        pending = {pool.submit(function, argument): name for name, function, argument in checks}
        for done in concurrent.futures.as_completed(pending):
            passed, output = done.result()
            counts[passed] += 1
            if not passed:
                print(f"failed: {pending[done]}\n{output}", flush=True)
    return counts[True], counts[False]


def main():
    if sys.argv[1:] == ["--fix-format"]:
        return subprocess.run(["clang-format", "-i", *sources()], check=False).returncode
    if len(sys.argv) != 2:
        raise fetch.Failure("usage: tools/lint.py BUILD_DIR | --fix-format")
    tidy = Tidy(Path(sys.argv[1]).resolve())
    checks = [(f"format {path.relative_to(ROOT)}", check_format, path) for path in sources()]
    checks += [(f"shellcheck {path.relative_to(ROOT)}", check_shell, path)
               for path in shell_scripts()]
    checks += [(f"pyflakes {path.relative_to(ROOT)}", check_python, path)
               for path in python_scripts()]
    checks += [(f"clang-tidy {entry['file']}", tidy.check, entry) for entry in tidy.entries()]
    passed, failed = run_checks(checks)
    print(f"{passed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    fetch.run_main(main)
