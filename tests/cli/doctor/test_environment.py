"""Installed libraries compared with requirements, and GPUs that torch can or cannot use."""

from importlib import metadata

import pytest
import torch

from mimcl.cli.doctor import environment
from mimcl.cli.doctor.environment import gpus, libraries, versions


def by_name(findings):
    return {finding.name: finding for finding in findings}


def test_missing_and_unsuitable_libraries_are_broken():
    found = by_name(
        libraries(
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
    )
    assert found.keys() == {"numpy", "no-such-library", "versions"}
    assert found["numpy"].mark == found["no-such-library"].mark == "broken"
    assert "pip install 'numpy>=99'" in found["numpy"].text
    assert "pip install 'no-such-library>=1.0'" in found["no-such-library"].text
    assert found["versions"].numbers["torch"] == metadata.version("torch")


def test_without_dali_mimcl_is_not_broken():
    (found, _) = libraries(["nvidia-dali-cuda990>=2.0"])
    assert found.text.startswith("missing")
    assert found.mark == "warning"


def test_an_unsuitable_requirement_of_mimcl_is_reported(monkeypatch):
    monkeypatch.setattr(environment.metadata, "requires", lambda name: ["torch>=999"])
    assert [finding.name for finding in versions() if finding.mark == "broken"] == ["torch"]


def test_without_an_installation_the_check_fails_but_nothing_else(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(environment.metadata, "requires", missing)
    assert by_name(versions())["libraries"].mark == "warning"


@pytest.mark.parametrize("init", [lambda: None, lambda: (_ for _ in ()).throw(RuntimeError("the driver is too old"))])
def test_a_gpu_that_torch_cannot_use_is_broken(monkeypatch, init):
    monkeypatch.setattr(environment.os.path, "exists", lambda path: path == "/dev/nvidia0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    (found,) = gpus()
    assert found.mark == "broken"
    assert "driver" in found.text


def test_without_a_gpu_nothing_is_broken(monkeypatch):
    monkeypatch.setattr(environment.os.path, "exists", lambda path: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (found,) = gpus()
    assert found.mark == "info"


@pytest.mark.parametrize(
    ("major", "free", "mark", "text"),
    [(9, 70, "ok", "80 GiB"), (7, 70, "warning", "float32"), (9, 40, "warning", "other processes")],
)
def test_gpus_are_described_and_limits_named(monkeypatch, major, free, mark, text):
    properties = type("Properties", (), {"name": "GPU of a test", "major": major})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (free << 30, 80 << 30))
    (found,) = gpus()
    assert found.mark == mark
    assert text in found.text
