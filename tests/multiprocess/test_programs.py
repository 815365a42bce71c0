"""Programs that call several functions of mimcl.api in two processes."""

import subprocess
import sys

import pytest
from helpers import ranks, torchruns
from helpers.exhaustive import exhaustive
from helpers.images import write_classes

pytestmark = pytest.mark.slow  # starts processes

PROGRAM = """
import sys
from mimcl.api import build_prototypes, shard
packed = shard("imagenet")
for name in ("one", "two"):
    folder, found = build_prototypes(features="pixels", k=3, name=name)
sys.stdout.write(f"{packed['splits']['train']['samples']} {folder} {found.distance.sum():.5f}\\n")
"""


def started(launcher: str, folder) -> list[subprocess.Popen]:
    if launcher == "torchrun":
        flags = ["--standalone", "--nproc-per-node", "2"]
        return [torchruns.start(folder / "0.log", flags, [sys.executable, "program.py"], folder)]
    port = str(ranks.free_port())
    processes = []
    for rank in ("0", "1"):
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        variables = torchruns.environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **numbers)
        with open(folder / f"{rank}.log", "wb") as log:
            command = [sys.executable, "program.py"]
            processes.append(subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=variables))
    return processes


@pytest.mark.parametrize("launcher", exhaustive("torchrun", "variables"))
def test_functions_connect_one_after_another(tmp_path, launcher):
    write_classes(tmp_path / "imagenet", {"ant": 12, "bee": 12})
    (tmp_path / "program.py").write_text(PROGRAM)
    processes = started(launcher, tmp_path)
    try:
        codes = [process.wait(200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    text = "".join(log.read_text() for log in sorted(tmp_path.glob("*.log")))
    assert set(codes) == {0}, text
    first, second = (line for line in text.splitlines() if line.startswith("24 shards/prototypes/two "))
    assert first == second
