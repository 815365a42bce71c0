"""`mimcl export` of a fine-tuned classifier: timm and transformers load it, and classify as we do."""

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
from helpers import finetuned
from helpers.images import picture
from helpers.typed import error_line, mimcl
from safetensors.torch import load_file, save_file

from mimcl.cli.encoders.finetuned import FineTuned
from mimcl.cli.errors import ConfigError
from mimcl.cli.export.export import export
from mimcl.model import export as layouts
from mimcl.model.checkpoint import CheckpointError
from mimcl.model.evaluate.finetune import normalise
from mimcl.model.hf_names import from_beit, to_beit
from mimcl.model.mae import MEAN, STD
from mimcl.pipeline.augment import evaluation_boxes
from mimcl.pipeline.decode import decode_one

pytestmark = pytest.mark.slow  # trains

CLASSES = ["blue", "green", "red"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """run/ with a fine-tuning, and its exports timm/, hf/ and own/."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        finetuned.write_run(folder, patch)
        made = str(finetuned.finetune(folder, patch).relative_to(folder))
        for target, out, words in (
            ("timm", "timm", [made]),
            ("hf", "hf", ["run", "--classifier"]),
            ("safetensors", "own", [f"{made}/weights.safetensors"]),
        ):
            assert mimcl(patch, folder, "export", *words, "--format", target, "--out", out) == 0
    picture(4, 120, 90).save(folder / "image.jpg", quality=95)
    return folder


@pytest.fixture
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def ours(home):
    (folder,) = (home / "run" / "evaluation" / "finetune").iterdir()
    return FineTuned.load(folder)


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_timm_loads_the_folder_with_classes_and_constants(here, ours, images):
    model = timm.create_model("local-dir:timm", pretrained=True).eval()
    torch.testing.assert_close(model(images), ours.weights.model()(images), atol=1e-5, rtol=0)
    known = model.pretrained_cfg
    assert list(known["label_names"]) == CLASSES
    assert (known["num_classes"], known["crop_pct"], known["interpolation"]) == (3, 0.875, "bicubic")
    assert (tuple(known["mean"]), tuple(known["std"])) == (MEAN, STD)


@torch.no_grad()
def test_timm_loads_the_file_as_the_command_says(here, ours, images, tmp_path, monkeypatch, capsys):
    assert mimcl(monkeypatch, here, "export", "run", "--classifier", "--out", str(tmp_path / "out")) == 0
    wrote, call, checked = capsys.readouterr().out.splitlines()
    assert wrote == f"wrote {tmp_path}/out/: README.md, config.json, model.safetensors"
    model = eval(call, {"timm": timm}).eval()
    torch.testing.assert_close(model(images), ours.weights.model()(images), atol=1e-5, rtol=0)
    exact, rounded = re.match(r"maximum difference: (\S+) in float64, (\S+) in float32 \(logits\)", checked).groups()
    assert float(exact) < 1e-10
    assert float(rounded) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_hugging_face_gives_the_same_logits(here, ours, images, attention):
    """BEiT has no biases of keys; ours must not be zero, or leaving them out would prove nothing."""
    model = transformers.AutoModelForImageClassification.from_pretrained("hf", attn_implementation=attention).eval()
    logits = ours.weights.model()(images)
    torch.testing.assert_close(model(images).logits, logits, atol=1e-5, rtol=0)
    assert logits.std() > 0.01
    assert model.config.id2label == dict(enumerate(CLASSES))
    assert model.config.label2id == {name: number for number, name in enumerate(CLASSES)}


@torch.no_grad()
def test_biases_of_keys_change_no_logit(ours, images, tmp_path):
    tensors = dict(ours.weights.tensors)
    for name in tensors:
        if name.endswith("qkv.bias"):
            tensors[name] = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(len(name)))
    changed = type(ours.weights)(ours.weights.config, 32, ours.weights.classes, tensors)
    without = type(ours.weights)(ours.weights.config, 32, ours.weights.classes, from_beit(to_beit(tensors)))
    one, other = changed.model().double(), without.model().double()
    torch.testing.assert_close(one(images.double()), other(images.double()), atol=1e-10, rtol=0)
    assert not torch.equal(without.tensors["blocks.0.attn.qkv.bias"], tensors["blocks.0.attn.qkv.bias"])


@pytest.mark.parametrize("folder", ["timm", "hf", "own"])
def test_the_cards_code_classifies_an_image_as_we_do(here, ours, folder, monkeypatch, capsys):
    shutil.copy("image.jpg", f"{folder}/image.jpg")
    monkeypatch.chdir(here / folder)
    (code,) = re.findall(r"```python\n(.+?)```", Path("README.md").read_text(), re.S)
    capsys.readouterr()
    exec(code, {})
    name, probability = capsys.readouterr().out.split()
    Path("image.jpg").unlink()
    (box,) = evaluation_boxes(np.array([120]), np.array([90])).tolist()
    pixels = decode_one(np.frombuffer((here / "image.jpg").read_bytes(), np.uint8), box, False, 32)
    with torch.no_grad():
        expected = ours.weights.model()(normalise(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])).softmax(1)[0]
    assert name == CLASSES[expected.argmax()]
    assert float(probability) == pytest.approx(expected.max().item(), abs=1e-5)


def test_hugging_faces_pipeline_knows_the_classes(here):
    found = transformers.pipeline("image-classification", model="hf")(str(here / "images" / "val" / "red" / "0050.png"))
    assert {row["label"] for row in found} == set(CLASSES)
    assert sum(row["score"] for row in found) == pytest.approx(1, abs=1e-5)


def test_the_card_has_the_accuracy_of_these_weights(here, ours):
    text = Path("hf/README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["pipeline_tag"] == "image-classification"
    line = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    assert line["evaluation"] == "finetune"
    assert f"top-1 {100 * line['values']['finetune']:.1f} %, top-5 100.0 %" in body
    assert "on 60 train images, on the 75 val images of shards" in " ".join(body.split())
    assert "those of the last step" in body
    assert "blue, green, red" in body
    assert "| base_lr | 0.004 |" in body
    assert str(here) not in text


@pytest.mark.parametrize("path", ["own", "own/weights.safetensors", "timm", "timm/model.safetensors", "hf"])
def test_exports_can_be_loaded_and_exported_again(here, ours, images, path, tmp_path):
    again = FineTuned.load(Path(path))
    assert list(again.weights.classes) == CLASSES
    with torch.no_grad():
        torch.testing.assert_close(again.weights.model()(images), ours.weights.model()(images), atol=1e-5, rtol=0)
    assert export(Path(path), tmp_path / "out", classifier=True).difference < 1e-10
    assert "accuracy of these weights is not known" in (tmp_path / "out" / "README.md").read_text()


def swapped(tensors):
    named = to_beit(tensors)
    one, other = (f"beit.encoder.layer.3.attention.attention.{part}.weight" for part in ("query", "value"))
    return named | {one: named[other], other: named[one]}


def test_logits_that_differ_are_not_kept(here, tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, "to_beit", swapped)
    with pytest.raises(CheckpointError, match=r"hf loads differs from run by \S+, more than 1e-05 .*; nothing"):
        export(Path("run"), tmp_path / "out", target="hf", classifier=True)
    assert not list(tmp_path.iterdir())


def test_the_encoder_is_exported_unless_asked_and_says_so(here, tmp_path, monkeypatch, capsys):
    assert mimcl(monkeypatch, here, "export", "run", "--out", str(tmp_path / "out")) == 0
    assert "add --classifier for the classifier that was fine-tuned from it" in capsys.readouterr().out
    assert "head.weight" not in load_file(tmp_path / "out" / "model.safetensors")


def test_several_fine_tunings_are_named_and_none_is_guessed(here, tmp_path):
    run = Path(shutil.copytree("run", tmp_path / "run"))
    (first,) = (run / "evaluation" / "finetune").iterdir()
    second = Path(shutil.copytree(first, first.with_name("another")))
    (second / "result.json").write_text('{"top1": 0.5, "top5": 1.0, "left_out": 0}')
    with pytest.raises(ConfigError, match=rf"has 2 fine-tuned classifiers; give one of .*{second} \(50.0 %\)"):
        FineTuned.load(run)
    assert FineTuned.load(second).accuracies["top1"] == 0.5
    (second / "result.json").unlink()
    assert FineTuned.load(run).path == first
    with pytest.raises(CheckpointError, match=r"another has not finished; .*same command to resume it"):
        FineTuned.load(second)


def test_weights_of_an_earlier_mimcl_get_their_class_names_from_the_same_command(here, monkeypatch, tmp_path):
    run = Path(shutil.copytree("run", tmp_path / "run"))
    (folder,) = (run / "evaluation" / "finetune").iterdir()
    before = (folder / "classifier.json").read_bytes()
    (folder / "classifier.json").unlink()
    with pytest.raises(CheckpointError, match=r"no classifier.json .*same command, which adds it"):
        FineTuned.load(run)
    (tmp_path / "shards").symlink_to(here / "shards")
    words = ("--decoder", "reference", *finetuned.settings(finetuned._TUNING))
    assert mimcl(monkeypatch, tmp_path, "eval", "finetune", "run", *words) == 0
    assert (folder / "classifier.json").read_bytes() == before


def without(*names: str):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


@pytest.mark.parametrize(
    ("damage", "metadata", "message"),
    [
        (without("head.weight"), {}, "has no head"),
        (without("blocks.3.attn.qkv.bias"), {}, r"lacks blocks\.3\.attn\.qkv\.bias"),
        (lambda tensors: tensors | {"head.bias": torch.zeros(4)}, {}, "one output for each of its 3 classes"),
        (lambda tensors: tensors | {"head.bias": torch.full((3,), torch.nan)}, {}, "not finite"),
        (lambda tensors: tensors | {"norm.weight": torch.ones(192)}, {}, "one on the CLS token"),
        (dict, {"image_mean": "[0.5, 0.5, 0.5]", "image_std": "[0.5, 0.5, 0.5]"}, "not with ImageNet's"),
        (dict, {"classes": '["a", 2, "c"]'}, "names its classes"),
    ],
)
def test_other_weights_are_refused_in_one_line(here, tmp_path, damage, metadata, message):
    tensors, known = load_file("own/weights.safetensors"), {"classes": json.dumps(CLASSES)}
    save_file(damage(tensors), tmp_path / "weights.safetensors", {"format": "pt", **known, **metadata})
    with pytest.raises(CheckpointError, match=message) as refused:
        FineTuned.load(tmp_path / "weights.safetensors")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["export", "shards", "--classifier", "--out", "new"], 1, "shards is neither"),
        (["export", "missing", "--classifier", "--out", "new"], 1, "missing"),
        (["export", "timm", "--out", "new"], 1, "fine-tuned on averaged tokens"),
    ],
)
def test_bad_input_is_one_line(here, monkeypatch, capfd, words, code, message):
    before = set(here.iterdir())
    assert mimcl(monkeypatch, here, *words) == code
    complaint = error_line(capfd.readouterr().err)
    assert message in complaint
    assert set(here.iterdir()) == before


def test_a_run_without_a_fine_tuning_says_how_to_make_one(here, tmp_path, monkeypatch, capfd):
    run = Path(shutil.copytree("run", tmp_path / "plain"))
    shutil.rmtree(run / "evaluation")
    assert mimcl(monkeypatch, here, "export", str(run), "--classifier", "--out", "new") == 1
    assert f"has no fine-tuned classifier; make one: mimcl eval finetune {run}" in capfd.readouterr().err
