#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Builds ggml and libllama once and caches them; prints the directory that holds the result.

The source is vendor/llama.cpp of the llama-cpp-python source distribution. The result:

    include/   llama.h, ggml*.h, gguf.h
    lib/       libllama, libggml, libggml-base and one libggml-cpu-*.so per instruction set
    gguf-py/   the Python package that writes GGUF files, for tests
    licenses/

The cached directory's name is a hash of the source, the flags, the compiler and this script.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile

import fetch

NAME, VERSION = "llama-cpp-python", "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"

# Never a variant with AMX: ggml's AMX matrix product crashes when built with GCC 12.
VARIANTS = {
    "x86_64": ["x64", "haswell", "cascadelake", "zen4"],
    "aarch64": ["armv8.0_1", "armv8.2_2"],
}


def compilers():
    """Not the compilers of the build that asks: one result serves all of them."""
    cc = os.environ.get("INNERKV_THIRD_PARTY_CC", "cc")
    return cc, os.environ.get("INNERKV_THIRD_PARTY_CXX", "c++")


def variants():
    machine = platform.machine()
    if machine not in VARIANTS:
        known = ", ".join(VARIANTS)
        raise fetch.Failure(f"no list of ggml CPU variants for {machine}; known: {known}")
    return VARIANTS[machine]


def cache_key():
    digest = hashlib.sha256()
    for path in (__file__, fetch.TOOLS / "third_party" / "CMakeLists.txt"):
        with open(path, "rb") as file:
            digest.update(file.read())
    for compiler in compilers():
        if not shutil.which(compiler):
            raise fetch.Failure(f"no compiler '{compiler}'; run tools/setup")
        digest.update(subprocess.check_output([compiler, "--version"]))
    digest.update(platform.machine().encode())
    return digest.hexdigest()[:16]


def source_archive():
    """The source distribution, downloaded once and verified by pip."""
    place = fetch.cache_dir() / "downloads" / f"{NAME}-{VERSION}.tar.gz"
    if place.exists() and fetch.sha256_of(place) == SHA256:
        return place
    with fetch.scratch_dir("download") as scratch:
        fetch.say(f"third party: downloading {NAME} {VERSION} (77 MB)")
        fetch.pip_download({f"{NAME}=={VERSION}": SHA256}, scratch, "source")
        (archive,) = scratch.glob("*.tar.gz")
        place.parent.mkdir(exist_ok=True)
        archive.replace(place)
    return place


def unpack(archive, into):
    """Unpacks vendor/llama.cpp, without the folders that no target of ours reads."""
    wanted = re.compile(r"[^/]+/vendor/llama\.cpp/"
                        r"(CMakeLists\.txt|LICENSE|"
                        r"(cmake|ggml|include|src|licenses|vendor|gguf-py)/)")
    other_backends = re.compile(r".*/ggml/src/ggml-(?!cpu/)[a-z]+/")
    with tarfile.open(archive) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        for member in tar:
            if wanted.match(member.name) and not other_backends.match(member.name):
                tar.extract(member, into)
    (source,) = into.glob("*/vendor/llama.cpp")
    return source


def replace_once(path, old, new):
    text = path.read_text(encoding="utf-8")
    if text.count(old) != 1:
        raise fetch.Failure(f"{path} has changed: expected one '{old}'")
    path.write_text(text.replace(old, new), encoding="utf-8")


def drop_unused_variants(source):
    """libggml would pull in every variant of the CPU backend; build() names those we want."""
    replace_once(source / "ggml" / "src" / "CMakeLists.txt",
                 "add_dependencies(ggml ${backend})", "")


def yield_in_barrier(source):
    """ggml's threads wait for each other at every node of a graph and never let go of their core: on a
    shared machine that of the thread they wait for, until its time slice ends. After some
    microseconds they yield it."""
    condition = "atomic_load_explicit(&tp->n_barrier_passed, memory_order_relaxed) == n_passed"
    replace_once(source / "ggml" / "src" / "ggml-cpu" / "ggml-cpu.c",
                 f"""    while ({condition}) {{
        ggml_thread_cpu_relax();
    }}""",
                 f"""    for (int spins = 0; {condition};) {{
        if (spins++ < 1000) ggml_thread_cpu_relax();
        else sched_yield(), spins = 1000;
    }}""")


def build(source, scratch):
    cc, cxx = compilers()
    build_dir = scratch / "build"
    log_path = scratch / "log"
    with open(log_path, "w+", encoding="utf-8", errors="replace") as log:
        configure = ["cmake", "-S", fetch.TOOLS / "third_party", "-B", build_dir, "-G", "Ninja",
                     "-DCMAKE_BUILD_TYPE=Release", f"-DINNERKV_LLAMA_SOURCE={source}",
                     "-DCMAKE_C_FLAGS_RELEASE=-O3 -DNDEBUG",
                     "-DCMAKE_CXX_FLAGS_RELEASE=-O3 -DNDEBUG",
                     f"-DCMAKE_C_COMPILER={cc}", f"-DCMAKE_CXX_COMPILER={cxx}"]
        targets = ["llama"] + [f"ggml-cpu-{variant}" for variant in variants()]
        compile_ = ["cmake", "--build", build_dir, "--target", *targets]
        if subprocess.run(configure, stdout=log, stderr=log).returncode or not show_build(
                compile_, log):
            log.seek(0)
            fetch.say("".join(log.readlines()[-40:]))
            raise fetch.Failure("building ggml and libllama failed, see above")
    return build_dir


def show_build(command, log):
    """Runs a build, its output into the log and its progress on stderr."""
    shown = -1
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace") as process:
        for line in process.stdout:
            log.write(line)
            if match := re.match(r"\[(\d+)/(\d+)\]", line):
                percent = 100 * int(match[1]) // int(match[2])
                if sys.stderr.isatty():
                    print(f"\rthird party: building {percent}%", end="", file=sys.stderr)
                elif percent // 10 > shown // 10:
                    fetch.say(f"third party: building {percent}%")
                shown = percent
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return process.returncode == 0


def collect(source, build_dir, result):
    (result / "include").mkdir(parents=True)
    headers = [source / "include" / "llama.h", *sorted((source / "ggml" / "include").glob("*.h"))]
    for header in headers:
        shutil.copy2(header, result / "include")
    (result / "lib").mkdir()
    for library in sorted((build_dir / "bin").glob("lib*.so*")):
        shutil.copy2(library, result / "lib", follow_symlinks=False)
    shutil.copytree(source / "gguf-py" / "gguf", result / "gguf-py" / "gguf")
    (result / "licenses").mkdir()
    shutil.copy2(source / "LICENSE", result / "licenses" / "llama.cpp")


def make(place):
    with fetch.scratch_dir("third-party") as scratch:
        source = unpack(source_archive(), scratch / "source")
        drop_unused_variants(source)
        yield_in_barrier(source)
        collect(source, build(source, scratch), scratch / "result")
        (scratch / "result").rename(place)


def main():
    place = fetch.cache_path() / f"third-party-{cache_key()}"
    if not place.is_dir():
        with fetch.locked("third-party"):
            if not place.is_dir():
                make(place)
    print(place)


if __name__ == "__main__":
    fetch.run_main(main)
