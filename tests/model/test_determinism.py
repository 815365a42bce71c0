"""What `trainer.deterministic` sets, and that compiled kernels are part of it."""

import os
import subprocess
import sys

import pytest

CODE = """
import os, torch
from mimcl.model.determinism import use_deterministic_kernels

before = torch.are_deterministic_algorithms_enabled(), torch._inductor.config.deterministic
use_deterministic_kernels()
after = torch.are_deterministic_algorithms_enabled(), torch._inductor.config.deterministic
print(before, after, os.environ["CUBLAS_WORKSPACE_CONFIG"])
"""


@pytest.mark.slow
def test_eager_cublas_and_compiled_kernels_are_restricted():
    environment = {name: value for name, value in os.environ.items() if name != "CUBLAS_WORKSPACE_CONFIG"}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "(False, False) (True, True) :4096:8\n", done.stderr
