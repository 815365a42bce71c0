"""What all ranks watch together: quarantine, dumps of steps without a finite gradient, windows that must be alike."""

import gc
import json
import math
import weakref

import pytest
import torch
from helpers.full_disk import limit_file_size
from helpers.gloo_ranks import run_ranks, watch_a_run
from helpers.plan_batches import bad_sample, make_batches, make_plan

from mimcl.cli.run.health import Health
from mimcl.model.metrics import Outcome

BATCH = 16


@pytest.fixture
def reported():
    return []


def outcome(step, bad=0, grad_norm=1.0, loss=0.5):
    return Outcome(step, 0.1, loss, grad_norm, False, bad)


def lose(batch):
    """A loss for each draw from which it can be reported."""
    return torch.from_numpy(batch.draws) / 2


def rows_of(folder):
    return [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]


def go(health, bad, micro=8, start=0, until=10, nonfinite=()):
    """Steps as the trainer makes them: each outcome comes one step late, the last two at once."""
    late = []
    for step, parts in enumerate(make_batches(make_plan(), BATCH, micro, bad=bad, start=start), start // BATCH + 1):
        if step > until:
            return
        for batch in parts:
            health.observe(batch, lose(batch))
        count = sum(len(samples) for draw, samples in bad.items() if draw // BATCH == step - 1)
        late.append(outcome(step, count, math.nan if step in nonfinite else 1.0))
        health.check([late.pop(0) for _ in range(len(late) if step == until else len(late) - 1)])


@pytest.mark.parametrize("micro", [8, 16])
def test_bad_samples_are_written_with_draw_sample_shard_and_reason(tmp_path, reported, micro):
    bad = {17: (bad_sample(17),), 30: (bad_sample(30, "b.tar"), bad_sample(30)), 47: (bad_sample(47),)}
    go(Health(tmp_path, 0, BATCH, 0.001, True, reported.append), bad, micro)
    assert [(row["draw"], row["shard"]) for row in rows_of(tmp_path)] == [
        (17, "train-000000.tar"),
        (30, "b.tar"),
        (30, "train-000000.tar"),
        (47, "train-000000.tar"),
    ]
    assert rows_of(tmp_path)[0] == {
        "draw": 17,
        "sample_id": 3,
        "key": "000000003",
        "shard": "train-000000.tar",
        "reason": "its checksum differs",
    }
    assert reported[0] == "sample 000000003 of train-000000.tar is bad and was replaced: its checksum differs"
    assert len(reported) == 4


def test_of_many_in_a_step_three_are_reported(tmp_path, reported):
    go(Health(tmp_path, 0, BATCH, 1, True, reported.append), {draw: (bad_sample(draw),) for draw in range(16, 26)})
    assert len(rows_of(tmp_path)) == 10
    assert len(reported) == 3


def test_a_resume_drops_what_will_be_met_again_and_counts_on(tmp_path, reported):
    bad = {draw: (bad_sample(draw),) for draw in (3, 5, 20, 21, 22, 40, 50, 66)}
    go(Health(tmp_path, 0, BATCH, 0, True, reported.append), bad, until=6)
    assert len(rows_of(tmp_path)) == 8
    with open(tmp_path / "quarantine.jsonl", "a") as file:
        file.write('{"draw": 66, "sam')  # killed
    health = Health(tmp_path, 32, BATCH, 0, True, reported.append)
    assert [row["draw"] for row in rows_of(tmp_path)] == [3, 5, 20, 21, 22]
    bad |= {draw: (bad_sample(draw),) for draw in (67, 68)}
    go(health, bad, start=32)
    assert [row["draw"] for row in rows_of(tmp_path)] == sorted(bad)
    assert len(bad) == 10
    health = Health(tmp_path, 80, BATCH, 0, True, reported.append)
    go(health, {90: (bad_sample(90),)}, start=80)
    assert health.excess.startswith("11 bad samples in 96 draws are more than the 10 allowed")


def test_a_fresh_run_begins_with_an_empty_quarantine(tmp_path, reported):
    go(Health(tmp_path, 0, BATCH, 1, True, reported.append), {3: (bad_sample(3),)})
    Health(tmp_path, 0, BATCH, 1, True, reported.append)
    assert rows_of(tmp_path) == []


@pytest.mark.parametrize(("share", "allowed"), [(0, 10), (0.1, 10), (0.25, 20), (1, 80)])
def test_ten_may_be_bad_and_then_a_share_of_the_draws_so_far(tmp_path, reported, share, allowed):
    health = Health(tmp_path, 0, BATCH, share, True, reported.append)
    for count in (allowed, 1):
        bad = {79: (bad_sample(79),) * count}
        (batch,) = next(iter(make_batches(make_plan(), BATCH, 16, bad=bad, start=64)))
        health.observe(batch, lose(batch))
        assert health.excess is None
        health.check([outcome(5, count)])
    assert f"{allowed + 1} bad samples in 80 draws" in health.excess
    assert "train-000000.tar" in health.excess
    assert f"{tmp_path}/quarantine.jsonl" in health.excess
    assert "--max-bad" in health.excess
    assert len(rows_of(tmp_path)) == allowed + 1  # what ended the run is written too


def test_the_worst_shards_are_named(tmp_path, reported):
    shards = ["a.tar"] * 6 + ["b.tar"] * 3 + ["c.tar"] * 2 + ["d.tar"]
    bad = {16 + n: (bad_sample(16 + n, shard),) for n, shard in enumerate(shards)}
    health = Health(tmp_path, 0, BATCH, 0, True, reported.append)
    go(health, bad)
    assert "(6 in a.tar, 3 in b.tar, 2 in c.tar)" in health.excess


def test_a_full_disk_delays_the_lines_of_quarantine(tmp_path, reported):
    health = Health(tmp_path, 0, BATCH, 1, True, reported.append)
    with limit_file_size(150):
        go(health, {draw: (bad_sample(draw),) for draw in (3, 20, 40)}, until=4)
    assert sum("cannot be written" in line for line in reported) == 1
    go(health, {70: (bad_sample(70),)}, start=64)
    assert [row["draw"] for row in rows_of(tmp_path)] == [3, 20, 40, 70]


@pytest.mark.parametrize("micro", [8, 16])
@pytest.mark.parametrize("step", [1, 4, 5, 10])  # a window begins with step 5
def test_a_dump_is_of_that_very_step(tmp_path, reported, micro, step):
    go(Health(tmp_path, 0, BATCH, 1, True, reported.append), {}, micro, nonfinite=(step,))
    (path,) = (tmp_path / "nonfinite").iterdir()
    assert path.name == f"{step:08d}.json"
    dump = json.loads(path.read_text())
    draws = range(step * BATCH - BATCH, step * BATCH)
    window = make_plan().window(draws[0] // 64)
    places = [draw - window.first_draw for draw in draws]
    assert dump["draws"] == [
        {
            "draw": draw,
            "sample_id": int(window.sample_ids[place]),
            "distance": float(window.distances[place]),
            "loss": draw / 2,
        }
        for draw, place in zip(draws, places, strict=True)
    ]
    del dump["draws"]
    temperature = "inf" if math.isinf(window.temperature) else window.temperature
    assert dump == {
        "step": step,
        "lr": 0.1,
        "loss": 0.5,
        "grad_norm": "nan",
        "stop": False,
        "bad": 0,
        "measured": [],
        "temperature": temperature,
    }
    assert reported == [f"step {step} was skipped: no finite gradient; its draws are in {path}"]


def test_infinite_and_missing_losses_are_text_in_a_dump(tmp_path, reported):
    health = Health(tmp_path, 0, BATCH, 1, True, reported.append)
    (batch,) = next(iter(make_batches(make_plan(), BATCH, 16)))
    health.observe(batch, torch.tensor([math.inf, -math.inf, math.nan] + [0.0] * 13))
    health.check([outcome(1, grad_norm=math.inf, loss=math.nan)])
    dump = json.loads((tmp_path / "nonfinite" / "00000001.json").read_text(), parse_constant=pytest.fail)
    assert [row["loss"] for row in dump["draws"]][:4] == ["inf", "-inf", "nan", 0.0]
    assert (dump["grad_norm"], dump["loss"]) == ("inf", "nan")


def test_a_dump_that_cannot_be_written_is_a_word_and_no_error(tmp_path, reported):
    with limit_file_size(100):
        go(Health(tmp_path, 0, BATCH, 1, True, reported.append), {}, nonfinite=(2,))
    (line,) = reported
    assert line.startswith("step 2 was skipped: no finite gradient; ")
    assert line.endswith("00000002.json cannot be written (File too large)")
    assert list((tmp_path / "nonfinite").iterdir()) == []


def test_images_are_let_go(tmp_path, reported):
    health = Health(tmp_path, 0, BATCH, 1, True, reported.append)
    (batch,) = next(iter(make_batches(make_plan(), BATCH, 16)))
    health.observe(batch, lose(batch))
    images = weakref.ref(batch.images)
    del batch
    gc.collect()
    assert images() is None
    assert len(health._seen) == 1


def test_reported_steps_are_forgotten(tmp_path, reported):
    health = Health(tmp_path, 0, BATCH, 1, True, reported.append)
    go(health, {})
    assert not health._seen


@pytest.mark.slow
def test_windows_that_differ_stop_both_ranks(tmp_path):
    (_, first), (_, second) = run_ranks(2, watch_a_run, 2, tmp_path, (0, 1), {}, (), 1.0)
    assert first == second
    assert first.startswith("DistributedError: window 0 of the plan differs between the processes: ")
    digests = [make_plan(seed).window(0).digest for seed in (0, 1)]
    assert f"{digests[0]} on rank 0, {digests[1]} on rank 1" in first


@pytest.mark.slow
def test_rank_0_writes_what_all_ranks_met(tmp_path):
    bad = {draw: (bad_sample(draw),) for draw in (3, 12, 20, 31)}
    (reported, error), silent = run_ranks(2, watch_a_run, 2, tmp_path, (0, 0), bad, (2,), 1.0)
    assert (error, silent) == (None, ([], None))
    assert [row["draw"] for row in rows_of(tmp_path)] == [3, 12, 20, 31]
    assert len(reported) == 5
    dump = json.loads((tmp_path / "nonfinite" / "00000002.json").read_text())
    assert [row["draw"] for row in dump["draws"]] == list(range(16, 32))
    assert [row["loss"] for row in dump["draws"]] == [draw / 2 for draw in range(16, 32)]


@pytest.mark.slow
def test_too_many_bad_samples_stop_all_ranks_at_the_same_step(tmp_path):
    bad = {draw: (bad_sample(draw),) for draw in range(40, 51)}  # all of rank 1's share
    (_, first), (_, second) = run_ranks(2, watch_a_run, 2, tmp_path, (0, 0), bad, (), 0.0)
    assert first == second
    assert first.startswith("11 bad samples in 64 draws are more than the 10 allowed")
