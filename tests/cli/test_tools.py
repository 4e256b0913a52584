# SPDX-License-Identifier: Apache-2.0
"""The download scripts' cache: where it is, what is refused, damage found. Nothing is downloaded."""

import contextlib
import hashlib
import io
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from program import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import fetch
import model

CONTENTS = b"weights"
SMALL = model.MODELS["smollm2"]._replace(size=len(CONTENTS),
                                         sha256=hashlib.sha256(CONTENTS).hexdigest())


def variables(**changes):
    """The environment without what places the cache, but for `changes`."""
    names = ("HOME", "XDG_CACHE_HOME", "INNERKV_CACHE_DIR", "CCACHE_DIR")
    return {name: value for name, value in os.environ.items() if name not in names} | changes


class CacheDirectoryTest(unittest.TestCase):
    def test_tools_and_makefile_agree(self):
        home = Path(pwd.getpwuid(os.getuid()).pw_dir)
        for changes, expected in (({}, home / ".cache/innerkv"), ({"HOME": ""}, home / ".cache/innerkv"),
                                  ({"HOME": "/h"}, Path("/h/.cache/innerkv")),
                                  ({"HOME": "/h", "XDG_CACHE_HOME": "/x"}, Path("/x/innerkv")),
                                  ({"HOME": "/h", "INNERKV_CACHE_DIR": ""}, Path("/h/.cache/innerkv")),
                                  ({"HOME": "/h", "INNERKV_CACHE_DIR": "/i"}, Path("/i"))):
            with self.subTest(changes=changes):
                with mock.patch.dict(os.environ, variables(**changes), clear=True):
                    self.assertEqual(fetch.cache_path(), expected)
                shown = subprocess.run(["make", "-s", "-f", ROOT / "Makefile", "-f", "-", "shown"],
                                       input="shown: ; @echo $$INNERKV_CACHE_DIR\n", text=True,
                                       env=variables(**changes), capture_output=True, check=True)
                self.assertEqual(shown.stdout.strip(), str(expected))

    def test_unwritable_cache_is_one_line(self):
        for script in ("model.py", "third_party.py", "python_environment.py"):
            for changes in ({"HOME": "/proc"}, {"INNERKV_CACHE_DIR": "/proc/x"},
                            {"INNERKV_CACHE_DIR": "/dev/null"}):
                result = subprocess.run([sys.executable, "-B", ROOT / "tools" / script],
                                        env=variables(**changes), capture_output=True, text=True,
                                        timeout=60, check=False)
                self.assertEqual((result.returncode, result.stdout), (1, ""), result.stderr)
                self.assertRegex(result.stderr, r"^error: .*INNERKV_CACHE_DIR.*\n$")


    def test_make_without_a_cache_says_so_in_one_line(self):
        result = subprocess.run(["make", "-s", "configure"], cwd=ROOT, env=variables(HOME="/proc"),
                                capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual((result.returncode, result.stdout), (2, ""), result.stderr)
        self.assertRegex(result.stderr, r"^error: .*INNERKV_CACHE_DIR.*\nmake(\[\d+\])?: \*\*\* .*\n$")


class SetupTest(unittest.TestCase):
    def test_everything_is_missing(self):
        result = subprocess.run([shutil.which("bash"), ROOT / "tools" / "setup", "build", "lint"],
                                env={"PATH": "/no-such-folder"}, capture_output=True, text=True,
                                timeout=60, check=False)
        self.assertEqual((result.returncode, result.stdout), (1, ""), result.stderr)
        missing, install = result.stderr.splitlines()
        packages = missing.removeprefix("missing: ").split()
        self.assertLessEqual({"cmake", "g++", "libcli11-dev", "git"}, set(packages))
        self.assertEqual(len(packages), len(set(packages)))
        self.assertEqual(install, "install with: sudo apt-get install -y " + " ".join(packages))

    def test_a_question_is_taken_as_it_is(self):
        question = 'What does "$HOME" cost, $(shell exit) or $$5?'
        for arguments, changes in (((f"QUESTION={question}",), {}), ((), {"QUESTION": question})):
            shown = subprocess.run(["make", "-s", "-f", ROOT / "Makefile", "-f", "-", "shown",
                                    *arguments], text=True, capture_output=True, check=True,
                                   input="shown: ; @printenv QUESTION\n",
                                   env=dict(os.environ, **changes))
            self.assertEqual(shown.stdout, question + "\n")


class ModelTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.place = Path(scratch.name) / "models" / SMALL.file
        self.place.parent.mkdir()
        self.downloads = 0
        for patch in (mock.patch.dict(os.environ, INNERKV_CACHE_DIR=scratch.name),
                      mock.patch.dict(model.MODELS, smollm2=SMALL),
                      mock.patch.object(sys, "argv", ["model.py"]),
                      mock.patch.object(model, "fetch_model", self.download)):
            patch.start()
            self.addCleanup(patch.stop)

    def download(self, _, wanted, place):
        self.downloads += 1
        place.write_bytes(CONTENTS)
        model.stamp(wanted, place)

    def messages(self):
        """Of one call, whose model is in place afterwards."""
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()) as shown:
            model.main()
        self.assertEqual(shown.getvalue(), f"{self.place}\n")
        self.assertEqual(self.place.read_bytes(), CONTENTS)
        return errors.getvalue()

    def test_a_file_without_a_stamp_is_verified(self):
        self.place.write_bytes(CONTENTS)
        self.assertEqual((self.messages(), self.downloads), ("", 0))
        with mock.patch.object(fetch, "sha256_of", side_effect=AssertionError):
            self.messages()

    def test_a_damaged_file_is_fetched_again(self):
        self.messages()
        self.assertEqual(self.downloads, 1)
        self.place.write_bytes(CONTENTS[::-1])
        self.assertRegex(self.messages(), r"^model: .* is damaged, .*; downloading it again\n$")
        self.assertEqual((self.messages(), self.downloads), ("", 2))

    def test_a_touched_file_is_verified_again(self):
        self.messages()
        os.utime(self.place, ns=(1, 1))
        self.assertEqual((self.messages(), self.downloads), ("", 1))


if __name__ == "__main__":
    unittest.main()
