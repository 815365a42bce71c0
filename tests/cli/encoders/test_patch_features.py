"""Patches as colours: known fields keep their shape, signs are fixed, and attention is a share."""

import numpy as np
import pytest
import torch

from mimcl.cli.encoders.patch_features import patch_features, principal_colours
from mimcl.model.attention_map import encode_with_attention
from mimcl.model.config import ModelConfig
from mimcl.model.mae import build, to_patches

SIDE = 10  # patches


def field(images=2, width=8, seed=0):
    """Features of known components: rows, columns and noise, along three directions, the first of largest variance."""
    rng = np.random.default_rng(seed)
    rows, columns = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE), indexing="ij")
    noise = rng.standard_normal((images, SIDE, SIDE))
    noise -= noise.mean()
    for known in (rows, columns):  # uncorrelated, so that each component is one of the fields
        noise -= known * (noise * known).sum() / (images * (known**2).sum())
    directions, _ = np.linalg.qr(rng.standard_normal((width, 3)))
    directions *= np.sign(directions[np.abs(directions).argmax(0), range(3)])
    parts = np.stack([np.broadcast_to(9 * rows, noise.shape), np.broadcast_to(4 * columns, noise.shape), noise], -1)
    features = parts.reshape(images, -1, 3) @ directions.T + 5
    return torch.from_numpy(features).float(), parts.reshape(images, -1, 3)


def scaled(parts):
    low, high = np.quantile(parts.reshape(-1, 3), [0.01, 0.99], axis=0)
    return ((parts - low) / (high - low)).clip(0, 1)


def test_colours_are_the_known_components():
    features, parts = field()
    colours = principal_colours(features)
    assert colours.dtype == torch.float32
    np.testing.assert_allclose(colours, scaled(parts), atol=2e-3)
    assert torch.equal(colours.amin((0, 1)), torch.zeros(3))
    assert torch.equal(colours.amax((0, 1)), torch.ones(3))


def test_signs_follow_from_the_features_alone():
    features, _ = field()
    colours = principal_colours(features)
    torch.testing.assert_close(principal_colours(features.flip(0, 1)), colours.flip(0, 1), atol=1e-5, rtol=0)
    # The largest loading is positive, so that features turned round are colours turned round.
    torch.testing.assert_close(principal_colours(-features), 1 - colours, atol=1e-5, rtol=0)
    torch.testing.assert_close(principal_colours(3 * features - 7), colours, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dimensions", [0, 1, 2])
def test_components_that_explain_nothing_are_grey(dimensions):
    generator = torch.Generator().manual_seed(0)
    features = torch.ones(2, 30, 6)
    features[..., :dimensions] = torch.randn(2, 30, dimensions, generator=generator)
    colours = principal_colours(features)
    assert (colours[..., dimensions:] == 0.5).all()
    assert all(len(colours[..., channel].unique()) > 20 for channel in range(dimensions))


def test_features_of_a_model_are_those_of_whole_images(monkeypatch):
    monkeypatch.setitem(build.__globals__["SIZES"], "vit_tiny", (48, 2, 3))
    model = build(ModelConfig("vit_tiny", 8, 32, 1), 32, seed=0).eval()
    crops = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = patch_features(model, crops)
    assert found.colours.shape == (3, 4, 4, 3)
    latent, attention = encode_with_attention(model, to_patches(crops, 8))
    torch.testing.assert_close(found.colours.flatten(1, 2), principal_colours(latent[:, 1:]))
    to_itself = attention.mean(1)[:, 0]
    torch.testing.assert_close(found.attention.sum((1, 2)) + to_itself, torch.ones(3))
    assert (found.attention > 0).all()
