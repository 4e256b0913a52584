#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Builds the Python package as its users do: a source distribution, a wheel from nothing but that, and an
environment of its own that imports it.

    tools/wheel.py DIRECTORY
"""

import shutil
import subprocess
import sys
from pathlib import Path

import fetch

SMOKE = """
import numpy, innerkv
cache = innerkv.Cache(1, 2, 64)
rows = numpy.ones((40, 2, 64), numpy.float32)
cache.append(0, cache.create(), rows, rows, rows)
assert numpy.allclose(cache.attend(0, 0, rows), 1)
print(innerkv.__version__, "runs on", ", ".join(innerkv.available_isas()))
"""


def only(folder, pattern):
    """The file of that name; there is one."""
    [path] = folder.glob(pattern)
    return path


def main():
    if len(sys.argv) != 2:
        raise fetch.Failure("usage: tools/wheel.py DIRECTORY")
    target = Path(sys.argv[1])
    with fetch.locked("wheel"), fetch.scratch_dir("wheel") as scratch:
        subprocess.run([sys.executable, "-m", "venv", scratch / "env"], check=True)
        python = scratch / "env" / "bin" / "python"
        fetch.pip(python, "install", "--quiet", "build")
        subprocess.run([python, "-m", "build", "--sdist", "--outdir", scratch, fetch.TOOLS.parent],
                       check=True, stdout=sys.stderr)
        fetch.pip(python, "wheel", "--no-deps", "--wheel-dir", scratch, only(scratch, "*.tar.gz"))
        fetch.pip(python, "install", "--quiet", only(scratch, "*.whl"))
        subprocess.run([python, "-c", SMOKE], check=True, cwd=scratch, stdout=sys.stderr)
        target.mkdir(exist_ok=True)
        for pattern in ("*.tar.gz", "*.whl"):
            print(shutil.copy2(only(scratch, pattern), target))
    return 0


if __name__ == "__main__":
    fetch.run_main(main)
