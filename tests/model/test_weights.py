"""Load weights written by third-party code: same features, and one line about what does not fit."""

import argparse
import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

from mimcl.model.checkpoint import CheckpointError
from mimcl.model.config import SIZES, ModelConfig
from mimcl.model.hf_names import from_hugging_face, to_vit, to_vit_mae
from mimcl.model.mae import build, encoder_weights, patchify
from mimcl.model.weights import read_weights

IMAGE, PATCH = 12, 4
CONFIG = ModelConfig("vit_small", PATCH, decoder_width=64, decoder_depth=2)
SIZE = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 384}
HF = {**SIZE, "image_size": IMAGE, "patch_size": PATCH, "layer_norm_eps": 1e-6}
DECODER = {
    "decoder_hidden_size": 64,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 256,
    "norm_pix_loss": True,
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """vit_small is much smaller here."""
    monkeypatch.setitem(SIZES, "vit_small", (96, 3, 3))


def shaken(model):
    """All weights away from zeros and ones; positions are learned then."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture
def ours():
    return shaken(build(CONFIG, IMAGE, seed=0))


@pytest.fixture
def file(tmp_path, ours):
    """Write a changed state dict in the layout of published MAE files; returns its path."""

    def write(**changes):
        path = tmp_path / "mae_pretrain.pth"
        tensors = ours.state_dict() | changes
        torch.save({"model": {name: tensor for name, tensor in tensors.items() if tensor is not None}}, path)
        return path

    return write


def images(count=3):
    return torch.randn(count, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def tokens(path):
    weights = read_weights(path)
    model = build(weights.config, weights.image_size, seed=5).eval()
    model.load_state_dict(model.state_dict() | weights.tensors)
    return model.encode(model.embed(patchify(images(), PATCH)))


def assert_same(state_dict, weights):
    for name, tensor in weights.tensors.items():
        assert torch.equal(tensor, state_dict[name]), name
    assert (weights.config, weights.image_size) == (CONFIG, IMAGE)


@pytest.mark.parametrize("depth", [1, 3])
def test_our_own_files_with_a_cross_attention_decoder(tmp_path, depth):
    config = ModelConfig("vit_small", PATCH, decoder_width=64, decoder_depth=depth, decoder="cross")
    model = shaken(build(config, IMAGE, seed=0))
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    weights = read_weights(tmp_path / "weights.safetensors")
    assert (weights.config, weights.image_size, weights.has_decoder) == (config, IMAGE, True)
    assert weights.tensors.keys() == model.state_dict().keys()
    for name, change, message in (
        ("decoder_mixture.weights", torch.ones(depth, 3), f"has shape {depth} x 3; vit_small has {depth} x 4"),
        ("decoder_blocks.0.attn.kv.weight", torch.ones(128, 64), "has shape 128 x 64; vit_small has 128 x 96"),
        ("decoder_embed.weight", torch.ones(64, 96), "it has decoder_embed.weight, which a plain ViT does not have"),
    ):
        save_file(model.state_dict() | {name: change}, tmp_path / "other.safetensors")
        with pytest.raises(CheckpointError, match=message):
            read_weights(tmp_path / "other.safetensors")


def published(folder, model):
    torch.save({"model": model.state_dict()}, folder / "mae_visualize.pth")
    return folder / "mae_visualize.pth"


def in_training(folder, model):
    """Add what MAE's own training saves with the weights."""
    arguments = argparse.Namespace(lr=1e-3, model="mae_vit_base_patch16", output_dir="x", resume="")
    optimizer = torch.optim.AdamW(model.parameters())
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "args": arguments}
    torch.save(saved | {"scaler": {"scale": 65536.0}}, folder / "checkpoint-3.pth")
    return folder / "checkpoint-3.pth"


def of_parallel_training(folder, model):
    torch.save({"state_dict": {f"module.{n}": t for n, t in model.state_dict().items()}}, folder / "w.pt")
    return folder / "w.pt"


def bare(folder, model):
    torch.save(model.state_dict(), folder / "w.bin")
    return folder / "w.bin"


def own(folder, model):
    save_file(model.state_dict() | {"masker.x": torch.ones(3)}, folder / "weights.safetensors")
    return folder / "weights.safetensors"


@pytest.mark.parametrize("layout", [published, in_training, of_parallel_training, bare, own])
def test_our_and_maes_names(layout, ours, tmp_path):
    weights = read_weights(layout(tmp_path, ours))
    assert weights.has_decoder
    assert weights.tensors.keys() == ours.state_dict().keys()
    assert_same(ours.state_dict(), weights)


def test_the_published_encoders_have_no_decoder(ours, tmp_path):
    torch.save({"model": encoder_weights(ours.state_dict())}, tmp_path / "w.pth")
    weights = read_weights(tmp_path / "w.pth")
    assert not weights.has_decoder
    assert weights.config == ModelConfig("vit_small", PATCH)
    assert weights.tensors.keys() == encoder_weights(ours.state_dict()).keys()


@pytest.mark.parametrize("classes", [0, 5])
def test_timms_models_with_learned_positions(classes, tmp_path):
    model = shaken(timm.models.VisionTransformer(IMAGE, PATCH, num_classes=classes, embed_dim=96, depth=3, num_heads=3))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    with torch.no_grad():
        theirs = model.forward_features(images())
    torch.testing.assert_close(tokens(tmp_path / "model.safetensors"), theirs, atol=1e-5, rtol=0)


HUGGING_FACE = {
    ViTModel: lambda: ViTModel(ViTConfig(**HF)),
    ViTForImageClassification: lambda: ViTForImageClassification(ViTConfig(**HF, num_labels=4)),
    ViTMAEModel: lambda: ViTMAEModel(ViTMAEConfig(**HF, mask_ratio=0.0)),
    ViTMAEForPreTraining: lambda: ViTMAEForPreTraining(ViTMAEConfig(**HF, **DECODER, mask_ratio=0.0)),
}


def written_by_their_code(folder, model):
    model.save_pretrained(folder)


def in_pieces(folder, model):
    model.save_pretrained(folder, max_shard_size="500KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def older(folder, model):
    """Write a pickle, as transformers did for years."""
    model.save_pretrained(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def names_in_memory(folder, model):
    model.save_pretrained(folder)
    save_file(model.state_dict(), folder / "model.safetensors")


@pytest.mark.parametrize("kind", HUGGING_FACE, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("write", [written_by_their_code, in_pieces, older, names_in_memory])
def test_hugging_faces_folders(kind, write, tmp_path):
    model = shaken(HUGGING_FACE[kind]())
    write(tmp_path, model)
    encoder = getattr(model, "vit", model)
    with torch.no_grad():
        if "MAE" in kind.__name__:  # without a mask, with the order of the patches as it is
            order = torch.arange((IMAGE // PATCH) ** 2).float().expand(3, -1)
            theirs = encoder(images(), noise=order).last_hidden_state
        else:
            theirs = encoder(images()).last_hidden_state
    torch.testing.assert_close(tokens(tmp_path), theirs, atol=1e-5, rtol=0)
    assert read_weights(tmp_path).has_decoder == (kind is ViTMAEForPreTraining)


def test_the_decoder_of_hugging_face(ours, tmp_path):
    save_file(to_vit_mae(ours.state_dict()), tmp_path / "model.safetensors")
    assert_same(ours.state_dict(), read_weights(tmp_path / "model.safetensors"))
    # What this version of transformers writes of the decoder has other names.
    config = {**HF, **DECODER, "model_type": "vit_mae"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ViTMAEForPreTraining.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert_same(ours.state_dict(), read_weights(tmp_path / "again"))


def test_names_convert_in_both_directions(ours):
    tensors = ours.state_dict()
    for there, expected in ((to_vit, encoder_weights(tensors)), (to_vit_mae, tensors)):
        back = from_hugging_face(there(tensors))
        assert back.keys() == expected.keys()
        assert all(torch.equal(back[name], expected[name]) for name in expected)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_become_float32(ours, tmp_path, precision):
    torch.save({name: tensor.to(precision) for name, tensor in ours.state_dict().items()}, tmp_path / "w.pth")
    weights = read_weights(tmp_path / "w.pth")
    for name, tensor in weights.tensors.items():
        assert torch.equal(tensor, ours.state_dict()[name].to(precision).float())


def test_a_pooler_of_a_nested_model_is_dropped(ours, tmp_path):
    pooler = {"vit.pooler.dense.weight": torch.ones(96, 96), "vit.pooler.dense.bias": torch.ones(96)}
    named = {f"vit.{name}": tensor for name, tensor in to_vit(ours.state_dict()).items()}
    save_file(named | pooler, tmp_path / "w.safetensors")
    assert read_weights(tmp_path / "w.safetensors").tensors.keys() == encoder_weights(ours.state_dict()).keys()


@pytest.mark.parametrize("reported", [{"norm_pix_loss": True}, {"norm_pix_loss": False}, {}])
def test_the_kind_of_target_follows_the_configuration(ours, tmp_path, reported):
    save_file(to_vit_mae(ours.state_dict()), tmp_path / "model.safetensors")
    assert read_weights(tmp_path / "model.safetensors").mask_ratio is None
    decoder = {name: value for name, value in DECODER.items() if name != "norm_pix_loss"}
    config = {**HF, **decoder, "model_type": "vit_mae", "mask_ratio": 0.6, **reported}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        weights = read_weights(path)
        assert weights.config.norm_pix_loss is reported.get("norm_pix_loss", False)  # Hugging Face's default
        assert weights.mask_ratio == 0.6


QKV = "blocks.1.attn.qkv"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cls_token": None}, "it has no class token"),
        ({"pos_embed": None}, "it lacks pos_embed"),
        ({f"{QKV}.bias": None}, "it lacks blocks.1.attn.qkv.bias"),
        ({"norm.bias": None, "norm.weight": None}, "it lacks norm.weight, norm.bias"),
        ({"mask_token": None}, "it lacks mask_token"),
        ({"decoder_embed.weight": None}, "it lacks decoder_embed.weight"),
        ({"blocks.0.norm1.weight": None}, "cls_token, pos_embed"),
        ({"dist_token": torch.ones(1, 1, 96)}, "it has dist_token"),
        ({"reg_token": torch.ones(1, 4, 96)}, "it has reg_token"),
        ({"blocks.0.ls1.gamma": torch.ones(96)}, "it has blocks.0.ls1.gamma"),
        ({"fc_norm.weight": torch.ones(96)}, "fc_norm"),
        (
            {"cls_token": torch.ones(1, 1, 100)},
            "100 wide and 3 blocks deep",
        ),
        ({"blocks.7.norm1.bias": torch.ones(96)}, "its encoder is 96 wide and 4 blocks deep"),
        ({"pos_embed": torch.ones(1, 11, 96)}, "its 11 positions"),
        ({"pos_embed": torch.ones(1, 1, 96)}, "its 1 positions are not"),
        ({"pos_embed": torch.ones(())}, "its 0 positions are not"),
        ({"norm.weight": torch.ones(95)}, "norm.weight has shape 95; vit_small has 96"),
        ({"norm.weight": torch.ones(())}, "norm.weight has shape a single number"),
        ({"decoder_embed.weight": torch.ones(60, 96)}, "model.decoder_width is 60; it must be a multiple of 32"),
        ({"patch_embed.proj.weight": torch.ones(96, 48)}, "patch_embed.proj.weight has shape 96 x 48"),
        ({"patch_embed.proj.weight": torch.ones(96, 1, 4, 4)}, "RGB patches"),
        ({"patch_embed.proj.weight": torch.ones(96, 3, 4, 5)}, "96 x 3 x 4 x 5; vit_small has 96 x 3 x 4 x 4"),
        ({"norm.bias": torch.full((96,), torch.nan)}, "norm.bias has values that are not finite"),
        ({"norm.bias": torch.full((96,), 1e300, dtype=torch.float64)}, "norm.bias has values that are not finite"),
        ({"norm.bias": torch.ones(96, dtype=torch.int64)}, "norm.bias is stored as torch.int64"),
        ({"norm.bias": torch.ones(1).expand(96)}, "'norm.bias' is not a plain tensor"),
        ({"norm.bias": torch.ones(96, device="meta")}, "'norm.bias' is not a plain tensor"),
        ({"norm.bias": torch.ones(96).to_sparse()}, "'norm.bias' is not a plain tensor"),
        ({"norm.bias": 3.0}, "'norm.bias' is not a plain tensor"),
    ],
)
def test_an_error_names_what_does_not_fit(file, changes, message):
    with pytest.raises(CheckpointError) as caught:
        read_weights(file(**changes))
    assert message in str(caught.value)
    assert "mae_pretrain.pth" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["convnext_atto", "deit_tiny_distilled_patch16_224", "vit_tiny_r_s16_p8_224"])
def test_models_of_other_kinds(tmp_path, name):
    save_file(timm.create_model(name).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="does not fit a masked autoencoder: (it|patch_embed)"):
        read_weights(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "deit"}, "model_type is 'deit' in its config.json; it must be vit"),
        ({"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu'"),
        ({"num_attention_heads": 12}, "num_attention_heads is '12' in its config.json; it must be 3"),
        ({"model_type": "vit_mae", "decoder_num_attention_heads": 4}, "decoder_num_attention_heads is '4'"),
    ],
)
def test_a_configuration_that_does_not_fit(ours, tmp_path, changes, message):
    """Tensors have the same shapes whatever these are."""
    save_file(to_vit_mae(ours.state_dict()), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**HF, **DECODER, "model_type": "vit_mae"}))
    assert read_weights(tmp_path).config == CONFIG
    (tmp_path / "config.json").write_text(json.dumps({**HF, **DECODER, "model_type": "vit_mae"} | changes))
    with pytest.raises(CheckpointError, match=message):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"x" * 100, b"[1, 2]", b'{"weight_map": {"a": "../w"}}', b'{"weight_map": 3}']
)
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"]
)
def test_folders_that_are_damaged(ours, tmp_path, name, content):
    (tmp_path / "config.json").write_text(json.dumps({**HF, "model_type": "vit"}))
    if name == "config.json":
        save_file(to_vit(ours.state_dict()), tmp_path / "model.safetensors")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_weights(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_cut_short(ours, tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    torch.save(ours.state_dict(), path) if suffix == ".pth" else save_file(ours.state_dict(), path)
    content = path.read_bytes()
    for length in (0, 7, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="cannot be read as weights"):
            read_weights(path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"model": 3}, {"model": {}}, {3: torch.ones(2)}, torch.ones(3)])
def test_files_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="is not a state dict|is not a plain tensor"):
        read_weights(tmp_path / "w.pth")
