"""Compare the cross-attention decoder with an implementation of CrossMAE's formulas, one image and head at a time."""

import math

import pytest
import torch

from mimcl.curriculum.masking.mask import keep_lowest
from mimcl.curriculum.masking.random import RandomMasker
from mimcl.model.autoencoder import removed_patches
from mimcl.model.config import ModelConfig
from mimcl.model.cross_mae import CrossMaskedAutoencoder
from mimcl.model.mae import MaskedAutoencoderViT, build, encoder_weights, reconstruction_loss

SIZES = dict(image_size=12, patch_size=4, width=8, depth=3, heads=2)
DECODER = dict(decoder_width=12, decoder_depth=2, decoder_heads=3)


def tiny(norm_pix_loss: bool = True) -> CrossMaskedAutoencoder:
    torch.manual_seed(3)
    model = CrossMaskedAutoencoder(**SIZES, **DECODER, norm_pix_loss=norm_pix_loss)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def noise_of(images: int, patches: int = 9) -> torch.Tensor:
    return torch.rand(images, patches, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def patches_of(images: int, patches: int = 9) -> torch.Tensor:
    return torch.randn(images, patches, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Formulas:
    """Fu et al. (2024), from a dictionary of weights by name."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self.w = weights

    def linear(self, x, name, rows=slice(None)):
        return x @ self.w[f"{name}.weight"][rows].T + self.w[f"{name}.bias"][rows]

    def layer_norm(self, x, name):
        centred = x - x.mean(1, keepdim=True)
        deviation = ((centred**2).mean(1, keepdim=True) + 1e-6).sqrt()
        return centred / deviation * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def attention(self, q, k, v, heads, name):
        size, mixed = q.shape[1] // heads, []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = (q[:, part] @ k[:, part].T / math.sqrt(size)).exp()
            mixed.append(scores / scores.sum(1, keepdim=True) @ v[:, part])
        return self.linear(torch.cat(mixed, 1), f"{name}.proj")

    def mlp(self, x, name):
        hidden = self.linear(self.layer_norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        return x + self.linear(hidden, f"{name}.mlp.fc2")

    def loss(self, patches, kept, predicted, norm_pix_loss):
        """patches (L, P); ids of the kept patches in the encoder's order, and of those to predict."""
        kernel = self.w["patch_embed.proj.weight"].permute(0, 2, 3, 1).flatten(1)
        positions = self.w["pos_embed"][0]
        tokens = patches[kept] @ kernel.T + self.w["patch_embed.proj.bias"] + positions[1:][kept]
        x = torch.cat([self.w["cls_token"][0] + positions[:1], tokens])
        layers = [x]
        for number in range(SIZES["depth"]):
            name = f"blocks.{number}"
            normed = self.layer_norm(x, f"{name}.norm1")
            q, k, v = (self.linear(normed, f"{name}.attn.qkv", slice(8 * i, 8 * i + 8)) for i in range(3))
            x = self.mlp(x + self.attention(q, k, v, SIZES["heads"], f"{name}.attn"), name)
            layers.append(x)
        x = torch.stack([self.w["mask_token"][0, 0] + self.w["decoder_pos_embed"][0, 1 + patch] for patch in predicted])
        for number in range(DECODER["decoder_depth"]):
            name, weights = f"decoder_blocks.{number}", self.w["decoder_mixture.weights"][number]
            y = sum(weight * layer for weight, layer in zip(weights, layers, strict=True))
            y = self.layer_norm(y, f"decoder_mixture.norms.{number}")
            q = self.linear(self.layer_norm(x, f"{name}.norm1"), f"{name}.attn.q")
            k, v = (self.linear(y, f"{name}.attn.kv", slice(12 * i, 12 * i + 12)) for i in range(2))
            x = self.mlp(x + self.attention(q, k, v, DECODER["decoder_heads"], f"{name}.attn"), name)
        pred = self.linear(self.layer_norm(x, "decoder_norm"), "decoder_pred")
        target = patches[predicted]
        if norm_pix_loss:
            target = (target - target.mean(1, keepdim=True)) / (target.var(1, keepdim=True) + 1e-6).sqrt()
        return ((pred - target) ** 2).mean()


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("predicted", [7, 3, 1])
def test_losses_and_gradients_follow_the_formulas(norm_pix_loss, predicted):
    model = tiny(norm_pix_loss).double()
    patches, mask = patches_of(4), keep_lowest(noise_of(4), 0.75)
    ids = removed_patches(mask)[:, torch.randperm(7, generator=torch.Generator().manual_seed(0))[:predicted]]
    output = model(patches, mask, ids)
    losses = reconstruction_loss(output, mask.mask)
    losses.mean().backward()

    weights = {name: value.detach().clone().requires_grad_() for name, value in model.state_dict().items()}
    formulas = Formulas(weights)
    expected = [formulas.loss(patches[i], mask.ids_keep[i], ids[i], norm_pix_loss) for i in range(4)]
    torch.stack(expected).mean().backward()
    # per_patch_loss is float32 by design, and mask too.
    for got, loss in zip(losses, expected, strict=True):
        assert got.item() == pytest.approx(loss.item(), rel=2e-6)
    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learned == set(weights) - {"pos_embed", "decoder_pos_embed", "norm.weight", "norm.bias"}
    for name, parameter in model.named_parameters():
        if name in learned:
            torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-5, atol=1e-7, msg=name)
        else:
            assert parameter.grad is None


def test_a_patch_is_predicted_alike_whichever_others_are():
    model, patches, mask = tiny().double(), patches_of(3), keep_lowest(noise_of(3), 0.75)
    everything = model(patches, mask)
    assert everything.pred.shape == (3, 9, 48)
    ids = removed_patches(mask)[:, [4, 1]]
    part = model(patches, mask, ids)
    torch.testing.assert_close(part.pred, everything.pred.gather(1, ids[:, :, None].expand(-1, -1, 48)))
    assert torch.equal(part.predicted, ids)
    assert ((part.per_patch_loss != 0).sum(1) == 2).all()
    torch.testing.assert_close(part.per_patch_loss.gather(1, ids), everything.per_patch_loss.gather(1, ids))


def test_all_patches_are_predicted_where_all_are_kept():
    model, patches = tiny().double(), patches_of(3)
    tokens = model.embed(patches)
    whole, in_order = (model.reconstruct(tokens, ids, patches) for ids in (None, torch.arange(9).expand(3, 9)))
    assert whole.per_patch_loss.shape == (3, 9)
    assert whole.latent.shape == (3, 10, 8)
    assert whole.decoder_input is None
    assert torch.equal(whole.pred, in_order.pred)


def test_the_encoder_is_that_of_mae():
    cross, plain = (build(ModelConfig("vit_tiny", 8, 32, 2, decoder=kind), 32, seed=5) for kind in ("cross", "self"))
    assert isinstance(cross, CrossMaskedAutoencoder)
    assert isinstance(plain, MaskedAutoencoderViT)
    ours, theirs = encoder_weights(cross.state_dict()), encoder_weights(plain.state_dict())
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    plain.load_state_dict(plain.state_dict() | ours)
    patches = torch.randn(2, 16, 192, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cross.features(patches), plain.features(patches))
    latent = cross(patches, keep_lowest(noise_of(2, 16), 0.75)).latent
    torch.testing.assert_close(latent, plain(patches, keep_lowest(noise_of(2, 16), 0.75)).latent)


def test_weights_follow_the_seed_and_mixtures_keep_the_variance_of_a_layer():
    first, again, other = (build(ModelConfig("vit_tiny", 8, 32, 12, decoder="cross"), 32, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.decoder_mixture.weights, other.decoder_mixture.weights)
    assert first.decoder_mixture.weights.shape == (12, 13)
    assert first.decoder_mixture.weights.std().item() == pytest.approx(13**-0.5, rel=0.2)
    assert 0 < first.mask_token.std() < 0.03


def test_bfloat16_agrees_with_float32():
    model = build(ModelConfig("vit_tiny", 8, 32, 2, decoder="cross"), 32, seed=0)
    patches, mask = torch.randn(4, 16, 192), keep_lowest(noise_of(4, 16), 0.75)
    losses = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(reconstruction_loss(model(patches, mask, removed_patches(mask)), mask.mask))
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0.02)
    assert losses[1].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():  # another attention is used without gradients
        same = reconstruction_loss(model(patches, mask, removed_patches(mask)), mask.mask)
    torch.testing.assert_close(same, losses[0], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("share", [0.25, 1 / 3, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("patches", [4, 16, 36, 49])
def test_a_share_of_the_removed_patches_is_chosen_by_the_key_alone(share, patches):
    masker, draws = RandomMasker(patches, 0.75), 200
    keys = torch.randint(-(2**63), 2**63 - 1, (draws,), generator=torch.Generator().manual_seed(4))
    mask = masker.propose(torch.zeros(draws, patches, 1), keys, torch.nn.Identity(), torch.tensor(0.0))
    chosen = masker.predicted(mask, keys, share)
    removed = patches - int(patches * 0.25)
    assert chosen.shape == (draws, max(1, round(share * removed)))
    assert (mask.mask.gather(1, chosen) == 1).all()
    assert all(len(set(row)) == len(row) for row in chosen.tolist())
    for places in (slice(3, 4), slice(50, 120), torch.tensor([7, 0, 11])):
        part = type(mask)(*(column if column is None else column[places] for column in mask))
        assert torch.equal(masker.predicted(part, keys[places], share), chosen[places])
    # Every removed patch is as likely, wherever it is in the order of the masker's noise.
    if share < 0.99 and patches > 4:
        place = mask.ids_restore.gather(1, chosen).double().mean()
        middle, spread = patches - (removed + 1) / 2, removed / math.sqrt(12 * draws * chosen.shape[1])
        assert abs(place - middle) < 5 * spread


def test_the_share_of_one_predicts_what_mae_predicts():
    masker, keys = RandomMasker(36, 0.75), torch.arange(5)
    mask = masker.propose(torch.zeros(5, 36, 1), keys, torch.nn.Identity(), torch.tensor(0.0))
    assert torch.equal(masker.predicted(mask, keys, 1.0).sort().values, removed_patches(mask).sort().values)


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_the_loss_is_the_mean_over_the_patches_predicted(kind):
    model = build(ModelConfig("vit_tiny", 8, 32, 2, decoder=kind), 32, seed=0).double()
    patches = torch.randn(4, 16, 192, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = keep_lowest(noise_of(4, 16), 0.75)
    ids = removed_patches(mask)[:, :3]
    everything, part = model(patches, mask), model(patches, mask, ids)
    expected = everything.per_patch_loss.gather(1, ids).mean(1)
    torch.testing.assert_close(reconstruction_loss(part, mask.mask), expected, rtol=1e-6, atol=0)
    removed = everything.per_patch_loss.gather(1, removed_patches(mask)).mean(1)
    torch.testing.assert_close(reconstruction_loss(everything, mask.mask), removed, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [{"decoder": "none"}, {"predict_share": 0.2}, {"predict_share": 1.5}])
def test_invalid_settings_are_errors_that_name_them(bad):
    with pytest.raises(ValueError, match=f"model.{next(iter(bad))} is .*; it must be"):
        ModelConfig(**bad)


def test_every_learned_weight_gets_a_gradient():
    model = build(ModelConfig("vit_tiny", 8, 32, 2, decoder="cross"), 32, seed=0)
    mask = keep_lowest(noise_of(2, 16), 0.75)
    reconstruction_loss(model(torch.randn(2, 16, 192), mask, removed_patches(mask)), mask.mask).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    assert all(p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)
