"""A step that does not end when the run is asked to stop: it is abandoned, and nothing before it is lost."""

import os
import signal
import time

import pytest
from helpers import ranks, stuck, torchruns
from helpers.exhaustive import exhaustive
from helpers.small_runs import FEW_PATCHES, assert_same_run, latest, steps_of, train

pytestmark = pytest.mark.slow

STEPS = 12
SETTINGS = (FEW_PATCHES, "trainer.checkpoint_every_steps=1000")


def asked_to_stop(home, processes, seconds=1.0):
    """Let the first process get stuck and ask it to stop; return its output once it has ended with code 75."""
    time.sleep(seconds)
    os.kill(processes[0].pid, signal.SIGTERM)
    ranks.finish(home, processes[:1], code=75)
    return ranks.output(home)


@pytest.mark.parametrize("complete", [5, *exhaustive(0)])
def test_the_position_before_it_is_saved_and_a_resume_is_exact(home, tmp_path, complete):
    run, unbroken = tmp_path / "run", tmp_path / "unbroken"
    words = train(run, *SETTINGS, steps=STEPS)
    processes = ranks.start(home, *words, before=stuck.decoder(complete))
    started = (lambda: complete in steps_of(run)) if complete else (lambda: (run / "config.yaml").exists())
    torchruns.until(started, "the step that is stuck", home / "rank-0.log")
    said = asked_to_stop(home, processes)
    assert "the current step does not finish: abandoned it and saved the position before it" in said
    assert f"continue with: mimcl train --out {run} --resume" in said
    if complete:
        assert int(latest(run).name) == complete
    else:  # there is nothing to save before the first step
        assert not (run / "checkpoints" / "latest").exists()
    ranks.run(home, "train", "--out", str(run), "--resume", before=ranks.shrink_model)
    ranks.run(home, *train(unbroken, *SETTINGS, steps=STEPS), before=ranks.shrink_model)
    assert_same_run(run, unbroken)


@pytest.mark.exhaustive
def test_the_first_process_saves_while_it_waits_for_one_that_does_not_answer(home, tmp_path):
    run, unbroken = tmp_path / "run", tmp_path / "unbroken"
    processes = ranks.start(home, *train(run, *SETTINGS, steps=STEPS), size=2, before=ranks.shrink_model)
    try:
        torchruns.until(lambda: len(steps_of(run)) > 1, "two steps", home / "rank-0.log")
        os.kill(processes[1].pid, signal.SIGSTOP)
        asked_to_stop(home, processes)
    finally:
        processes[1].kill()
    assert 2 <= int(latest(run).name) < STEPS
    for words in (["train", "--out", str(run), "--resume"], train(unbroken, *SETTINGS, steps=STEPS)):
        ranks.run(home, *words, size=2, before=ranks.shrink_model)
    assert_same_run(run, unbroken)
