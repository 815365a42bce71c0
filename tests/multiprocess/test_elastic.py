"""Stream and training are the same for any number of processes; a resume may use another number."""

import numpy as np
import pytest
from helpers import ranks
from helpers.exhaustive import exhaustive
from helpers.small_runs import BATCH, EVERY, STEPS, assert_close_runs, assert_same_run, back_to, metrics, train

pytestmark = pytest.mark.slow

# Between numbers of processes only the order of float32 sums differs: of the losses by so much over 20 steps.
TOLERANCE = 1e-5
# Between decoders pixels differ as well.
OF_DECODERS = 1e-3

STREAMS = {  # 8 steps under the curriculum, then 12 in the uniform phase
    "random": ("masking.name=random", "curriculum.resampling=multinomial"),
    "block": ("masking.name=block", "curriculum.resampling=systematic"),
    "grid": (
        "masking.name=grid",
        "curriculum.resampling=systematic",
        "curriculum.uniform=replacement",
        "curriculum.order=shard",
    ),
    "green": ("masking.name=green", "curriculum.order=shard", "curriculum.resolution=16:0.3,24:0.3,32"),
}


@pytest.fixture(scope="module")
def trained(home, tmp_path_factory):
    """Train once per setting; returns the run folder, beside the recorded batches of the ranks."""
    folder, done = tmp_path_factory.mktemp("runs"), {}

    def trained(masking="random", size=1, micro=64, prefetch=4, decoder="reference"):
        key = (masking, size, micro, prefetch, decoder)
        if key not in done:
            out = folder / "-".join(map(str, key))
            settings = (*STREAMS[masking], f"data.micro_batch_size={micro}", f"data.prefetch={prefetch}")
            arguments = train(out, *settings, decoder=decoder)
            ranks.run(home, *arguments, size=size, seen=out.with_suffix(".seen"), before=ranks.shrink_model)
            done[key] = out
        return done[key]

    return trained


@pytest.mark.parametrize(
    ("masking", "size", "micro", "prefetch", "decoder"),
    [
        ("random", 3, 64, 4, "reference"),  # 21, 21 and 22 draws a step
        ("grid", 2, 7, 9, "dali-cpu"),
        ("green", 3, 8, 4, "reference"),  # the side changes after steps 6 and 12
        *exhaustive(
            ("random", 2, 64, 4, "reference"),
            ("random", 4, 5, 1, "reference"),
            ("block", 3, 8, 1, "dali-cpu"),
            ("green", 2, 64, 1, "dali-cpu"),
        ),
    ],
)
def test_draws_masks_and_losses_are_those_of_one_process(trained, masking, size, micro, prefetch, decoder):
    one, several = trained(masking), trained(masking, size, micro, prefetch, decoder)
    expected, found = ranks.received(one.with_suffix(".seen")), ranks.received(several.with_suffix(".seen"))
    assert found["draws"].tolist() == list(range(STEPS * BATCH))
    for name in ("draws", "sample_ids", "keys", "boxes", "flips", "masks"):
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    tolerance = TOLERANCE if decoder == "reference" else OF_DECODERS
    losses, of_one = (seen["losses"].reshape(STEPS, BATCH).mean(axis=1) for seen in (found, expected))
    np.testing.assert_allclose(losses, of_one, rtol=tolerance)
    assert of_one[-1] < 0.95 * of_one[0]  # and they learned something
    assert_close_runs(one, several, tolerance)


def test_the_streams_are_not_the_same(trained):
    random, block, grid, _ = (ranks.received(trained(masking).with_suffix(".seen")) for masking in STREAMS)
    assert (random["masks"] != block["masks"]).any()
    assert (block["masks"] != grid["masks"]).any()
    assert (random["sample_ids"] != block["sample_ids"]).any()
    assert (block["sample_ids"] != grid["sample_ids"]).any()


def test_a_window_logs_its_reads(trained):
    for masking in STREAMS:
        windows = [line for line in metrics(trained(masking)) if "window" in line]
        assert all(("requests" in line) == (masking in ("grid", "green")) for line in windows)
    for line in windows:
        assert line["shards_touched"] == 1  # of 40 small images there is one
        assert 1 <= line["requests"] <= 40 * STEPS
        assert 1 <= line["read_amplification"] <= 1.15


@pytest.mark.parametrize(
    ("before", "after", "stream"),
    [
        (3, 2, "random"),
        (3, 3, "random"),
        (1, 2, "green"),
        *exhaustive((1, 3, "random"), (2, 2, "random"), (1, 2, "grid")),
    ],
)
def test_a_checkpoint_resumes_with_another_number_of_processes(home, trained, tmp_path, before, after, stream):
    unbroken = trained(stream, size=before)
    run = back_to(EVERY, unbroken, tmp_path / "run")
    ranks.run(home, "train", "--out", str(run), "--resume", size=after, before=ranks.shrink_model)
    assert "at draw 512, step 8" in ranks.output(home)
    if before == after:
        assert_same_run(run, unbroken)
    else:
        assert_close_runs(run, unbroken, TOLERANCE)


@pytest.mark.parametrize("setting", ["trainer.log_every_steps=3", *exhaustive("optim.base_lr=0.01")])
def test_processes_with_different_configurations_are_refused(home, tmp_path, setting):
    """Otherwise another learning rate would change the weights, and other reports the number of messages."""
    port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ranks.free_port()), "WORLD_SIZE": "2"}
    first = ranks.start(home, *train(tmp_path / "run"), **port, RANK="0", before=ranks.shrink_model)
    second = ranks.start(home, *train(tmp_path / "run", setting), **port, RANK="1", before=ranks.shrink_model)
    ranks.finish(home, first + second, code=1)
    for rank in range(2):
        said = (home / f"rank-{rank}.log").read_text()
        assert "configuration" in said
        assert len(said.splitlines()) == 1
