# SPDX-License-Identifier: Apache-2.0
"""What the download scripts share: the cache directory, a lock, pip in a private environment.

Everything lands under ${INNERKV_CACHE_DIR:-${XDG_CACHE_HOME:-~/.cache}/innerkv} and is put in place
by renaming a finished directory or file, so whatever is there is complete.
"""

import contextlib
import fcntl
import hashlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CACHE_HINT = "set INNERKV_CACHE_DIR to a directory that can be written"
TOOLS = Path(__file__).resolve().parent


class Failure(Exception):
    """A failure to be shown as one line, without a traceback."""


def run_main(main):
    """Call main(), turning failures into one line on stderr and exit code 1."""
    try:
        sys.exit(main())
    except Failure as failure:
        sys.exit(f"error: {failure}")
    except OSError as failure:
        place = failure.filename or cache_path()
        hint = f"; {CACHE_HINT}" if str(place).startswith(str(cache_path())) else ""
        sys.exit(f"error: {place}: {failure.strerror or failure}{hint}")
    except subprocess.CalledProcessError as failure:
        command = " ".join(str(word) for word in failure.cmd[:4])
        sys.exit(f"error: '{command} ...' ended with exit code {failure.returncode}")
    except KeyboardInterrupt:
        sys.exit(130)


def say(text):
    """Progress goes to stderr: stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def cache_path():
    """Where the cache directory is, or would be. Without HOME the account's home directory counts."""
    base = os.environ.get("INNERKV_CACHE_DIR")
    if base:
        return Path(base).expanduser().absolute()
    cache_home = os.environ.get("XDG_CACHE_HOME")
    if cache_home:
        return Path(cache_home).absolute() / "innerkv"
    home = os.environ.get("HOME")
    try:
        home = home or pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        raise Failure(f"there is no home directory for the cache; {CACHE_HINT}") from None
    return Path(home).absolute() / ".cache" / "innerkv"


def cache_dir():
    """The cache directory for who writes into it, created if need be."""
    path = cache_path()
    problem = "no permission to write"
    try:
        path.mkdir(parents=True, exist_ok=True)
        if os.access(path, os.W_OK | os.X_OK):
            return path
    except OSError as failure:
        problem = failure.strerror
    raise Failure(f"cannot write to the cache {path}: {problem}; {CACHE_HINT}")


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(name):
    """One process at a time makes `name`; others wait here and then find it made."""
    with open(cache_dir() / f".{name}.lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{name}: another process is making it, waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def scratch_dir(name):
    """A directory in the cache, on the same file system as the final place, removed at the end.

    For a holder of a lock: what a killed process left under the same name is removed too.
    """
    for left in cache_dir().glob(f".{name}-scratch-*"):
        shutil.rmtree(left, ignore_errors=True)
    path = Path(tempfile.mkdtemp(prefix=f".{name}-scratch-", dir=cache_dir()))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def python_environment(requirements=TOOLS / "requirements.txt", more="", finish=None):
    """A virtual environment with a requirements file installed; returns its interpreter.

    Its own environment, because a distribution's Python may refuse installs (PEP 668). None: pip alone,
    which a distribution's Python may lack. `finish(python)` then installs what `more` names.
    """
    wanted = (requirements.read_bytes() if requirements else b"") + more.encode()
    key = hashlib.sha256(wanted + sys.version.encode()).hexdigest()[:12]
    place = cache_path() / f"python-{key}"
    python = place / "bin" / "python"
    if (place / "complete").exists() and python.exists():
        return python
    with locked("python"):
        if (place / "complete").exists() and python.exists():
            return python
        say("python: making an environment for the tools")
        shutil.rmtree(place, ignore_errors=True)
        # Scripts in a virtual environment hold its path, so it is made in place and then marked.
        subprocess.run([sys.executable, "-m", "venv", place], check=True, stdout=sys.stderr)
        if requirements:
            pip(python, "install", "--quiet", "--requirement", requirements)
        if finish:
            finish(python)
        (place / "complete").touch()
    return python


def pip(python, command, *arguments):
    environment = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1")
    subprocess.run([python, "-m", "pip", command, *arguments], check=True, stdout=sys.stderr,
                   env=environment)


def pip_download(requirements, into, kind):
    """Downloads `requirements`, {"name==version": sha256}, into a directory.

    `kind` is "binary" or "source". pip verifies the hashes before it unpacks anything, and shows
    its progress bar on stderr.
    """
    listing = into / "requirements.txt"
    listing.write_text("".join(f"{requirement} --hash=sha256:{sha256}\n"
                               for requirement, sha256 in requirements.items()), encoding="utf-8")
    # A source distribution's build tools may be binary.
    names = ",".join(requirement.split("==")[0] for requirement in requirements)
    only = ["--only-binary", ":all:"] if kind == "binary" else ["--no-binary", names]
    pip(python_environment(None), "download", "--require-hashes", "--no-deps", "--no-cache-dir", *only,
        "--dest", into, "--requirement", listing)
    listing.unlink()
