#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Builds the Python package as its users do: a source distribution, a wheel from nothing but that, and an import of
what is in the wheel. What it is built with is pinned in tools/wheel.txt and fetched once.

    tools/wheel.py [DIRECTORY]      leaves both there

From Python 3.12 on the wheel is one for all later versions too (abi3).
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import fetch

REQUIREMENTS = fetch.TOOLS / "wheel.txt"
SMOKE = """
import sys
import numpy, innerkv
cache = innerkv.Cache(1, 2, 64)
rows = numpy.ones((40, 2, 64), numpy.float32)
cache.append(0, cache.create(), rows, rows, rows)
assert numpy.allclose(cache.attend(0, 0, rows), 1)
x = numpy.linspace(-1, 1, 64, dtype=numpy.float32)
assert numpy.abs(innerkv.dequantize(innerkv.quantize(x, 4)) - x).max() < 0.05
assert "torch" not in sys.modules
print(innerkv.__version__, "runs on", ", ".join(innerkv.available_isas()))
"""


def only(folder, pattern):
    """The file of that name; there is one."""
    [path] = folder.glob(pattern)
    return path


def check_contents(wheel):
    """Failure unless it has the module, for the interpreters that it should be for, its types and the package."""
    abi3 = sys.version_info >= (3, 12)
    tag = "cp312-abi3" if abi3 else "cp3{0}-cp3{0}".format(sys.version_info.minor)
    if not re.fullmatch(rf"innerkv-[\d.]+-{tag}-\w*linux\w*\.whl", wheel.name):
        raise fetch.Failure(f"the wheel is called {wheel.name}; its tag should be {tag}")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    module = [name for name in names if re.fullmatch(r"innerkv/_core\.(abi3|cpython-\S+)\.so", name)]
    sources = (fetch.TOOLS.parent / "python").glob("innerkv/**/*.py")
    wanted = {str(path.relative_to(fetch.TOOLS.parent / "python")) for path in sources}
    missing = (wanted | {"innerkv/_core.pyi", "innerkv/py.typed"}) - names
    if missing or len(module) != 1:
        raise fetch.Failure(f"{wheel.name} has the modules {module}; missing are {sorted(missing)}")


def build(scratch):
    """Source distribution and wheel, in `scratch`; the wheel is tried in an environment that has numpy alone beside it."""
    python = fetch.python_environment(REQUIREMENTS)
    # What is unpacked and compiled in a place of another name each time is found again by ccache.
    os.environ.update(TMPDIR=str(scratch), CCACHE_BASEDIR=str(scratch))
    subprocess.run([python, "-m", "build", "--no-isolation", "--sdist", "--outdir", scratch, fetch.TOOLS.parent],
                   check=True, stdout=sys.stderr)
    fetch.pip(python, "wheel", "--no-cache-dir", "--no-deps", "--no-build-isolation", "--wheel-dir", scratch,
              only(scratch, "*.tar.gz"))
    wheel = only(scratch, "*.whl")
    check_contents(wheel)
    site = scratch / "site"
    fetch.pip(python, "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel)
    subprocess.run([python, "-c", SMOKE], check=True, cwd=scratch, stdout=sys.stderr,
                   env=dict(os.environ, PYTHONPATH=str(site)))
    return only(scratch, "*.tar.gz"), wheel


def main():
    if len(sys.argv) > 2:
        raise fetch.Failure("usage: tools/wheel.py [DIRECTORY]")
    with fetch.locked("wheel"), fetch.scratch_dir("wheel") as scratch:
        for path in build(scratch):
            if len(sys.argv) == 2:
                target = Path(sys.argv[1])
                target.mkdir(exist_ok=True)
                print(shutil.copy2(path, target))
    return 0


if __name__ == "__main__":
    fetch.run_main(main)
