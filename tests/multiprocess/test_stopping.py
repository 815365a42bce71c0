"""Processes that are asked to stop."""

import os
import signal
import time

import pytest
from helpers import ranks, torchruns
from helpers.exhaustive import exhaustive
from helpers.small_runs import FEW_PATCHES, assert_same_run, latest, steps_of, train

pytestmark = pytest.mark.slow

STEPS = 28
SETTINGS = (FEW_PATCHES, "trainer.checkpoint_every_steps=1000", "trainer.log_every_steps=4")


@pytest.fixture(scope="module")
def unbroken(home, tmp_path_factory):
    run = tmp_path_factory.mktemp("unbroken") / "run"
    ranks.run(home, *train(run, *SETTINGS, steps=STEPS))
    return run


@pytest.mark.parametrize("number", [signal.SIGINT, *exhaustive(signal.SIGTERM)])
def test_the_step_is_finished_and_saved_and_a_resume_is_exact(home, unbroken, number, tmp_path):
    run = tmp_path / "run"
    (process,) = ranks.start(home, *train(run, *SETTINGS, steps=STEPS))
    torchruns.until(lambda: len(steps_of(run)) > 2, "a few steps", home / "rank-0.log")
    os.kill(process.pid, number)
    ranks.finish(home, [process], code=75)
    assert f"mimcl train --out {run} --resume" in ranks.output(home)
    assert 8 < int(latest(run).name) < STEPS
    ranks.run(home, "train", "--out", str(run), "--resume")
    assert_same_run(run, unbroken)


def test_a_second_interrupt_exits_at_once(home, tmp_path):
    run = tmp_path / "run"
    (process,) = ranks.start(home, *train(run, *SETTINGS, "data.batch_size=512", steps=8 * STEPS))
    torchruns.until(lambda: steps_of(run), "a step", home / "rank-0.log")
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.1)  # a second signal would be merged with a pending one
    os.kill(process.pid, signal.SIGINT)
    ranks.finish(home, [process], code=130)


def test_all_processes_stay_until_the_report_of_a_stopped_run_is_written(home, tmp_path):
    """torchrun ends all of them as soon as one leaves with code 75."""
    run = tmp_path / "run"
    settings = (*SETTINGS, "report=true")
    processes = ranks.start(home, *train(run, *settings, steps=8 * STEPS), size=2, before=ranks.shrink_model)
    torchruns.until(lambda: len(steps_of(run)) > 1, "a few steps", home / "rank-0.log")
    os.kill(processes[1].pid, signal.SIGTERM)
    ranks.finish(home, processes[1:], code=75)
    page = (run / "report.html").read_text()
    ranks.finish(home, processes[:1], code=75)
    assert f"report: {run}/report.html" in ranks.output(home, 2)
    assert "pictures: not drawn" in page
    assert "<h3>Loss</h3>" in page
