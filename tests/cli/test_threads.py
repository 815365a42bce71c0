"""Threads of OpenMP: chosen where the user did not, before torch is imported; torch and its threads follow."""

import os
import subprocess
import sys

import pytest

from mimcl.cli.threads import choose_threads
from mimcl.pipeline.cores import arithmetic_threads

OURS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def chosen(**environment):
    choose_threads(environment)
    return {name: environment[name] for name in OURS if name in environment}


def test_what_the_user_set_stays():
    assert chosen(OMP_NUM_THREADS="7", OMP_WAIT_POLICY="active") == {
        "OMP_NUM_THREADS": "7",
        "OMP_WAIT_POLICY": "active",
    }
    assert chosen(OMP_NUM_THREADS="1", GOMP_SPINCOUNT="0") == {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}
    assert chosen(OMP_NUM_THREADS="2")["GOMP_SPINCOUNT"] == "10000"


@pytest.mark.parametrize("local_size", ["", "1", "x", "0"])
def test_threads_are_at_most_the_cores_of_this_process(local_size):
    threads = int(chosen(LOCAL_WORLD_SIZE=local_size)["OMP_NUM_THREADS"])
    assert 1 <= threads <= len(os.sched_getaffinity(0))


PROGRAM = """
import os, sys
from mimcl.cli.main import program
sys.argv = ["mimcl", "--version"]
assert "torch" not in sys.modules
try: program()
except SystemExit: pass
assert "torch" not in sys.modules
import torch
print(torch.get_num_threads(), os.environ["GOMP_SPINCOUNT"])
"""


def ran(code, cores=None, **environment):
    """Output lines of a program without any setting of OpenMP but those given, on the first `cores` cores."""
    clean = {name: value for name, value in os.environ.items() if name not in OURS}
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    code = f"import os; os.sched_setaffinity(0, {allowed})\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.slow
def test_torch_computes_on_the_cores_of_its_process():
    assert ran(PROGRAM, cores=1)[-1] == "1 10000"
    assert ran(PROGRAM)[-1] == f"{arithmetic_threads()} 10000"
    assert ran(PROGRAM, OMP_NUM_THREADS="1", GOMP_SPINCOUNT="5")[-1] == "1 5"


CHOICE = "import os; from mimcl.cli import threads; threads.choose_threads(); print(os.environ['OMP_NUM_THREADS'])"


@pytest.mark.slow
def test_torchruns_single_thread_gives_way_to_the_cores_that_a_process_has():
    """torchrun sets OMP_NUM_THREADS=1 only in its children: its own environment tells whether the user did."""
    launch = (
        "import subprocess, sys\n"
        "environment = os.environ | {'OMP_NUM_THREADS': '1', 'TORCHELASTIC_RUN_ID': 'x', 'LOCAL_WORLD_SIZE': '1'}\n"
        f"subprocess.run([sys.executable, '-c', {CHOICE!r}], env=environment, check=True)"
    )
    assert ran(launch)[0] == str(arithmetic_threads())
    assert ran(launch, OMP_NUM_THREADS="1")[0] == "1"
