"""A run that is killed repeatedly, at any point, ends with the same bits as an uninterrupted run."""

import json
import os
import random
import re
import shlex
import signal
import time
from pathlib import Path

import pytest
from helpers import killed, ranks, torchruns
from helpers.exhaustive import exhaustive
from helpers.images import write_classes
from helpers.small_runs import back_to, steps_of

pytestmark = pytest.mark.slow

OPTIONS = shlex.split("""train --data shards --recipe cpu_small --curriculum proto --decoder reference --epochs 6
    --set data.batch_size=16 --set data.image_size=32 --set model.patch_size=16 --set model.decoder_width=32
    --set model.decoder_depth=1 --set curriculum.share=0.5 --set curriculum.window=64
    --set trainer.checkpoint_every_steps=5 --set trainer.log_every_steps=3 --set report=false --resume""")
# 40 images: 240 draws in 15 steps. Windows begin after steps 4, 8 (as do the uniform passes) and 12; epochs end in
# steps 3, 5, 8, 10 and 13, passes in 11 and 13; checkpoints are saved at 5, 10 and 15.
STEPS = 15
# The temperatures of windows 2 and 3 depend on the losses of windows 0 and 1.
LEARNED = shlex.split(
    "--temp-schedule learned --set curriculum.share=1 --set curriculum.learned_eta=0.2 --set optim.warmup_epochs=0"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A packed data set with prototypes."""
    folder = tmp_path_factory.mktemp("home")
    write_classes(folder / "images", {"ant": 20, "bee": 20})
    ranks.run(folder, "shard", "images")
    ranks.run(folder, "prototypes", "build", "--features", "pixels", "--k", "4")
    return folder


@pytest.fixture(scope="module")
def unbroken(home):
    """The result of an uninterrupted run, by world size, precision and further options; computed once each."""
    known = {}

    def result_of(size: int, precision: str, *more: str) -> dict:
        key = (size, precision, *more)
        if key not in known:
            out = f"unbroken-{size}-{precision}-{len(known)}"
            before = ranks.shrink_model_and_keep_checkpoints
            ranks.run(home, *options(out, precision), *more, size=size, before=before)
            known[key] = out, result(home / out)
        return known[key][1]

    result_of.folder = lambda *key: home / known[key][0]

    return result_of


def options(out: str, precision: str) -> list[str]:
    return [*OPTIONS, "--out", out, "--set", f"trainer.precision={precision}"]


def result(run: Path) -> dict:
    """Return what must not differ: weights, optimizer state, draw counts, metrics without timings."""
    newest = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    meta = json.loads((newest / "meta.json").read_text())
    return {
        "step": meta["step"],
        "digests": meta["sha256"],
        "draw_counts": (run / "draw_counts.npy").read_bytes(),
        "lines": [{k: v for k, v in line.items() if k not in ("images_per_second", "data_wait")} for line in lines],
    }


def dies(home: Path, *arguments: str, size: int = 1, rank: int = 0, at: str) -> None:
    """Run until `rank` has killed itself and the others have exited by themselves."""
    processes = killed.start(home, *arguments, at=at, rank=rank, size=size)
    for process in processes:
        process.join(60)
    codes = [process.exitcode for process in processes]
    assert codes[rank] == -signal.SIGKILL, f"{at}: {codes}\n" + ranks.output(home, size)
    assert all(code in (1, -signal.SIGKILL) for code in codes), codes


@pytest.mark.parametrize(
    ("size", "precision", "order"),
    [
        (2, "bfloat16", "shard"),
        *exhaustive((1, "bfloat16", "shard"), (3, "bfloat16", "shard")),
        *exhaustive(*((size, "float32", "random") for size in (1, 2, 3))),
    ],
)
def test_killed_several_times_at_chosen_steps(home, unbroken, size, precision, order):
    # Before the first checkpoint; at the end of the curriculum; while a checkpoint is being written; at the last step.
    out = f"steps-{size}-{precision}"
    for number, step in enumerate((3, 8, 11, STEPS)):
        dies(home, *options(out, precision), "--order", order, size=size, rank=number % size, at=f"step {step}")
    ranks.run(home, *options(out, precision), "--order", order, size=size, before=ranks.shrink_model)
    more = ("--order", order) if order != "random" else ()  # the float32 runs serve other tests too
    assert result(home / out) == unbroken(size, precision, *more)
    windows = [line for line in result(home / out)["lines"] if "window" in line]
    assert all(("requests" in line) == (order == "shard") for line in windows)


@pytest.mark.parametrize("size", [2, *exhaustive(1)])
def test_a_learned_temperature_resumes(home, unbroken, size):
    """Resume within window 1, at its end, and one step later, when its sums are complete."""
    out, every = f"learned-{size}", ("--set", "trainer.checkpoint_every_steps=1")
    for number, step in enumerate((7, 9, 10)):
        dies(home, *options(out, "float32"), *LEARNED, *every, size=size, rank=number % size, at=f"step {step}")
    ranks.run(home, *options(out, "float32"), *LEARNED, *every, size=size, before=ranks.shrink_model)
    assert result(home / out) == unbroken(size, "float32", *LEARNED, *every)
    windows = [line for line in result(home / out)["lines"] if "window" in line]
    temperatures = [line["temperature"] for line in windows]
    assert temperatures[0] == temperatures[1] < temperatures[2] < temperatures[3]
    assert [line["temperature_gradient_entropy"] < 0 for line in windows] == [False, False, True, True]
    assert all(line["temperature_gradient_loss"] for line in windows[2:])


@pytest.mark.parametrize(
    ("masking", "schedule"),
    [
        ("learned", "cosine"),
        ("hard-patches", "learned"),
        *exhaustive(("learned", "learned"), ("hard-patches", "cosine")),
        *exhaustive(*((masking, schedule) for masking in ("random", "block") for schedule in ("cosine", "learned"))),
    ],
)
def test_a_resolution_curriculum_resumes_before_and_after_its_changes(home, unbroken, masking, schedule):
    """Sides of 16, 24 and 32 pixels, which change after steps 5 and 9: grids of 2 x 2, 3 x 3 and 4 x 4 patches."""
    more = ["--resolution", "16:0.3,24:0.3,32", "--masking", masking, "--set", "model.patch_size=8"]
    more += ["--set", "learned_masking.group_size=4"] + (LEARNED if schedule == "learned" else [])
    out, every = f"sides-{masking}-{schedule}", ("--set", "trainer.checkpoint_every_steps=2")
    for step in (5, 7, 11):
        dies(home, *options(out, "float32"), *more, *every, at=f"step {step}")
    ranks.run(home, *options(out, "float32"), *more, *every, before=ranks.shrink_model)
    assert result(home / out) == unbroken(1, "float32", *more, *every)
    steps = [line for line in result(home / out)["lines"] if "step" in line]
    sides = {line["step"]: line["image_size"] for line in steps}
    assert sides == {1: 16, 3: 16, 6: 24, 9: 24, 12: 32, 15: 32}
    costs = [line["relative_cost"] for line in steps]
    assert costs == sorted(costs)
    assert (costs[0] < 0.5, costs[-1]) == (True, 1)


def test_a_learned_temperature_resumes_with_another_number_of_processes(home, unbroken):
    often = (*LEARNED, "--set", "trainer.checkpoint_every_steps=1", "--set", "trainer.keep_last=99")
    expected = unbroken(1, "float32", *often)["lines"]
    complete = unbroken.folder(1, "float32", *often)
    within = [int(path.name) for path in complete.glob("checkpoints/0*") if 4 < int(path.name) < 8]  # window 1
    run = back_to(max(within), complete, home / "elastic")
    ranks.run(home, *options(run.name, "float32"), *often, size=2, before=ranks.shrink_model)
    assert f"draw {16 * max(within)}" in ranks.output(home)
    found = result(run)["lines"]
    assert len(found) == len(expected)
    for line, match in zip(found, expected, strict=True):
        for key in line.keys() & {"temperature", "effective_fraction", "loss", "temperature_gradient_loss"}:
            assert line[key] == pytest.approx(match[key], rel=1e-4), key


def test_a_checkpoint_without_a_learned_temperature_is_refused(home, unbroken):
    unbroken(1, "float32")
    run = back_to(STEPS, unbroken.folder(1, "float32"), home / "scheduled")
    more = (*LEARNED[:2], "--allow-change", "curriculum.temp_schedule")
    ranks.run(home, *options(run.name, "float32"), *more, code=1, before=ranks.shrink_model)
    said = ranks.output(home)
    assert "00000015" in said
    assert "curriculum.temp_schedule" in said
    assert len(said.splitlines()) == 2  # including the rank's heading


def test_a_stop_and_an_error_end_a_run_that_waits_for_a_temperature(home):
    long = (*LEARNED, "--epochs", "4000")
    (process,) = ranks.start(home, *options("asked", "float32"), *long, before=ranks.shrink_model)
    torchruns.until(lambda: len(steps_of(home / "asked")) > 5, "some steps", home / "rank-0.log")
    os.kill(process.pid, signal.SIGTERM)
    ranks.finish(home, [process], code=75)
    # The last step counted is the one that window 3 waits for; the stream is at window 2 then.
    diverging = ("--max-nonfinite", "6", "--set", "optim.base_lr=1e30", "--set", "optim.warmup_epochs=0")
    (process,) = ranks.start(home, *options("diverged", "float32"), *long, *diverging, before=ranks.shrink_model)
    ranks.finish(home, [process], code=1)
    assert re.search(r"\b6\b.*step 7\b", ranks.output(home))
    dumped = (home / "diverged" / "nonfinite" / "00000002.json").read_text()
    assert json.loads(dumped, parse_constant=pytest.fail)["measured"][2] == "nan"  # the sum of losses


@pytest.mark.parametrize("further", [4, *exhaustive(1)])
def test_killed_at_every_write_in_turn(home, unbroken, further):
    """Each attempt gets so many writes further than the one before, until one completes."""
    attempts, number, out = 0, 1, f"writes-{further}"
    while True:
        processes = killed.start(home, *options(out, "float32"), at=f"write {number}")
        processes[0].join(60)
        if processes[0].exitcode == 0:
            break
        assert processes[0].exitcode == -signal.SIGKILL, ranks.output(home)
        attempts, number = attempts + 1, number + further
        assert attempts < 100
    assert number > 11  # configuration, metrics, draw counts, a checkpoint's three files and folder, latest
    assert result(home / out) == unbroken(1, "float32")


def test_killed_at_random_moments(home, unbroken):
    chance = random.Random(7)
    for _ in range(6):
        (process,) = ranks.start(home, *options("random", "float32"), before=ranks.shrink_model)
        time.sleep(chance.uniform(0.1, 1.5))
        process.kill()
        process.join()
    ranks.run(home, *options("random", "float32"), before=ranks.shrink_model)
    assert result(home / "random") == unbroken(1, "float32")


@pytest.mark.parametrize("name", ["state.pt", *exhaustive("weights.safetensors", "meta.json")])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(home, unbroken, name):
    out = f"damaged-{name}"
    ranks.run(home, *options(out, "float32"), before=ranks.shrink_model)
    *_, before, newest = sorted(path for path in (home / out / "checkpoints").glob("0*"))
    content = bytearray((newest / name).read_bytes())
    content[len(content) // 2] ^= 1
    (newest / name).write_bytes(content)
    ranks.run(home, *options(out, "float32"), before=ranks.shrink_model)
    said = ranks.output(home)
    assert f"checkpoints/{newest.name} " in said
    assert f"draw {16 * int(before.name)}, step {int(before.name)}" in said
    assert result(home / out) == unbroken(1, "float32")


def test_with_all_checkpoints_damaged_the_run_does_not_start_again(home, unbroken):
    unbroken(1, "float32")
    run = back_to(10, unbroken.folder(1, "float32"), home / "ruined")
    states = list(run.glob("checkpoints/*/state.pt"))
    assert len(states) == 2
    for state in states:
        state.write_bytes(b"")
    ranks.run(home, *options("ruined", "float32"), code=1, before=ranks.shrink_model)
    assert "ruined/checkpoints" in ranks.output(home)


def test_a_finished_run_has_nothing_left_to_do(home, unbroken):
    before = unbroken(1, "float32")
    run = unbroken.folder(1, "float32")
    ranks.run(home, *options(run.name, "float32"), before=ranks.shrink_model)
    assert result(run) == before


def test_two_processes_do_not_write_to_one_run(home):
    first = ranks.start(home, *options("shared", "float32"), "--epochs", "200", before=ranks.shrink_model)
    while not (home / "shared" / "metrics.jsonl").exists():
        time.sleep(0.01)
    try:
        second = ranks.start(home, *options("shared", "float32"), "--epochs", "200", before=ranks.shrink_model)
        second[0].join(60)
        assert second[0].exitcode == 2
        assert "another process" in ranks.output(home)
    finally:
        first[0].kill()
