"""Installed libraries compared with requirements, and GPUs that torch can or cannot use."""

import sys
from importlib import metadata

import pytest
import torch

from mimcl.cli.doctor import environment
from mimcl.cli.doctor.environment import dali, gpus, libraries, versions
from mimcl.pipeline import dali_builds


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


def test_the_build_of_dali_is_reported():
    (found,) = dali()
    ((name, version),) = dali_builds.dali_builds().items()
    assert found.text == f"{name} {version}"
    assert found.numbers == {"build": name, "version": version}


def test_without_dali_mimcl_is_not_broken(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.setattr(dali_builds, "_NAMES", [])
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (found,) = dali()
    assert found.text == "not installed, Pillow decodes instead, which is slower: pip install 'mimcl[cuda13]'"
    assert found.mark == "warning"
    monkeypatch.setattr(sys, "platform", "darwin")
    (found,) = dali()
    assert found.mark == "info"
    assert "darwin" in found.text


def test_a_build_for_another_cuda_than_torch_is_reported(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "11.8")
    (found,) = dali()
    assert found.mark == "warning"
    assert "torch is built for CUDA 11.8; pip uninstall nvidia-dali-cuda" in found.text


def test_two_builds_of_dali_are_broken(monkeypatch):
    monkeypatch.setattr(dali_builds, "_NAMES", ["torch", "numpy"])
    (found,) = dali()
    assert found.mark == "broken"
    assert "torch and numpy are installed" in found.text


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
