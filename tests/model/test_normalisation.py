"""Encoders for pixels normalised differently give the features that their own code computes."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config
from transformers import ViTConfig, ViTImageProcessor, ViTMAEConfig, ViTMAEForPreTraining, ViTModel

from mimcl.model.checkpoint import CheckpointError
from mimcl.model.config import SIZES
from mimcl.model.mae import MEAN, STD, build, to_patches
from mimcl.model.normalisation import Normalisation
from mimcl.model.weights import read_weights

IMAGE, PATCH = 12, 4
SIZE = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 384}
HF = {**SIZE, "image_size": IMAGE, "patch_size": PATCH, "layer_norm_eps": 1e-6}
OTHER = {"mean": [0.5, 0.4, 0.6], "std": [0.5, 0.2, 0.3]}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """vit_small is much smaller here."""
    monkeypatch.setitem(SIZES, "vit_small", (96, 3, 3))


@pytest.fixture
def pixels():
    return np.random.default_rng(3).integers(0, 256, (IMAGE, IMAGE, 3), np.uint8)


@torch.no_grad()
def ours(path, pixels):
    """Tokens of an image normalised with our constants."""
    weights = read_weights(path)
    model = build(weights.config, weights.image_size, seed=5).eval()
    model.load_state_dict(model.state_dict() | weights.tensors)
    images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    return model.encode(model.embed(to_patches(images, PATCH)))


def timms(folder):
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(IMAGE, PATCH, num_classes=0, embed_dim=96, depth=3, num_heads=3).eval()
    torch.nn.init.normal_(model.patch_embed.proj.bias)
    save_file(model.state_dict(), folder / "model.safetensors")
    return model


@pytest.mark.parametrize("layout", ["pretrained_cfg", "flat"])
def test_timms_constants(tmp_path, pixels, layout):
    model = timms(tmp_path)
    reported = {"input_size": [3, IMAGE, IMAGE], "crop_pct": 1.0, **OTHER}
    described = {"architecture": "vit", **({"pretrained_cfg": reported} if layout == "pretrained_cfg" else reported)}
    (tmp_path / "config.json").write_text(json.dumps(described))
    transform = create_transform(**resolve_data_config({}, pretrained_cfg=reported))
    with torch.no_grad():
        theirs = model.forward_features(transform(Image.fromarray(pixels))[None])
    for path in (tmp_path, tmp_path / "model.safetensors"):
        torch.testing.assert_close(ours(path, pixels), theirs, atol=1e-5, rtol=0)
        assert read_weights(path).normalisation == Normalisation(tuple(OTHER["mean"]), tuple(OTHER["std"]))
    (tmp_path / "config.json").unlink()
    assert (ours(tmp_path / "model.safetensors", pixels) - theirs).abs().max() > 0.01


@pytest.mark.parametrize(
    "settings",
    [
        {},  # 0.5: Hugging Face's own default, that of google/vit-base-patch16-224
        {"image_mean": OTHER["mean"], "image_std": OTHER["std"]},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"do_rescale": False, "image_mean": 100.0, "image_std": 50.0},
    ],
)
def test_hugging_faces_constants(tmp_path, pixels, settings):
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(**HF), add_pooling_layer=False).eval()
    torch.nn.init.normal_(model.embeddings.patch_embeddings.projection.bias)
    model.save_pretrained(tmp_path)
    size = {"height": IMAGE, "width": IMAGE}
    ViTImageProcessor(size=size, **settings).save_pretrained(tmp_path)
    processor = ViTImageProcessor.from_pretrained(tmp_path)
    with torch.no_grad():
        theirs = model(processor(Image.fromarray(pixels), return_tensors="pt").pixel_values.float()).last_hidden_state
    torch.testing.assert_close(ours(tmp_path, pixels), theirs, atol=1e-5, rtol=0)


def test_imagenets_constants_change_nothing(tmp_path):
    model = timms(tmp_path)
    rounded = {"mean": [round(value, 4) for value in MEAN], "std": [value + 1e-7 for value in STD]}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit", "pretrained_cfg": rounded}))
    weights = read_weights(tmp_path)
    assert torch.equal(weights.tensors["patch_embed.proj.weight"], model.patch_embed.proj.weight)
    assert weights.normalisation.is_ours


def test_configurations_next_to_files_with_other_names_are_ignored(tmp_path):
    timms(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": OTHER}))
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "w.safetensors")
    assert read_weights(tmp_path / "w.safetensors").normalisation is None


def test_a_decoder_for_other_pixels_is_an_error(tmp_path):
    sizes = {"decoder_hidden_size": 64, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    ViTMAEForPreTraining(ViTMAEConfig(**HF, **sizes, decoder_intermediate_size=256)).save_pretrained(tmp_path)
    ViTImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(tmp_path)
    assert read_weights(tmp_path).has_decoder
    ViTImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"mean \(0.5, 0.5, 0.5\)"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": [0.5, 0.5]}, "mean is"),
        ({"std": "x"}, "std is 'x'"),
        ({"std": [0.5, 0.5, 0]}, "not positive"),
        ({"mean": [0.5, 0.5, float("nan")]}, "mean is"),
    ],
)
def test_invalid_constants(tmp_path, changes, message):
    timms(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit", "pretrained_cfg": OTHER | changes}))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_weights(tmp_path)
    assert "\n" not in str(caught.value)
