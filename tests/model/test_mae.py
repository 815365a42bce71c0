"""Compare the MAE with a float64 numpy implementation of its formulas, and with timm's encoder."""

import math

import numpy as np
import pytest
import timm
import torch

from mimcl.curriculum.masking.mask import keep_lowest
from mimcl.model.block import take
from mimcl.model.config import SIZES, ModelConfig
from mimcl.model.forward_backward import twin
from mimcl.model.mae import (
    MaskedAutoencoderViT,
    build,
    encoder_weights,
    patchify,
    reconstruction_loss,
    to_patches,
    unpatchify,
)
from mimcl.model.positions import sin_cos_positions


def tiny(norm_pix_loss: bool = True, **changes) -> MaskedAutoencoderViT:
    sizes = dict(image_size=12, patch_size=4, width=8, depth=2, heads=2, decoder_width=12, decoder_depth=1)
    torch.manual_seed(3)
    model = MaskedAutoencoderViT(**(sizes | changes), decoder_heads=3, norm_pix_loss=norm_pix_loss)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


class Formulas:
    """He et al. (2022) with Vaswani et al.'s pre-norm transformer, image by image, from a state dict."""

    def __init__(self, weights, patch, heads, decoder_heads):
        self.w = {name: value.detach().double().numpy() for name, value in weights.items()}
        self.patch, self.heads, self.decoder_heads = patch, heads, decoder_heads

    def linear(self, x, name):
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def layer_norm(self, x, name):
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return centred / deviation * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def block(self, x, name, heads):
        width = x.shape[1]
        qkv = self.linear(self.layer_norm(x, f"{name}.norm1"), f"{name}.attn.qkv")
        q, k, v = qkv[:, :width], qkv[:, width : 2 * width], qkv[:, 2 * width :]
        mixed = []
        for head in range(heads):
            part = slice(head * width // heads, (head + 1) * width // heads)
            scores = q[:, part] @ k[:, part].T / math.sqrt(width // heads)
            attention = np.exp(scores - scores.max(1, keepdims=True))
            mixed.append(attention / attention.sum(1, keepdims=True) @ v[:, part])
        x = x + self.linear(np.concatenate(mixed, 1), f"{name}.attn.proj")
        hidden = self.linear(self.layer_norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
        gelu = np.vectorize(lambda value: 0.5 * value * (1 + math.erf(value / math.sqrt(2))))
        return x + self.linear(gelu(hidden), f"{name}.mlp.fc2")

    def loss(self, image, kept, removed, norm_pix_loss):
        """image (3, H, W); ids of the kept patches in the encoder's order, and of the removed ones."""
        side = image.shape[1] // self.patch
        cells = [(row, column) for row in range(side) for column in range(side)]
        cut = [image[:, r * self.patch : (r + 1) * self.patch, c * self.patch : (c + 1) * self.patch] for r, c in cells]
        kernel = self.w["patch_embed.proj.weight"]
        tokens = np.stack([np.tensordot(kernel, pixels, 3) for pixels in cut]) + self.w["patch_embed.proj.bias"]
        positions = self.w["pos_embed"][0]
        x = np.concatenate([self.w["cls_token"][0] + positions[:1], (tokens + positions[1:])[kept]])
        for number in range(2):
            x = self.block(x, f"blocks.{number}", self.heads)
        x = self.linear(self.layer_norm(x, "norm"), "decoder_embed")
        full = np.repeat(self.w["mask_token"][0], len(cells) + 1, 0)
        full[0] = x[0]
        for place, patch in enumerate(kept):
            full[1 + patch] = x[1 + place]
        full = full + self.w["decoder_pos_embed"][0]
        full = self.block(full, "decoder_blocks.0", self.decoder_heads)
        pred = self.linear(self.layer_norm(full, "decoder_norm"), "decoder_pred")[1:]
        errors = []
        for patch in removed:
            target = cut[patch].transpose(1, 2, 0).reshape(-1)
            if norm_pix_loss:
                target = (target - target.mean()) / np.sqrt(target.var(ddof=1) + 1e-6)
            errors.append(((pred[patch] - target) ** 2).mean())
        return np.mean(errors)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_loss_follows_the_formulas(norm_pix_loss):
    model = tiny(norm_pix_loss).double()
    images = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = torch.rand(3, 9, generator=torch.Generator().manual_seed(2))
    mask = keep_lowest(noise, 0.75)
    output = model(patchify(images, 4), mask)
    # The target is float32 by design, so agreement ends there.
    losses = reconstruction_loss(output, mask.mask).detach().numpy()
    formulas = Formulas(model.state_dict(), 4, 2, 3)
    for number in range(3):
        order = np.argsort(noise[number].numpy())
        expected = formulas.loss(images[number].numpy(), order[:2], order[2:], norm_pix_loss)
        assert losses[number] == pytest.approx(expected, rel=2e-6)


def test_embedded_patches_equal_the_convolution():
    model = tiny()
    images = torch.randn(5, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[8, 0, 3]]).repeat(5, 1) - torch.arange(5)[:, None] % 2 * torch.tensor([[1, 0, 2]])
    projection = model.patch_embed.proj
    expected = projection(images).flatten(2).transpose(1, 2) + model.pos_embed[:, 1:]
    torch.testing.assert_close(model.embed(patchify(images, 4)), expected)
    torch.testing.assert_close(model.embed(patchify(images, 4), ids), take(expected, ids))


def test_no_ids_restore_equals_the_identity_order():
    model, patches = tiny(), torch.randn(5, 9, 48, generator=torch.Generator().manual_seed(1))
    tokens = model.embed(patches)
    whole, in_order = (model.reconstruct(tokens, ids, patches) for ids in (None, torch.arange(9).expand(5, 9)))
    assert torch.equal(whole.pred, in_order.pred)
    assert torch.equal(whole.decoder_input, in_order.decoder_input)


def test_the_output_has_the_documented_shapes():
    output = tiny()(torch.randn(5, 9, 48), keep_lowest(torch.rand(5, 9), 0.75))
    assert output.per_patch_loss.shape == (5, 9)
    assert output.pred.shape == (5, 9, 48)
    assert output.latent.shape == (5, 3, 8)
    assert output.decoder_input.shape == (5, 10, 12)


@pytest.mark.parametrize(("image_size", "patch_size"), [(32, 4), (30, 6), (64, 16), (28, 14)])
def test_any_image_and_patch_size(image_size, patch_size):
    model = build(ModelConfig("vit_tiny", patch_size, decoder_width=32, decoder_depth=1), image_size, seed=0)
    patches = (image_size // patch_size) ** 2
    output = model(torch.randn(2, patches, 3 * patch_size**2), keep_lowest(torch.rand(2, patches), 0.75))
    assert output.pred.shape == (2, patches, 3 * patch_size**2)


def test_an_image_size_must_be_a_multiple_of_the_patch_size():
    with pytest.raises(ValueError, match=r"image_size 30 .* model.patch_size 4"):
        build(ModelConfig("vit_tiny", 4), 30, seed=0)


@pytest.mark.parametrize(("name", "parameters"), [("vit_tiny", 5.4e6), ("vit_small", 21.6e6)])
def test_encoder_loads_into_timm_and_computes_the_same(name, parameters):
    model = build(ModelConfig(name, 8, decoder_width=32, decoder_depth=1), 32, seed=4).eval()
    width, depth, heads = SIZES[name]
    vit = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=width, depth=depth, num_heads=heads, num_classes=0, class_token=True
    ).eval()
    weights = encoder_weights(model.state_dict())
    vit.load_state_dict(weights)  # strict: the same names, all of them
    assert sum(value.numel() for value in weights.values()) == pytest.approx(parameters, rel=0.03)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    patches = patchify(images, 8)
    with torch.inference_mode():
        expected = vit.forward_features(images)
        torch.testing.assert_close(model.encode(model.embed(patches)), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.features(patches), expected[:, 1:].mean(1), atol=1e-5, rtol=1e-5)


def test_positions_are_sines_and_cosines_of_column_then_row():
    width, side = 8, 3
    table = sin_cos_positions(width, side)[0]
    assert torch.equal(table[0], torch.zeros(width))
    row, column = 2, 1
    got = table[1 + row * side + column]
    expected = [f(axis / 10000 ** (k / 2)) for axis in (column, row) for f in (math.sin, math.cos) for k in (0, 1)]
    torch.testing.assert_close(got, torch.tensor(expected))


def test_patchify_keeps_every_pixel_in_place():
    images = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6).float()
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 12)
    # Patch 4 is row 1, column 1 of the grid; its value 7 is pixel (0, 1) inside, two colours in ... channel 1.
    assert patches[1, 4, 2 * 3 - 2] == images[1, 1, 2, 3]


def test_unpatchify_undoes_patchify():
    images = torch.arange(2 * 3 * 6 * 6).view(2, 3, 6, 6).float()
    assert torch.equal(unpatchify(patchify(images, 2), 2), images)


def test_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    first, again, other = (build(ModelConfig("vit_tiny", 8, 32, 1), 32, seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.cls_token, other.cls_token)
    bound = math.sqrt(6 / (192 + 3 * 8 * 8))
    drawn = first.patch_embed.proj.weight
    assert bound * 0.98 < drawn.abs().max() <= bound
    assert first.mask_token.std().item() == pytest.approx(0.02, rel=0.4)


def test_patches_have_imagenets_mean_and_deviation():
    images = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    expected = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    torch.testing.assert_close(to_patches(images, 2)[1, 3], torch.tensor(expected).repeat(4))


@pytest.mark.parametrize("bad", [dict(name="vit_giant"), dict(decoder_width=100), dict(patch_size=0)])
def test_invalid_settings_are_errors_that_name_them(bad):
    with pytest.raises(ValueError, match=f"model.{next(iter(bad))}"):
        ModelConfig(**bad)


def test_smaller_images_are_those_of_a_model_of_their_size():
    """With the same weights: only the positions depend on the grid."""
    model, small = tiny(), tiny(image_size=8)
    model.add_grids([2, 3])
    others = {name: value for name, value in model.state_dict().items() if "pos_embed" not in name}
    with torch.no_grad():
        for of in (model, small):
            of.pos_embed.copy_(sin_cos_positions(8, of.image_size // 4))
            of.decoder_pos_embed.copy_(sin_cos_positions(12, of.image_size // 4))
    small.load_state_dict(small.state_dict() | others)
    model.load_state_dict(model.state_dict())  # fits the positions of the other grids
    assert model.grids == (4, 9)
    patches = torch.randn(5, 4, 48, generator=torch.Generator().manual_seed(1))
    mask = keep_lowest(torch.rand(5, 4, generator=torch.Generator().manual_seed(2)), 0.5)
    for found, expected in zip(model(patches, mask), small(patches, mask), strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(model.features(patches), small.features(patches))
    assert model.state_dict().keys() == tiny().state_dict().keys()


def test_learned_positions_are_interpolated_for_smaller_images():
    model = tiny()  # its positions are not those of sines and cosines
    model.add_grids([2])
    before = model.positions("pos_embed", 4).clone()
    assert before.shape == (1, 5, 8)
    assert torch.equal(before[:, 0], model.pos_embed[:, 0])
    low, high = model.pos_embed[:, 1:].aminmax(dim=1)
    assert ((before[:, 1:] > low - 1) & (before[:, 1:] < high + 1)).all()
    assert not torch.allclose(before, sin_cos_positions(8, 2), atol=0.1)
    follower = twin(model, frozen=True)
    model.load_state_dict({name: 2 * value for name, value in model.state_dict().items()})
    assert torch.allclose(model.positions("pos_embed", 4), 2 * before)
    assert torch.equal(follower.positions("pos_embed", 4), model.positions("pos_embed", 4))
