"""A process in which DALI does not start on the GPU restarts once, without virtual memory pools."""

import os
import subprocess
import sys

import pytest
from helpers.exhaustive import exhaustive

# DALI runs on the CPU here; only its start on the GPU fails, as in a sandbox.
PROGRAM = """
import os, sys
import torch, typer
from mimcl.cli import app, main
from mimcl.pipeline import dali, decoder_choice

class Unsupported(dali.DaliDecoder):
    def __init__(self, *sizes, gpu, scaled):
        super().__init__(*sizes, gpu=False, scaled=scaled)
        self._gpu = gpu

    def __call__(self, batches):
        if self._gpu and (os.environ.get("DALI_USE_VMM") != "0" or ALWAYS):
            raise RuntimeError("cuMemCreate: operation not supported")
        return super().__call__(batches)

ALWAYS = {always}
dali.DaliDecoder = Unsupported
torch.cuda.is_available = lambda: True

@app.app.command("decoder")
def command(name: str) -> None:
    typer.echo(decoder_choice.make_decoder(name, 32, 4, 1, 100)[1])

main.main()
"""


def run(tmp_path, name: str, always: bool = False, **environment: str):
    (tmp_path / "program.py").write_text(PROGRAM.format(always=always))
    command = [sys.executable, str(tmp_path / "program.py"), "decoder", name]
    clean = {key: value for key, value in os.environ.items() if key != "DALI_USE_VMM"}
    return subprocess.run(command, capture_output=True, text=True, env=clean | environment, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["auto", *exhaustive("dali-gpu")])
def test_it_restarts_without_virtual_memory_pools_and_says_so(tmp_path, name):
    done = run(tmp_path, name)
    assert done.returncode == 0
    assert done.stdout == "decoder dali-gpu\n"
    (line,) = done.stderr.splitlines()
    assert "cuMemCreate: operation not supported" in line
    assert "DALI_USE_VMM=0" in line
    assert line.endswith("with DALI_USE_VMM=0")


@pytest.mark.slow
def test_it_restarts_only_once(tmp_path):
    done = run(tmp_path, "auto", always=True)
    assert done.returncode == 0
    assert done.stdout.startswith("decoder dali-cpu; dali-gpu: cuMemCreate")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_it_does_not_restart_if_the_variable_is_set(tmp_path):
    done = run(tmp_path, "dali-gpu", always=True, DALI_USE_VMM="1")
    assert done.returncode == 1
    assert "dali-gpu: cuMemCreate" in done.stderr
    assert len(done.stderr.splitlines()) == 1
