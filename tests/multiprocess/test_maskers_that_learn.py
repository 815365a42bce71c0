"""HPM and CL-MAE in whole runs: over several processes the losses are those of one, and a resume is exact."""

import json
import re

import numpy as np
import pytest
from helpers import ranks
from helpers.exhaustive import exhaustive
from helpers.small_runs import EVERY, assert_same_run, back_to, train

pytestmark = pytest.mark.slow

# Sums in another order move a loss by 1e-7; the rest is for two scores that may change places on another machine.
TOLERANCE = 2e-4
MASKERS = {
    "learned": ("masking.name=learned", "learned_masking.depth=1", "learned_masking.second_every=2"),
    "hard-patches": ("masking.name=hard-patches", "hard_patches.start_share=0.3", "hard_patches.start_momentum=0.5"),
}
# Of 16 patches 12 are removed, of which 7 are predicted.
MASKERS |= {
    f"{name}-cross": (*settings, "model.decoder=cross", "model.predict_share=0.6") for name, settings in MASKERS.items()
}
SOME_MASKERS = ["learned", "hard-patches-cross", *exhaustive("learned-cross", "hard-patches")]


@pytest.fixture(scope="module")
def trained(home, tmp_path_factory):
    folder, done = tmp_path_factory.mktemp("runs"), {}

    def trained(masking, size, micro=64, group=8):
        key = (masking, size, micro, group)
        if key not in done:
            done[key] = out = folder / "-".join(map(str, key))
            settings = (*MASKERS[masking], f"data.micro_batch_size={micro}", f"learned_masking.group_size={group}")
            ranks.run(home, *train(out, *settings), size=size, before=ranks.shrink_model)
        return done[key]

    return trained


def losses(run) -> list[float]:
    return [line["loss"] for line in map(json.loads, (run / "metrics.jsonl").open()) if "step" in line]


@pytest.mark.parametrize("masking", SOME_MASKERS)
@pytest.mark.parametrize(("size", "micro"), [(1, 17), (3, 64)])  # 2 groups of 8; 2, 3 and 3 groups
def test_neither_processes_nor_micro_batches_change_the_losses(trained, masking, size, micro):
    np.testing.assert_allclose(losses(trained(masking, size, micro)), losses(trained(masking, 1)), rtol=TOLERANCE)


def test_the_group_size_changes_the_losses(trained):
    in_other_groups, of_one = (losses(trained("learned", 1, group=group)) for group in (64, 8))
    assert np.abs(np.divide(in_other_groups, of_one) - 1).max() > 5 * TOLERANCE


@pytest.mark.parametrize("masking", SOME_MASKERS)
@pytest.mark.parametrize("size", [3, *exhaustive(1)])
def test_a_resume_continues_bit_for_bit(home, trained, tmp_path, masking, size):
    unbroken = trained(masking, size)
    run = back_to(EVERY, unbroken, tmp_path / "run")
    ranks.run(home, "train", "--out", str(run), "--resume", size=size, before=ranks.shrink_model)
    assert_same_run(run, unbroken)


def test_groups_that_do_not_fit_the_batch_are_bad_usage(home, tmp_path):
    arguments = train(tmp_path / "run", "masking.name=learned", "learned_masking.group_size=7")
    ranks.run(home, *arguments, code=2)
    assert re.search(r"data\.batch_size.*\b64\b.*\b7\b", ranks.output(home))
