"""On Windows, which lacks fcntl and resource, one line says what to do."""

import subprocess
import sys

import pytest

PRETEND = "import sys; sys.platform = 'win32'; sys.modules['fcntl'] = sys.modules['resource'] = None\n"
SAID = "mimcl needs Linux or macOS, not Windows; install WSL2 (wsl --install) and run mimcl in it"


@pytest.mark.parametrize("arguments", [["--help"], ["train"], []])
def test_the_program_says_wsl2(arguments):
    code = PRETEND + f"sys.argv = ['mimcl', *{arguments!r}]\nfrom mimcl.cli.main import program\nprogram()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"mimcl: {SAID}\n")


def test_the_api_says_wsl2():
    done = subprocess.run(
        [sys.executable, "-c", PRETEND + "import mimcl.api"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.endswith(f"ImportError: {SAID}\n")
