"""tools/install.sh chooses DALI's build, and torch's, by what nvidia-smi says; the packages are not installed here."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
OLD = "| NVIDIA-SMI 550.54.15    Driver Version: 550.54.15    CUDA Version: {} |"
NEW = "| NVIDIA-SMI 595.45.04    KMD Version: 595.45.04    CUDA UMD Version: {} |"
# In the place of python3: `-m venv` makes one whose python prints its arguments.
PYTHON = """#!/bin/sh
case "$*" in "-m venv .venv")
    mkdir -p .venv/bin
    printf '#!/bin/sh\\necho "$@"\\n' >.venv/bin/python
    chmod +x .venv/bin/python
esac
"""


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "checkout").mkdir()
    (tmp_path / "bin").mkdir()
    shutil.copytree(TOOLS, tmp_path / "checkout" / "tools", ignore=shutil.ignore_patterns("bench", "gpu", "typing"))
    program(tmp_path / "bin" / "python3", PYTHON)
    return tmp_path / "checkout"


def run(checkout: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{checkout.parent / 'bin'}:/usr/bin:/bin"}
    command = ["sh", str(checkout / "tools" / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def smi(checkout: Path, text: str, code: int = 0) -> None:
    program(checkout.parent / "bin" / "nvidia-smi", f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {code}\n")


@pytest.mark.parametrize("header", [OLD, NEW])
@pytest.mark.parametrize(("version", "extra"), [("12.4", "cuda12"), ("13.0", "cuda13"), ("14.1", "cuda13")])
def test_the_extra_fits_the_driver(checkout, header, version, extra):
    smi(checkout, f"Sun Nov 29 12:00:00 2026\n{header.format(version)}\n| 12% 35C P8 12W / 130W |")
    assert run(checkout, "cuda_extra.sh").stdout == f"{extra}\n"


def test_without_a_working_driver_it_is_cuda13(checkout):
    assert run(checkout, "cuda_extra.sh").stdout == "cuda13\n"
    smi(checkout, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9)
    assert run(checkout, "cuda_extra.sh").stdout == "cuda13\n"


def test_the_build_is_installed_with_other_extras(checkout):
    done = run(checkout, "install.sh", "test")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.endswith("--editable .[test,cuda13]")


def test_for_cuda_12_torch_comes_first_and_from_its_own_index(checkout):
    smi(checkout, OLD.format("12.8"))
    torch, mimcl = run(checkout, "install.sh").stdout.splitlines()
    assert "torch torchvision --index-url" in torch
    assert torch.endswith("/cu126")
    assert mimcl.endswith("--editable .[cuda12]")


def test_an_old_python_is_refused_in_one_line(checkout):
    program(checkout.parent / "bin" / "python3", "#!/bin/sh\n[ $1 = -V ] && echo Python 3.9.2\nexit 1\n")
    done = run(checkout, "demo.sh")
    assert done.returncode == 1
    assert done.stderr == "install.sh: python3 must be 3.11 or later (3.9.2); install a newer Python\n"
