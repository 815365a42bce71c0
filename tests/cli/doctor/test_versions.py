"""Installed versions against what is asked for."""

import re
from importlib import metadata

import pytest
import torch

from mimcl.cli.doctor import versions
from mimcl.cli.doctor.versions import cuda_builds, dali, driver, libraries


def by_name(lines):
    return {finding.name: finding for finding in libraries(lines)}


def test_what_fits_what_does_not_and_what_is_missing():
    found = by_name(
        [
            "torch>=2.11",
            "numpy>=99",
            "no-such-library>=1.0",
            "pyyaml>=6.0",
            'pillow>=999; sys_platform == "win32"',
            'pytest>=999; extra == "test"',
            "xxhash",
        ]
    )
    assert found["torch"].mark == "ok"
    assert found["torch"].text == f"{metadata.version('torch')} (needs >=2.11)"
    assert found["numpy"].mark == found["no-such-library"].mark == "broken"
    assert "does not fit (needs >=99): pip install 'numpy>=99'" in found["numpy"].text
    assert found["no-such-library"].text.startswith("missing")
    assert found["other libraries"].text == "2 as mimcl needs them"
    assert len(found) == 4


def test_without_dali_mimcl_is_not_broken(monkeypatch):
    (found, _) = libraries(["nvidia-dali-cuda990>=2.0"])
    monkeypatch.setattr(versions.metadata, "distributions", list)
    assert found.text.startswith("missing")
    assert found.mark == dali("13.2").mark == "warning"


def test_a_broken_requirement_reaches_the_report(monkeypatch):
    monkeypatch.setattr(versions.metadata, "requires", lambda name: ["torch>=999"])
    broken = [finding for finding in versions.versions() if finding.mark == "broken"]
    assert [finding.name for finding in broken] == ["torch"]


def test_what_is_not_installed_says_so_and_goes_on(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(versions.metadata, "requires", missing)
    found = {finding.name: finding for finding in versions.versions()}
    assert found["libraries"].text.startswith("not found: ")
    assert "Python" in found


def test_cuda_builds_of_this_installation():
    found = {finding.name: finding for finding in cuda_builds()}
    assert found["torch's CUDA"].text.startswith(torch.version.cuda or "none")
    assert re.match(r"sees \d+ GPUs, torch \d+", found["faiss"].text)
    assert not [finding for finding in found.values() if finding.mark == "broken"]


@pytest.mark.parametrize(("built", "mark"), [("13.2", "ok"), ("12.9", "warning"), (None, "ok")])
def test_dali_is_compared_with_torch(built, mark):
    found = dali(built)
    assert found.mark == mark
    assert ("pip install nvidia-dali-cuda120" in found.text) == (mark == "warning")


class Driver:
    """A libcuda that answers."""

    def __init__(self, number, status=0):
        self._number, self._status = number, status

    def cuDriverGetVersion(self, pointer):
        pointer._obj.value = self._number
        return self._status


@pytest.mark.parametrize(
    ("library", "mark", "text"),
    [
        (Driver(13020), "ok", "13.2"),
        (Driver(12090), "broken", "12.9 is older than torch's 13.2: update the driver"),
        (Driver(0, 3), "warning", "does not answer"),
    ],
)
def test_the_driver_is_compared_with_torch(monkeypatch, library, mark, text):
    monkeypatch.setattr(versions.ctypes, "CDLL", lambda name: library)
    found = driver("13.2")
    assert found.mark == mark
    assert text in found.text
