"""Run the tests that are marked `gpu`, in a pytest process."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from gpu.bench import Bench
from gpu.lines import Line
from gpu.links import ROOT

_TEST_TIMEOUT_S = 60
_MAX_NAMED = 10  # failed or skipped tests that get a line of their own
_FIRST = "test_trainer.py"  # host syncs within a step, and bit-exact resume
_OUTCOME = re.compile(r"^(\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED)", re.MULTILINE)


def model_tests(bench: Bench) -> Iterator[Line]:
    yield from _run(bench, "model", needs_dali=False)


def dali_tests(bench: Bench) -> Iterator[Line]:
    yield from _run(bench, "dali", needs_dali=True)


def _files(bench: Bench, needs_dali: bool) -> list[str]:
    """Find the files with GPU tests by their text: letting pytest collect all tests would take longer."""
    files = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "tests").rglob("test_*.py"))]
    texts = {file: (ROOT / file).read_text() for file in bench.scale.test_files or files}
    found = [file for file, text in texts.items() if "mark.gpu" in text and ("dali-gpu" in text) == needs_dali]
    return sorted(found, key=lambda file: (Path(file).name != _FIRST, file))


def _run(bench: Bench, half: str, needs_dali: bool) -> Iterator[Line]:
    if importlib.util.find_spec("pytest") is None:
        yield Line("GPU tests", "not run: pytest is not installed")
        return
    timeouts = ["-o", f"faulthandler_timeout={_TEST_TIMEOUT_S}"]
    if importlib.util.find_spec("pytest_timeout"):
        timeouts = ["--timeout", str(_TEST_TIMEOUT_S)]
    else:
        yield Line("GPU tests: timeout of each", "none: pytest-timeout is not installed")
    junit, log = (bench.artifacts / f"gpu_check-{half}-tests.{ending}" for ending in ("xml", "log"))
    junit.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider", *timeouts]
    command += ["--continue-on-collection-errors", f"--junitxml={junit}", *_files(bench, needs_dali)]
    ended = ""
    with open(log, "w") as output:
        try:
            left = bench.deadline - time.monotonic() - 4  # leaves time to report the tests that ran
            code = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, timeout=left).returncode
        except subprocess.TimeoutExpired:
            code, ended = 1, f"timed out after {left:.0f} s; the counts are of the tests before"
    outcomes = outcomes_in_junit(junit) if junit.exists() else outcomes_in_log(log)
    yield from _lines(bench, outcomes, code, ended, log)


def _lines(bench: Bench, outcomes: list[tuple[str, str, str]], code: int, ended: str, log: Path) -> Iterator[Line]:
    kinds: dict[str, list[tuple[str, str]]] = {"passed": [], "failed": [], "skipped": []}
    for name, kind, reason in outcomes:
        kinds[kind].append((name, reason))
    if ended:
        yield Line("GPU tests", f"failed: {ended}", met=False, must=True)
    elif code and not kinds["failed"]:
        last = " | ".join(log.read_text().strip().splitlines()[-2:])
        yield Line("GPU tests", f"failed: pytest exited with code {code}: {last[-300:]}", met=False, must=True)
    passed, failed, skipped = (len(names) for names in kinds.values())
    judged = not bench.rehearsal  # on the CPU all of them skip
    yield Line("GPU tests: passed", passed, "", "> 0" if judged else "", passed > 0 if judged else None, must=True)
    yield Line("GPU tests: failed", failed, "", "0", failed == 0, must=True)
    yield Line("GPU tests: skipped", skipped, "", "0" if judged else "", skipped == 0 if judged else None)
    for kind in ("failed", "skipped"):
        if kind == "failed" or not bench.rehearsal:
            for name, reason in kinds[kind][:_MAX_NAMED]:
                yield Line(f"GPU test {kind}: {name}", " ".join(reason.split())[:300])


def outcomes_in_junit(path: Path) -> list[tuple[str, str, str]]:
    """Read (test, passed | failed | skipped, reason) of each test from pytest's JUnit file."""
    found = []
    for case in ElementTree.parse(path).iter("testcase"):
        kind, reason = "passed", ""
        for child in case:
            if child.tag in ("failure", "error"):
                kind, reason = "failed", child.get("message") or child.text or ""
            elif child.tag == "skipped":
                kind, reason = "skipped", child.get("message") or ""
        found.append((f"{case.get('classname', '').split('.')[-1]}::{case.get('name')}", kind, reason))
    return found


def outcomes_in_log(path: Path) -> list[tuple[str, str, str]]:
    """Read the same from the output of `pytest -v`, for when it was killed before it wrote its JUnit file."""
    kinds = {"PASSED": "passed", "FAILED": "failed", "ERROR": "failed", "SKIPPED": "skipped"}
    return [(Path(name).name, kinds[kind], "") for name, kind in _OUTCOME.findall(path.read_text(errors="replace"))]
