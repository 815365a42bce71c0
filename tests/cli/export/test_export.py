"""`mimcl export` of a real run: load it in timm and transformers as the model card says, and compare."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
import yaml
from helpers.images import picture, write_train_val
from helpers.typed import error_line, mimcl
from safetensors.torch import load_file

from mimcl.cli.encoders.encoder import Encoder
from mimcl.cli.errors import ConfigError
from mimcl.cli.evaluate.eval_options import FeatureOptions
from mimcl.cli.evaluate.knn import knn
from mimcl.cli.export import part
from mimcl.cli.export.export import export
from mimcl.curriculum.masking.mask import keep_lowest
from mimcl.model.checkpoint import CheckpointError
from mimcl.model.export import to_vit
from mimcl.model.mae import MEAN, STD, encoder_weights, patchify, reconstruction_loss
from mimcl.pipeline.augment import evaluation_boxes
from mimcl.pipeline.decode import decode_one

pytestmark = pytest.mark.slow  # trains

SETTINGS = (
    "data.image_size=32",
    "data.batch_size=8",
    "model.decoder_depth=1",
    "model.norm_pix_loss=false",
    "masking.mask_ratio=0.6",
    "optim.base_lr=0.5",
    "seed=5",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """shards/, run/ of ten steps, judged once by knn, and its exports timm/, hf/ and own/."""
    folder = tmp_path_factory.mktemp("home")
    write_train_val(folder / "images", {"ant": 12, "bee": 12}, {"ant": 4, "bee": 4})
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    with pytest.MonkeyPatch.context() as patch:
        for words in (
            ("shard", "images"),
            ("train", "--recipe", "cpu_small", "--epochs", "3", "--decoder", "reference", "--out", "run", *settings),
            ("eval", "knn", "run", "--decoder", "reference"),
            ("export", "run", "--format", "timm", "--out", "timm"),
            ("export", "run", "--format", "hf", "--out", "hf"),
            ("export", "run", "--format", "safetensors", "--out", "own"),
        ):
            assert mimcl(patch, folder, *words) == 0
    return folder


@pytest.fixture
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def ours(home):
    return Encoder.load(home / "run").model()


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def tokens_of(model, images):
    return model.encode(model.embed(patchify(images, model.patch_size)))


def example(folder: Path, number: int = 0) -> str:
    return re.findall(r"```python\n(.+?)```", (folder / "README.md").read_text(), re.S)[number]


def run_example(monkeypatch, folder: Path, images, number: int = 0) -> dict:
    """Run the card's code in the folder of the card and return its variables."""
    monkeypatch.chdir(folder)
    names = {"images": images}
    with torch.no_grad():
        exec(example(folder, number), names)
    return names


@pytest.mark.parametrize("folder", ["timm", "hf", "own"])
def test_the_cards_code_gives_the_same_features(home, ours, images, folder, monkeypatch):
    found = run_example(monkeypatch, home / folder, images)
    torch.testing.assert_close(found["features"], tokens_of(ours, images)[:, 1:].mean(dim=1), atol=1e-5, rtol=0)
    assert found["features"].std() > 0.01
    if folder == "timm":
        torch.testing.assert_close(found["cls_token"], tokens_of(ours, images)[:, 0], atol=1e-5, rtol=0)


def test_the_second_example_is_the_whole_autoencoder(home, images, monkeypatch):
    assert run_example(monkeypatch, home / "hf", images, 1)["loss"] > 0


def test_the_command_prints_the_call_and_the_difference(here, tmp_path, capsys, monkeypatch, images, ours):
    out = tmp_path / "new" / "it is"
    capsys.readouterr()
    assert mimcl(monkeypatch, here, "export", "run/checkpoints/00000009", "--out", str(out)) == 0
    wrote, call, checked = capsys.readouterr().out.splitlines()
    assert wrote == f"wrote {out}/: README.md, config.json, model.safetensors"
    model = eval(call, {"timm": timm}).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(images), tokens_of(ours, images), atol=1e-5, rtol=0)
    exact, rounded = re.match(r"maximum difference: (\S+) in float64, (\S+) in float32 \(all tokens", checked).groups()
    assert float(exact) < 1e-10
    assert float(rounded) < 1e-5
    assert sorted(path.name for path in out.parent.iterdir()) == ["it is"]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_hugging_faces_loss_for_the_same_noise(here, ours, images, attention):
    load = {"attn_implementation": attention}
    theirs = transformers.ViTMAEForPreTraining.from_pretrained("hf/vit_mae", **load).eval()
    noise = torch.rand(4, 16, generator=torch.Generator().manual_seed(8))
    mask = keep_lowest(noise, 0.6)
    with torch.no_grad():
        output = ours(patchify(images, 8), mask)
        found = theirs(images, noise=noise)
    torch.testing.assert_close(found.loss, reconstruction_loss(output, mask.mask).mean())
    torch.testing.assert_close(found.logits, output.pred, atol=1e-5, rtol=0)
    encoder = transformers.AutoModel.from_pretrained("hf/vit", add_pooling_layer=False, **load).eval()
    with torch.no_grad():
        tokens = encoder(images).last_hidden_state
    torch.testing.assert_close(tokens, tokens_of(ours, images), atol=1e-5, rtol=0)


def test_a_folder_that_timm_loads_knows_its_normalisation(here, images, ours):
    model = timm.create_model("local-dir:timm", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(images), tokens_of(ours, images), atol=1e-5, rtol=0)
    found = timm.data.resolve_model_data_config(model)
    assert tuple(found["mean"]) == MEAN
    assert tuple(found["std"]) == STD
    assert (found["crop_pct"], found["interpolation"], found["input_size"]) == (0.875, "bicubic", (3, 32, 32))


@pytest.mark.parametrize("folder", ["vit", "vit_mae"])
def test_hugging_faces_preprocessor_cuts_the_evaluation_crop(here, folder):
    processor = transformers.AutoImageProcessor.from_pretrained(here / "hf" / folder)
    image = picture(4, 120, 90)
    found = processor(image, return_tensors="pt").pixel_values[0]
    image.save(here / "picture.png")
    (box,) = evaluation_boxes(np.array([120]), np.array([90])).tolist()
    pixels = decode_one(np.frombuffer((here / "picture.png").read_bytes(), np.uint8), box, False, 32)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    expected = (torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255 - mean) / std
    assert found.shape == expected.shape
    # Resized before it is cut, not after: half a pixel of the result at most.
    assert (found - expected).abs().mean() < 0.1
    assert (found.flip(2) - expected).abs().mean() > 0.3


def test_the_card_has_training_settings_and_results(here):
    text = (here / "timm" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "timm"
    assert "license" not in yaml.safe_load(front)
    rows = dict(re.findall(r"^\| ([a-z ]+) \| (.+) \|$", body, re.M))
    assert rows["recipe"] == "cpu_small"
    assert rows["data"] == "shards, 24 images"
    assert rows["trained for"] == "3 of 3 epochs: 72 draws in 9 steps of 8"
    assert rows["masking"] == "random, 0.6 of the patches"
    assert rows["target"] == "pixels"
    assert rows["seed"] == "5"
    line = json.loads((here / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert rows["knn"].startswith("shards | k 20, pool mean, train 24, val 8 | nn ")
    assert f"nn {100 * line['values']['nn']:.1f} %" in rows["knn"]
    assert all(str(value) in body for value in (*MEAN, *STD))
    assert str(here) not in text  # a card is published
    assert re.search(r"\S+e-\d+ in float64 .*timm \d", body)


def test_other_checkpoints_results_are_not_in_the_card(here, tmp_path, monkeypatch):
    run = shutil.copytree(here / "run", tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(lines.replace("00000009", "00000004") + '{"evaluation": "kn')
    export(run, tmp_path / "out", target="safetensors")
    assert "have not been evaluated" in (tmp_path / "out" / "README.md").read_text()


def test_an_export_can_be_loaded_again(here):
    weights = load_file("own/weights.safetensors")
    run = Encoder.load(Path("run"))
    for path in ("timm/model.safetensors", "timm", "hf/vit", "hf/vit_mae", "own/weights.safetensors"):
        encoder = Encoder.load(Path(path))
        assert (encoder.config.model.name, encoder.config.model.patch_size) == ("vit_tiny", 8)
        assert encoder.config.data.image_size == 32
        expected = weights if encoder.has_decoder else encoder_weights(weights)
        assert encoder.tensors.keys() == expected.keys()
        assert all(torch.equal(encoder.tensors[name], run.tensors[name]) for name in expected)
    assert encoder.has_decoder


def test_the_kind_of_target_and_the_mask_ratio_are_loaded_again(here):
    for path in ("own/weights.safetensors", "hf/vit_mae", "hf/vit_mae/model.safetensors"):
        encoder = Encoder.load(Path(path))
        assert encoder.config.model.norm_pix_loss is False
        assert encoder.config.masking.mask_ratio == 0.6
        assert encoder.note == ""  # each names the constants


def test_our_own_check_compares_the_loss(here, tmp_path, monkeypatch):
    monkeypatch.setattr("mimcl.model.weight_files.METADATA", ("mask_ratio",))  # the kind of target is not read
    with pytest.raises(CheckpointError, match="safetensors .*differs from run by"):
        export(Path("run"), tmp_path / "out", target="safetensors")


def test_a_run_exported_from_its_folder_and_evaluated_while_it_trains(here, tmp_path, monkeypatch):
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    words = ("train", "--recipe", "cpu_small", "--epochs", "1", "--decoder", "reference", "--online-knn", "1")
    assert mimcl(monkeypatch, here, *words, "--out", str(tmp_path / "known"), *settings) == 0
    lines = [json.loads(line) for line in (tmp_path / "known" / "metrics.jsonl").read_text().splitlines()]
    assert any("evaluation" in line and "checkpoint" not in line for line in lines)
    assert mimcl(monkeypatch, tmp_path / "known", "export", ".", "--out", "../out") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\n# known\n" in card
    assert "have not been evaluated" in card


def test_a_file_of_weights_has_the_evaluation_results_of_its_run(here):
    of_run = knn(Path("run"), options=FeatureOptions(decoder="reference"))
    of_file = knn(Path("hf/vit"), Path("shards"), options=FeatureOptions(decoder="reference"))
    assert of_file.trained == of_run.trained
    assert (here / Encoder.load(Path("hf/vit")).home / "metrics.jsonl").exists()


@pytest.mark.slow
def test_assumed_constants_are_printed(here, tmp_path, monkeypatch, capsys):
    bare = shutil.copy("timm/model.safetensors", tmp_path / "bare.safetensors")
    line = "does not say how pixels are normalised"
    for path, expected in ((bare, True), ("timm/model.safetensors", False)):
        capsys.readouterr()
        words = ("eval", "knn", str(path), "--data", "shards", "--decoder", "reference")
        assert mimcl(monkeypatch, here, *words) == 0
        assert (line in " ".join(capsys.readouterr().out.split())) == expected


@pytest.mark.slow
def test_prototypes_of_a_file_of_weights(here, monkeypatch, capsys):
    built = {}
    for name, path in (("run", "run"), ("file", "timm/model.safetensors")):
        words = ("--features", f"mae:{path}", "--k", "3", "--decoder", "reference", "--name", name)
        assert mimcl(monkeypatch, here, "prototypes", "build", *words) == 0
        built[name] = np.load(here / "shards" / "prototypes" / name / "centroids.npy")
    assert "features: mae:timm/model.safetensors" in capsys.readouterr().out
    np.testing.assert_array_equal(built["run"], built["file"])


def test_a_file_without_a_decoder(here, tmp_path, monkeypatch, capsys):
    torch.save({"model": load_file("timm/model.safetensors")}, tmp_path / "mae_pretrain.pth")
    capsys.readouterr()
    words = ("export", str(tmp_path / "mae_pretrain.pth"), "--format", "hf", "--out", str(tmp_path / "out"))
    assert mimcl(monkeypatch, here, *words) == 0
    assert f"vit_mae skipped: {tmp_path}/mae_pretrain.pth has no decoder" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "vit"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Converted from mae_pretrain.pth" in card


def swapped(tensors):
    """Keys for queries in one block."""
    named = to_vit(tensors)
    one, other = (f"encoder.layer.3.attention.attention.{part}.weight" for part in ("query", "key"))
    return named | {one: named[other], other: named[one]}


def test_weights_that_load_differently_are_not_kept(here, tmp_path, monkeypatch):
    monkeypatch.setattr("mimcl.model.export.to_vit", swapped)
    with pytest.raises(CheckpointError, match=r"hf .*differs from run by \S+, more than 1e-05"):
        export(Path("run"), tmp_path / "out", target="hf")
    assert not list(tmp_path.iterdir())


def test_the_limit_is_for_float64(here, tmp_path, monkeypatch):
    differences = {"found": [1.1e-5, 0.0]}
    monkeypatch.setattr(part, "differences", lambda *_: differences["found"])
    with pytest.raises(CheckpointError, match="differs from run by 1.1e-05"):
        export(Path("run"), tmp_path / "out")
    for found in ([0.9e-5, 0.0], [0.0, 1.1e-5]):
        differences["found"] = found
        result = export(Path("run"), tmp_path / f"out{found[1]}")
        assert [result.difference, result.rounding] == found


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ["export", "run", "--format", "onnx", "--out", "new"],
            2,
            "--format",
        ),
        (["export", "run", "--out", "timm"], 2, "timm exists"),
        (["export", "run", "--out", "picture"], 2, "picture exists"),
        (["export", "run", "--out", "picture/new"], 2, "picture/new cannot be written"),
        (["export", "run"], 2, "nowhere to export to; give --out FOLDER, --push REPO, or both"),
        (["export", "shards", "--out", "new"], 1, "shards is neither"),
        (["export", "shards/train.arrow", "--out", "new"], 1, "train.arrow cannot be read as weights"),
        (["export", "hf", "--out", "new"], 1, "hf is neither"),
    ],
)
def test_bad_input_is_one_line(here, monkeypatch, capfd, words, code, message):
    Path("picture").write_text("")
    before = set(here.iterdir())
    assert mimcl(monkeypatch, here, *words) == code
    complaint = error_line(capfd.readouterr().err)
    assert message in complaint
    assert set(here.iterdir()) == before


def test_without_transformers(here, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"transformers.*mimcl\[hf\]"):
        export(Path("run"), tmp_path / "empty", target="hf")


def test_a_full_disk(here, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(part, "save_file", full)
    with pytest.raises(ConfigError, match="cannot be written .*No space left on device"):
        export(Path("run"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_cross_attention_decoder_stays_with_mimcl(home, tmp_path, monkeypatch, capsys):
    more = ("--set", "model.decoder=cross", "--set", "model.predict_share=0.5", "--epochs", "0.5")
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    arguments = ("--recipe", "cpu_small", "--decoder", "reference", "--out", str(tmp_path / "run"), *settings, *more)
    assert mimcl(monkeypatch, home, "train", *arguments) == 0
    ours = Encoder.load(tmp_path / "run")
    capsys.readouterr()
    for target in ("timm", "hf", "safetensors"):
        out = tmp_path / target
        assert mimcl(monkeypatch, home, "export", str(tmp_path / "run"), "--format", target, "--out", str(out)) == 0
        note = f"vit_mae skipped: {tmp_path / 'run'} has a cross-attention decoder"
        assert (note in " ".join(capsys.readouterr().out.split())) == (target == "hf")
        assert ("with cross-attention" in (out / "README.md").read_text()) == (target == "safetensors")
    encoder = load_file(tmp_path / "timm" / "model.safetensors")
    assert encoder.keys() == encoder_weights(ours.tensors).keys()
    again = Encoder.load(tmp_path / "safetensors" / "weights.safetensors")
    assert (again.config.model.decoder, again.config.model.decoder_depth) == ("cross", 1)
    assert again.tensors.keys() == ours.tensors.keys()
    assert all(torch.equal(again.tensors[name], ours.tensors[name]) for name in ours.tensors)
