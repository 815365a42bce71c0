"""Bad samples are replaced, counted and listed; missing or stale data end a run with an error that names them."""

import json
import os
import shutil
import time

import numpy as np
import pytest
from helpers import ranks
from helpers.bad_samples import flip_byte
from helpers.exhaustive import exhaustive
from helpers.images import write_flat

from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder

pytestmark = pytest.mark.slow

BAD = (20, 33)


@pytest.fixture
def damaged(home):
    index = ShardIndex.load(home / "shards")
    for sample_id in BAD:
        flip_byte(index, sample_id)
    return index


def quarantine(run):
    return [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()]


def test_bad_samples_are_replaced_and_listed_whatever_the_world_size(home, train, damaged):
    said = train()
    lines = quarantine(home / "run")
    # Three passes over 160 samples: each bad one is drawn once per pass, and perhaps as a substitute.
    assert {line["sample_id"] for line in lines} == set(BAD)
    assert len({line["draw"] for line in lines}) == 3 * len(BAD)
    for line in lines:
        assert line["key"] == f"{line['sample_id']:09d}"
        assert line["shard"] == damaged.shards[damaged.shard[line["sample_id"]]]["name"]
        assert line["reason"]
    assert any(lines[0]["key"] in line and lines[0]["shard"] in line for line in said.splitlines())
    train(out="two", size=2)
    assert quarantine(home / "two") == lines


def test_a_resume_appends_to_the_list(home, train, damaged):
    train()
    whole = quarantine(home / "run")
    train("--set", "trainer.checkpoint_every_steps=10", out="broken")
    shutil.rmtree(home / "broken" / "checkpoints" / "00000030")
    shutil.rmtree(home / "broken" / "checkpoints" / "00000020")
    assert "at draw 160, step 10" in train(out="broken")
    assert quarantine(home / "broken") == whole


@pytest.mark.parametrize("size", [2, *exhaustive(1)])
def test_too_many_end_the_run_with_a_summary_and_a_checkpoint(home, train, size):
    index = ShardIndex.load(home / "shards")
    for sample_id in range(0, 160, 5):
        flip_byte(index, sample_id)
    said = train("--max-bad", "0.001", code=1, size=size)
    lines = quarantine(home / "run")
    assert len(lines) > 10
    (complaint,) = {line for line in said.splitlines() if line.startswith("mimcl: ") and "--max-bad" in line}
    for token in (f"{len(lines)} ", " 10 ", "train-000000.tar", "run/quarantine.jsonl"):
        assert token in complaint
    latest = int((home / "run" / "checkpoints" / "latest").read_text())
    assert 0 < latest < 10
    train("--max-bad", "0.5", size=size)
    counted = np.load(home / "run" / "draw_counts.npy", allow_pickle=False)
    assert counted.sum() == 30 * 16


@pytest.mark.parametrize("size", [2, *exhaustive(1)])
def test_a_run_that_ended_because_of_bad_samples_resumes_exactly(home, train, size):
    index = ShardIndex.load(home / "shards")
    for sample_id in range(0, 160, 5):
        flip_byte(index, sample_id)
    rarely = ["--set", "trainer.log_every_steps=100", "--set", "trainer.checkpoint_every_steps=100"]
    train("--max-bad", "1", *rarely, size=size, out="whole")
    train("--max-bad", "0", *rarely, size=size, code=1)
    train("--max-bad", "1", *rarely, size=size)
    assert quarantine(home / "run") == quarantine(home / "whole")
    weights = [home / run / "checkpoints" / "00000030" / "weights.safetensors" for run in ("run", "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_steps_before_a_lost_shard_are_saved_with_their_bad_samples(home, train):
    index = ShardIndex.load(home / "shards")
    for sample_id in range(0, 160, 5):
        flip_byte(index, sample_id)
    rarely = ["--max-bad", "1", "--set", "trainer.log_every_steps=100", "--set", "trainer.checkpoint_every_steps=100"]
    train(*rarely, out="whole")
    shutil.copytree(home / "shards", home / "kept")
    (process,) = ranks.start(home, *train.options, *rarely, before=ranks.shrink_model)
    while not (home / "run" / "quarantine.jsonl").exists() or len(quarantine(home / "run")) < 5:
        assert process.is_alive(), ranks.output(home)
        time.sleep(0.002)
    for shard in (home / "shards").glob("*.tar"):
        os.truncate(shard, 0)  # reads that are still to come fail
    ranks.finish(home, [process], code=1)
    assert "shard shards/train-00000" in ranks.output(home)
    for shard in (home / "kept").glob("*.tar"):
        shutil.copy(shard, home / "shards")
    latest = int((home / "run" / "checkpoints" / "latest").read_text())
    assert 0 < latest < 30
    train(*rarely)
    assert quarantine(home / "run") == quarantine(home / "whole")


@pytest.mark.parametrize("damage", ["missing", "truncated", "folder"])
def test_a_lost_shard_is_named(home, train, damage):
    shard = home / "shards" / "train-000000.tar"
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-1000])
    else:
        shard.unlink()
        if damage == "folder":
            shard.mkdir()
    said = train(code=1)
    complaint = [line for line in said.splitlines() if line.startswith("mimcl: ")]
    assert len(complaint) == 1
    assert f"shard shards/{shard.name}" in complaint[0]


def test_data_packed_again_are_refused_with_both_fingerprints(home, train):
    train("--set", "trainer.checkpoint_every_steps=10")
    before = ShardIndex.load(home / "shards").fingerprint
    shutil.rmtree(home / "shards")
    write_flat(home / "other", 160, seed=9)
    pack(image_folder(home / "other"), home / "shards", PackConfig(), on_progress=lambda count: None)
    after = ShardIndex.load(home / "shards").fingerprint
    shutil.rmtree(home / "run" / "checkpoints" / "00000030")
    said = train(code=1)
    (complaint,) = (line for line in said.splitlines() if line.startswith("mimcl: "))
    for token in ("run/checkpoints/00000020", before, after, "--allow-change index"):
        assert token in complaint
    assert "at draw 320, step 20" in train("--allow-change", "index")


def test_an_index_that_does_not_match_dataset_json_is_refused(home, train):
    shutil.copytree(home / "shards", home / "other")
    write_flat(home / "images", 30)
    pack(image_folder(home / "images"), home / "other", PackConfig(), overwrite=True, on_progress=lambda count: None)
    shutil.copy(home / "other" / "train.arrow", home / "shards" / "train.arrow")
    said = train(code=1)
    assert "train.arrow" in said


def test_a_data_set_of_a_newer_program_is_refused(home, train):
    path = home / "shards" / "dataset.json"
    path.write_text(path.read_text().replace("mimcl-shards/1", "mimcl-shards/2"))
    assert "has format 'mimcl-shards/2', this version reads 'mimcl-shards/1'; upgrade mimcl" in train(code=1)
