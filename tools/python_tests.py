#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs pytest on the Python package, in an environment that is made on first use.

    tools/python_tests.py --package DIR [--report FILE] [pytest argument...]
    tools/python_tests.py --prepare         make the environment, print its interpreter

DIR holds the folder `innerkv` with the module that was built. INNERKV_TEST_PYTHON may name an interpreter
that has all of tools/python_tests.txt and torch.

PyPI's torch for Linux is the one for CUDA and wants 2 GB of NVIDIA's libraries. On a CPU only two small ones
are called; in place of the others, which need only be there when torch is loaded, the environment gets empty
libraries of their names, and an interpreter that resolves functions when they are called. So torch's CUDA side
does not work there.
"""

import argparse
import os
import re
import subprocess
from pathlib import Path

import fetch

REQUIREMENTS = fetch.TOOLS / "python_tests.txt"
TORCH = ("torch==2.14.1", "accelerate==1.15.0", "nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cupti==13.0.85",
         "hqq==0.2.8.post1", "optimum-quanto==0.2.7")
LAZY_BINDING = "import os, sys; sys.setdlopenflags(os.RTLD_LAZY)\n"


def needed_by(library):
    """Names of the libraries that one is linked to."""
    listing = subprocess.check_output(["readelf", "-d", library], text=True)
    return re.findall(r"\(NEEDED\).*\[(.+)\]", listing)


def install_torch(python):
    fetch.pip(python, "install", "--quiet", "--no-deps", *TORCH)
    site = Path(subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['platlib'])"],
        text=True).strip())
    wanted = {name for library in (site / "torch" / "lib").glob("*.so*")
              for name in needed_by(library)}
    place = site / "nvidia" / "cu13" / "lib"  # torch looks for libraries there
    # Those of NVIDIA alone have a version as their last part; the system's and torch's own are found.
    for name in sorted(wanted):
        if re.match(r"lib(cu|nccl|nv)", name) and not any(site.rglob(name)):
            subprocess.run(["cc", "-shared", "-nostdlib", f"-Wl,-soname,{name}", "-o", place / name,
                            "-x", "c", os.devnull], check=True)
    (site / "lazy_binding.pth").write_text(LAZY_BINDING, encoding="utf-8")


def environment():
    given = os.environ.get("INNERKV_TEST_PYTHON")
    return given or fetch.python_environment(REQUIREMENTS, more="".join(TORCH),
                                             finish=install_torch)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--package", type=Path)
    parser.add_argument("--report", type=Path)
    options, rest = parser.parse_known_args()
    python = environment()
    if options.prepare:
        print(python)
        return 0
    if options.package is None:
        parser.error("--package DIR is missing")
    command = [str(python), "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", *rest]
    if options.report:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.unlink(missing_ok=True)
        command.append(f"--junit-xml={options.report}")
    variables = dict(os.environ, PYTHONPATH=str(options.package.absolute()), HF_HUB_OFFLINE="1",
                     TOKENIZERS_PARALLELISM="false")
    os.chdir(fetch.TOOLS.parent)
    os.execve(command[0], command, variables)


if __name__ == "__main__":
    fetch.run_main(main)
