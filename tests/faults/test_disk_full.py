"""A disk that is full for a while costs a checkpoint, not the run. A limit on file sizes simulates it."""

import json
import resource
import time

import pytest
from helpers import ranks

pytestmark = pytest.mark.slow

_SPACE = 200_000  # bytes per file: enough for metrics, too little for the weights


def wait_for(text: str, home, process) -> None:
    deadline = time.monotonic() + 60
    while text not in ranks.output(home):
        assert process.is_alive(), ranks.output(home)
        assert time.monotonic() < deadline
        time.sleep(0.01)


def limit(process, nbytes: int) -> None:
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (nbytes, resource.RLIM_INFINITY))


def saved(home) -> list[int]:
    return sorted(int(path.name) for path in (home / "run" / "checkpoints").glob("*") if path.name.isdigit())


def test_training_continues_and_saves_when_there_is_space_again(home, train):
    options = [*train.options, "--epochs", "30", "--set", "trainer.checkpoint_every_steps=10"]
    (process,) = ranks.start(home, *options, before=ranks.shrink_model)
    while not (home / "run" / "checkpoints" / "latest").exists():
        time.sleep(0.005)
    limit(process, _SPACE)
    wait_for("File too large", home, process)
    during = saved(home)
    limit(process, resource.RLIM_INFINITY)
    ranks.finish(home, [process])
    said = ranks.output(home)
    assert "File too large" in said
    assert during
    assert saved(home)[-1] == 300
    assert not list((home / "run" / "checkpoints").glob("*.tmp"))
    steps = [json.loads(line).get("step") for line in (home / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [step for step in steps if step] == [1, *range(5, 301, 5)]


@pytest.mark.exhaustive
def test_a_full_disk_at_the_end_keeps_what_was_saved(home, train):
    options = [*train.options, "--epochs", "15", "--set", "trainer.checkpoint_every_steps=30"]
    (process,) = ranks.start(home, *options, before=ranks.shrink_model)
    while not (home / "run" / "checkpoints" / "latest").exists():
        time.sleep(0.005)
    limit(process, _SPACE)
    ranks.finish(home, [process], code=1)
    last = ranks.output(home).splitlines()[-1]
    assert last.startswith("mimcl: ")
    assert "run/checkpoints/00000150" in last
    assert "File too large" in last
    kept = saved(home)
    assert kept
    assert kept[-1] < 150
    ranks.run(home, *options, before=ranks.shrink_model)
    assert saved(home)[-1] == 150
