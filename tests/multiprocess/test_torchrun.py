"""torchrun: a killed worker loses only the steps since the last checkpoint; signals end the run after the step."""

import os
import signal

import pytest
from helpers import ranks, torchruns
from helpers.exhaustive import exhaustive
from helpers.small_runs import FEW_PATCHES, assert_same_run, latest, steps_of, train

STEPS = 64  # long enough to be interrupted, also where the first checkpoint takes seconds to be written
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
FLAGS = ["--nproc-per-node", "2", "--max-restarts", "2"]


@pytest.fixture(scope="module")
def unbroken(home, tmp_path_factory):
    run = tmp_path_factory.mktemp("unbroken") / "run"
    ranks.run(home, *train(run, FEW_PATCHES, steps=STEPS), size=2)
    return run


@pytest.fixture
def started(home, tmp_path):
    """A run with two processes under torchrun that has just saved its first checkpoint."""
    run, log = tmp_path / "run", tmp_path / "log"
    before = set(os.listdir("/dev/shm"))
    command = ["mimcl", *train(run, FEW_PATCHES, steps=STEPS), "--resume"]
    process = torchruns.start(log, FLAGS, command, home, **torchruns.ELASTIC)
    try:
        torchruns.until((run / "checkpoints" / "latest").exists, "a checkpoint", log)
        pids = torchruns.workers(process)
        assert len(pids) == 2
        yield process, run, log
        assert not any(map(torchruns.alive, pids))
        # Waited for, since another test's file may not be mapped yet.
        torchruns.until(lambda: not torchruns.orphaned(before), "an empty /dev/shm", log, seconds=5)
    finally:
        torchruns.kill_all(process)


def test_a_killed_worker_is_replaced_and_nothing_is_lost(started, unbroken):
    process, run, log = started
    os.kill(torchruns.workers(process)[0], signal.SIGKILL)  # the one that saves
    saved = int(latest(run).name)  # the next one comes seconds later, when all have started again
    assert process.wait(250) == 0
    assert f"at draw {64 * saved:,}, step {saved}" in log.read_text()
    assert_same_run(run, unbroken)


@pytest.mark.parametrize("number", exhaustive(signal.SIGTERM, signal.SIGINT))
def test_a_signal_to_torchrun_ends_the_run_after_the_step_and_saves_it(home, started, unbroken, number, tmp_path):
    process, run, log = started
    process.send_signal(number)
    at = steps_of(run)[-1]
    torchruns.until(lambda: process.poll() is not None, "the end", log)
    assert process.returncode == 1  # torchrun's own
    assert "mimcl train --out" in log.read_text()
    last = steps_of(run)[-1]
    assert at <= last <= at + 3
    assert latest(run).name == f"{last:08d}"
    ranks.run(home, "train", "--out", str(run), "--resume", size=2)
    assert_same_run(run, unbroken)


@pytest.mark.exhaustive
def test_a_stuck_worker_does_not_hold_up_the_others(started):
    """A stopped process keeps its connections open, so the others are within a step when the signal comes."""
    process, _, log = started
    stuck, survivor = torchruns.workers(process)
    os.kill(stuck, signal.SIGSTOP)
    try:
        assert not os.waitpid(process.pid, os.WNOHANG)[0]
        process.terminate()
        torchruns.until(lambda: not torchruns.alive(survivor), "the survivor's end", log, seconds=100)
    finally:
        os.kill(stuck, signal.SIGKILL)
    process.wait(60)
    assert "step does not finish" in log.read_text()


def test_the_store_that_torchrun_shares_is_refused_with_restarts_in_one_line(home, tmp_path):
    """PyTorch issue 135712. The variables are those that a real torchrun sets."""
    log = tmp_path / "log"
    torchruns.start(log, FLAGS, ["env"], home).wait(60)
    lines = [line.partition("=") for line in log.read_text().splitlines()]
    variables = {name: value for name, _, value in lines if name.startswith("TORCHELASTIC_")}
    assert variables["TORCHELASTIC_MAX_RESTARTS"] == "2"
    ranks.run(home, *train(tmp_path / "run"), "--resume", size=2, code=1, **variables)
    for rank in range(2):
        complaint = (home / f"rank-{rank}.log").read_text()
        assert len(complaint.splitlines()) == 1
        assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in complaint
