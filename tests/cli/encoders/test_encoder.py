"""Encoders loaded from runs and checkpoints, and the folders that results about them are written to."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.images import write_classes
from helpers.small_runs import FEW_PATCHES, train
from helpers.typed import mimcl
from safetensors.torch import load_file, save_file

from mimcl.cli.encoders.encoder import Encoder
from mimcl.model.checkpoint import CheckpointError, load, read_meta, save
from mimcl.model.mae import MaskedAutoencoderViT, encoder_weights


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three steps, with a checkpoint after the second."""
    folder = tmp_path_factory.mktemp("encoder")
    write_classes(folder / "images", {"ant": 20, "bee": 20})
    settings = ("curriculum.name=none", "trainer.checkpoint_every_steps=2", FEW_PATCHES, "masking.name=hpm", "seed=3")
    with pytest.MonkeyPatch.context() as patch:
        assert mimcl(patch, folder, "shard", "images") == 0
        assert mimcl(patch, folder, *train("run", *settings, steps=3)) == 0
    return folder / "run"


def test_a_run_means_its_newest_checkpoint(run):
    encoder, of_checkpoint = Encoder.load(run), Encoder.load(run / "checkpoints" / "00000003")
    assert (encoder.path, encoder.home, encoder.draw) == (run / "checkpoints" / "00000003", run, 192)
    assert (encoder.config.seed, encoder.config.data.root, encoder.config.model.patch_size) == (3, "shards", 16)
    assert of_checkpoint.path == encoder.path
    assert of_checkpoint.home == run
    earlier = Encoder.load(run / "checkpoints" / "00000002")
    assert earlier.draw == 128
    assert not torch.equal(earlier.tensors["cls_token"], encoder.tensors["cls_token"])


def test_the_model_has_the_weights_without_the_masker(run):
    encoder = Encoder.load(run)
    assert any(name.startswith("masker.") for name in encoder.tensors)
    weights = encoder.model().state_dict()
    for name, tensor in weights.items():
        assert torch.equal(tensor, encoder.tensors[name]), name
    fresh = encoder.model(trained=False).state_dict()
    assert not torch.equal(fresh["blocks.0.attn.qkv.weight"], weights["blocks.0.attn.qkv.weight"])
    assert not encoder.model().training


def test_no_random_weights_are_drawn_only_to_be_overwritten(run, monkeypatch):
    encoder, drawn = Encoder.load(run), []
    monkeypatch.setattr(MaskedAutoencoderViT, "initialise", lambda *_: drawn.append(1))
    encoder.model()
    assert not drawn
    only_encoder = replace(encoder, tensors=encoder_weights(encoder.tensors))
    only_encoder.model()
    assert drawn
    with pytest.raises(RuntimeError, match="cls_token"):  # a missing tensor is not left uninitialised
        replace(encoder, tensors={n: t for n, t in encoder.tensors.items() if n != "cls_token"}).model()


def test_a_checkpoint_outside_a_run_has_its_own_results_folder(run, tmp_path):
    shutil.copytree(run / "checkpoints" / "00000002", tmp_path / "taken")
    shutil.copytree(run / "checkpoints" / "00000003", tmp_path / "other" / "taken")
    homes = [Encoder.load(tmp_path / path).home for path in ("taken", "other/taken", "taken")]
    assert re.fullmatch("evaluations/taken-[0-9a-f]{8}", str(homes[0]))
    assert homes[0] == homes[2] != homes[1]


def test_results_folders_of_files_with_one_name_differ_by_weights(run, tmp_path, monkeypatch):
    homes = []
    for step in ("00000002", "00000003"):
        tensors = load_file(run / "checkpoints" / step / "weights.safetensors")
        (tmp_path / step).mkdir()
        save_file(tensors, tmp_path / step / "model.safetensors")
        homes.append(Encoder.load(tmp_path / step / "model.safetensors").home)
    assert all(re.fullmatch("evaluations/model-[0-9a-f]{8}", str(home)) for home in homes)
    assert homes[0] != homes[1]
    shutil.copy(tmp_path / "00000003" / "model.safetensors", tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    assert Encoder.load(Path("model.safetensors")).home == homes[1]


def test_the_training_state_is_read_only_if_meta_lacks_the_number_of_images(run, tmp_path):
    taken = shutil.copytree(run / "checkpoints" / "00000003", tmp_path / "taken")
    meta = read_meta(taken)
    assert meta["samples"] == Encoder.load(taken).samples == 40
    saved = load(taken)
    del meta["samples"]
    older = save(tmp_path, meta["step"], saved.tensors, saved.state, meta, keep_last=1)
    assert "samples" not in read_meta(older)
    assert Encoder.load(older).samples == 40
    for path in (taken, older):
        (path / "state.pt").unlink()
    assert Encoder.load(taken).samples == 40
    with pytest.raises(CheckpointError, match="state.pt"):
        Encoder.load(older)


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(CheckpointError, match="neither"):
        Encoder.load(tmp_path)
