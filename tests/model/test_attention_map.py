"""The attention weights that pictures show are those the encoder uses."""

import numpy as np
import pytest
import torch

from mimcl.model.attention_map import encode_with_attention
from mimcl.model.block import attend, split_heads
from mimcl.model.config import ModelConfig
from mimcl.model.mae import build, to_patches


@pytest.fixture(params=["self", "cross"])
def model(request, monkeypatch):
    monkeypatch.setitem(build.__globals__["SIZES"], "vit_tiny", (48, 3, 4))
    model = build(ModelConfig("vit_tiny", 8, 32, 1, decoder=request.param), 32, seed=0).eval()
    torch.nn.init.normal_(model.blocks[-1].attn.qkv.weight, std=0.5, generator=torch.Generator().manual_seed(1))
    return model


@pytest.fixture
def patches():
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    return to_patches(images, 8)


def test_the_weights_sum_to_1_and_are_those_of_the_models_own_attention(model, patches):
    seen = []
    last = model.blocks[-1].attn
    handle = last.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    latent, attention = encode_with_attention(model, patches)
    handle.remove()
    assert attention.shape == (3, 4, 17)
    torch.testing.assert_close(attention.sum(-1), torch.ones(3, 4))
    assert attention.amax() > 0.3  # far from equal weights
    # Attention to values that are the unit vectors returns the weights themselves.
    query, key, _ = split_heads(last.qkv(seen[0]), 3, 4)
    units = torch.eye(17).expand(3, 4, 17, 17)
    torch.testing.assert_close(attention, attend(query, key, units)[:, :, 0].detach(), atol=1e-6, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(latent, model.encode(model.embed(patches)), atol=1e-6, rtol=0)


def test_the_weights_are_the_softmax_of_scaled_products(model, patches):
    tokens, last = [], model.blocks[-1].attn
    handle = last.register_forward_pre_hook(lambda module, given: tokens.append(given[0].detach().double().numpy()))
    found = encode_with_attention(model, patches).attention.numpy()
    handle.remove()
    weight, bias = last.qkv.weight.detach().double().numpy(), last.qkv.bias.detach().double().numpy()
    for image in range(3):
        for head in range(4):
            rows = slice(12 * head, 12 * head + 12)
            query = weight[rows] @ tokens[0][image, 0] + bias[rows]
            keys = tokens[0][image] @ weight[48:96][rows].T + bias[48:96][rows]
            scores = np.exp(keys @ query / np.sqrt(12))
            np.testing.assert_allclose(found[image, head], scores / scores.sum(), atol=1e-5)
