#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the tests of a build directory with ctest; its last line is `N passed, N failed`.

    tools/run_tests.py BUILD_DIR [ctest option...]

A test `pytest.GROUP` is a run of pytest: the tests in its report, BUILD_DIR/pytest/GROUP.xml, count
instead. Fails if a test failed, could not be run, or if there was none.
"""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def outcome(case):
    """passed, skipped or failed. A test that did not run is skipped only if it asked for that."""
    status = case.get("status")
    if status == "run":
        return "passed"
    skip = case.find("skipped")
    asked = skip is not None and skip.get("message", "").startswith("SKIP_")
    return "skipped" if asked or status == "disabled" else "failed"


def unfold(case, build_dir):
    """(name, outcome) of a ctest test; of each test in it where it is a run of pytest."""
    # Without GoogleTest's print of a parameter.
    name, result = case.get("name").split("  #")[0], outcome(case)
    report = Path(build_dir) / "pytest" / f"{name.removeprefix('pytest.')}.xml"
    if not name.startswith("pytest.") or result == "skipped" or not report.exists():
        return [(name, result)]
    inner = []
    for test in ElementTree.parse(report).getroot().iter("testcase"):
        kind = ("failed" if test.find("failure") is not None or test.find("error") is not None
                else "skipped" if test.find("skipped") is not None else "passed")
        inner.append((f"{name}.{test.get('classname', '')}.{test.get('name')}", kind))
    # A run that fails without a failed test still fails.
    if result == "failed" and all(kind != "failed" for _, kind in inner):
        inner.append((name, "failed"))
    return inner


def main():
    if len(sys.argv) < 2:
        sys.exit("usage: tools/run_tests.py BUILD_DIR [ctest option...]")
    build_dir, options = sys.argv[1], sys.argv[2:]
    for report in (Path(build_dir) / "pytest").glob("*.xml"):
        report.unlink()
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        ctest = subprocess.run(
            ["ctest", "--test-dir", build_dir, "--output-on-failure", "--output-junit", report,
             "--parallel", str(os.cpu_count()), "--progress", *options], check=False)
        cases = ElementTree.parse(report).getroot().findall("testcase") if report.exists() else []
    names = {"passed": [], "skipped": [], "failed": []}
    for case in cases:
        for name, kind in unfold(case, build_dir):
            names[kind].append(name)
    for kind in ("skipped", "failed"):
        for name in sorted(names[kind]):
            print(f"{kind}: {name}")
    failed = len(names["failed"])
    if ctest.returncode and not failed:
        print(f"failed: ctest itself, exit code {ctest.returncode}")
        failed = 1
    if not cases:
        print("failed: there was no test to run")
        failed = max(failed, 1)
    print(f"{len(names['passed'])} passed, {failed} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
