"""tools/gpu_check.py: rehearsals of both halves without an installed mimcl; parts that fail, hang and die; numbers."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.bare_machine import bare_environment
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "gpu_check.py"
sys.path.append(str(ROOT / "tools"))

from gpu.bench import REHEARSAL, step_flops  # noqa: E402
from gpu.lines import Line, RowFile, table  # noqa: E402
from gpu.links import environment  # noqa: E402
from gpu.parts import HALVES, Part  # noqa: E402
from gpu.runner import Half  # noqa: E402
from gpu.suite import outcomes_in_log  # noqa: E402

from mimcl.curriculum.masking.random import RandomMasker  # noqa: E402
from mimcl.model.mae import to_patches  # noqa: E402


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(700)
@pytest.mark.parametrize(("half", "missing"), [("model", ("nvidia.dali", "pytest_timeout")), ("dali", ())])
def test_a_rehearsal_has_every_part_and_no_failure(half, missing, tmp_path):
    bare = bare_environment(tmp_path / "site", *missing)
    probe = subprocess.run([sys.executable, "-c", "import mimcl.pipeline"], env=bare, cwd=tmp_path, capture_output=True)
    assert probe.returncode == 1, "mimcl is importable without the links"
    row = tmp_path / "out" / "gpu.jsonl"
    command = [sys.executable, str(SCRIPT), "--rehearse", "--only", half, "--row", str(row), "--limit", "600"]
    done = subprocess.run(command, env=bare, cwd=tmp_path, capture_output=True, text=True, timeout=650)
    log = row.with_name(f"gpu_check-{half}.log")
    assert done.returncode == 0, done.stdout + done.stderr + (log.read_text()[-3000:] if log.exists() else "")

    header, *lines = records(row)
    assert header.keys() >= {"run", "half", "device", "cores", "versions", "commit", "date"}
    assert ("pytest_timeout" in header["missing"]) == ("pytest_timeout" in missing)
    assert {line["run"] for line in lines} == {header["run"]}
    parts = {part.name: [line for line in lines if line["part"] == part.name] for part in HALVES[half]}
    for part, found in parts.items():
        assert any(isinstance(line["value"], (int, float)) for line in found), part
        assert not [line for line in found if "failed:" in str(line["value"]) or line["met"] is False], part
    numbers = {line["name"]: line["value"] for line in lines if isinstance(line["value"], (int, float))}
    if half == "model":
        assert sum(value > 0 for name, value in numbers.items() if "MFU, of the measured product" in name) == 5
        assert sum(value > 0 for name, value in numbers.items() if name.endswith("time to compile")) == 3
    else:
        assert numbers["average size of the generated images"] == pytest.approx(117.5, abs=7.5)
        assert numbers["decode, CUDA cores: one draw in 3 batches, largest difference"] == 0
        assert numbers["end to end, compiled per block"] > 0
    assert row.with_name(f"gpu_check-{half}-tests.xml").exists()
    assert numbers["GPU tests: skipped"] > 0
    for line in lines:  # everything stored was printed as well
        assert line["name"] in done.stdout


FAKE_PARTS = """
import ctypes, time
from gpu.lines import Line

def good(bench):
    yield Line("good", 1, "thing")

def hang(bench):
    yield Line("before it hangs", 2)
    time.sleep(600)

def die(bench):
    yield Line("before it dies", 3)
    ctypes.string_at(0)

def fail(bench):
    yield Line("before it fails", 4)
    raise RuntimeError("no such luck")

def needs_variable(bench):
    import os
    yield Line("variable", os.environ.get("FAKE_VARIABLE", "unset"))
    if "FAKE_VARIABLE" not in os.environ:
        ctypes.string_at(0)

def leave_device_unusable(bench):
    import torch
    torch.ones = None
    raise RuntimeError("CUDA error")
    yield

def spoil_the_exit(bench):
    import atexit, os
    atexit.register(os._exit, 3)
    yield Line("spoiled", 5)

def use_device(bench):
    import torch
    yield Line("used", int(torch.ones(1)))
"""


def run_parts(tmp_path: Path, parts: list[Part], seconds: float = 200) -> tuple[bool, list[dict]]:
    """Run the parts; return whether they passed, and the records of the row file."""
    (tmp_path / "fakes").mkdir()
    (tmp_path / "fakes" / "fake_parts.py").write_text(FAKE_PARTS)
    rows = RowFile(tmp_path / "gpu.jsonl", "run 1")
    variables = environment(tmp_path / "links")
    half = Half(
        name="model",
        parts=parts,
        rehearse=True,
        seconds=seconds,
        folder=tmp_path,
        artifacts=tmp_path,
        environment={**variables, "PYTHONPATH": f"{variables['PYTHONPATH']}{os.pathsep}{tmp_path / 'fakes'}"},
        on_ready=lambda event: rows.append({"half": "model", "device": event["device"]}),
        on_line=lambda part, line: rows.line("model", part, line),
    )
    return half.run(), records(tmp_path / "gpu.jsonl")


def fake(name: str, limit: float = 60, **options) -> Part:
    return Part(name, f"fake_parts:{name}", limit, **options)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_parts_that_hang_die_or_fail_lose_only_their_own_results(tmp_path):
    parts = [fake(name, 2 if name == "hang" else 60) for name in ("hang", "die", "fail", "good")]
    parts += [fake("leave_device_unusable"), fake("use_device")]
    passed, (header, *lines) = run_parts(tmp_path, parts)
    assert not passed
    assert header["device"] == "CPU"
    found = {line["name"]: line["value"] for line in lines}
    assert (found["before it hangs"], found["before it dies"], found["before it fails"], found["good"]) == (2, 3, 4, 1)
    assert re.match(r"failed: timed out after \d+ s in fake_parts.py:10 hang", found["hang"])
    assert "SIGSEGV" in found["die"]
    assert "string_at" in found["die"]
    assert found["fail"].startswith("failed: RuntimeError: no such luck (fake_parts.py:18 fail")
    assert found["leave_device_unusable"].startswith("failed: RuntimeError: CUDA error")
    assert found["used"] == 1
    assert [line["part"] for line in lines if line["must"]] == ["hang", "die", "fail", "leave_device_unusable"]


@pytest.mark.slow
def test_a_process_that_dies_after_its_last_part_loses_nothing(tmp_path):
    passed, (_, *lines) = run_parts(tmp_path, [fake("good"), fake("spoil_the_exit")])
    assert passed
    assert [line["value"] for line in lines if line["name"] in ("good", "spoiled")] == [1, 5]
    assert not [line for line in lines if "failed" in str(line["value"])]


@pytest.mark.slow
def test_a_part_is_retried_with_its_variables_and_later_parts_keep_them(tmp_path):
    again = fake("needs_variable", retry_with={"FAKE_VARIABLE": "on"})
    passed, (_, *lines) = run_parts(tmp_path, [again, fake("needs_variable")])
    assert passed
    assert [line["value"] for line in lines if line["name"] == "variable"] == ["unset", "on", "on"]
    assert any(line["value"] == "with FAKE_VARIABLE=on, which later parts keep" for line in lines)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_parts_without_time_left_are_reported(tmp_path):
    started = time.monotonic()
    passed, (_, *lines) = run_parts(tmp_path, [fake("hang"), fake("good", optional=True), fake("fail")], seconds=15)
    assert not passed
    assert time.monotonic() - started < 90
    found = {line["name"]: line["value"] for line in lines}
    assert found["hang"].startswith(("failed: timed out", "skipped"))  # the latter if the start took long
    assert found["good"] == found["fail"] == "skipped: no time left"
    assert "good" not in [line["name"] for line in lines if line["must"]]


def test_tests_are_counted_if_pytest_was_killed_before_its_report(tmp_path):
    log = tmp_path / "tests.log"
    log.write_text(
        "tests/a/test_b.py::test_c[x y-1] PASSED [ 25%]\n"
        "tests/a/test_b.py::test_d FAILED [ 50%]\n"
        "tests/a/test_b.py::test_e SKIPPED (no CUDA device) [ 75%]\n"
        "tests/a/test_b.py::test_f "
    )
    assert outcomes_in_log(log) == [
        ("test_b.py::test_c[x y-1]", "passed", ""),
        ("test_b.py::test_d", "failed", ""),
        ("test_b.py::test_e", "skipped", ""),
    ]


def test_operations_are_counted_as_by_torch():
    model = REHEARSAL.make_model()
    images = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    mask = RandomMasker(model.num_patches, 0.75).propose(torch.empty(0), torch.arange(3), model, torch.zeros(()))
    # On the CPU torch counts the operations of plain attention only.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(to_patches(images, 8), mask).per_patch_loss.sum().backward()
    assert step_flops(model) == counter.get_total_flops() / 3


def test_the_table_shows_the_latest_run_of_each_half_on_each_device(tmp_path):
    path = tmp_path / "gpu.jsonl"
    for run, device, rate in (("1", "H100", 1000.0), ("2", "H200", 3000.0), ("3", "H100", 2000.0)):
        rows = RowFile(path, run)
        rows.append({"half": "model", "device": device})
        rows.line("model", "eager", Line("step", rate, "img/s", ">= 2,500", rate >= 2500))
    RowFile(path, "3").line("model", "tests", Line("tests", "failed: a | b"))
    assert table(path).splitlines() == [
        "| Measurement | Goal | H100 | H200 |",
        "| --- | --- | --- | --- |",
        "| step | >= 2,500 | 2,000 img/s (missed) | 3,000 img/s |",
        "| tests |  | failed: a / b |  |",
    ]
    printed = subprocess.run([sys.executable, SCRIPT, "--table", path], capture_output=True, text=True, check=True)
    assert printed.stdout == table(path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a CUDA device")
def test_without_a_device_it_exits_with_code_2(tmp_path):
    command = [sys.executable, SCRIPT, "--only", "model", "--row", tmp_path / "gpu.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr
    assert not (tmp_path / "gpu.jsonl").exists()
