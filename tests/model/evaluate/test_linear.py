"""MAE's linear probe: LARS against steps by hand, batch normalisation, and the CLS tokens it is trained on."""

import pytest
import torch

from mimcl.model import mae
from mimcl.model.config import ModelConfig
from mimcl.model.evaluate.linear import LinearConfig, Probe, cls_tokens, lars
from mimcl.model.mae import build, to_patches


def probe(seed: int = 0) -> Probe:
    return Probe(6, 3, torch.Generator().manual_seed(seed))


def test_lars_matches_steps_by_hand():
    """Momentum of the gradient times trust * |w| / |g| for the matrix, of the plain gradient for the bias."""
    net, generator = probe(), torch.Generator().manual_seed(1)
    optimizer = lars(net, LinearConfig(momentum=0.9, trust=0.001))
    weight, bias = net.head.weight.detach().clone(), net.head.bias.detach().clone()
    of_weight, of_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    for lr in (2.0, 5.0, 0.5):
        gradients = torch.randn(3, 6, generator=generator), torch.randn(3, generator=generator)
        net.head.weight.grad, net.head.bias.grad = (g.clone() for g in gradients)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        of_weight = 0.9 * of_weight + gradients[0] * 0.001 * weight.norm() / gradients[0].norm()
        of_bias = 0.9 * of_bias + gradients[1]
        weight, bias = weight - lr * of_weight, bias - lr * of_bias
        torch.testing.assert_close(net.head.weight.detach(), weight)
        torch.testing.assert_close(net.head.bias.detach(), bias)


def test_features_are_normalised_without_parameters():
    net, norm = probe(), torch.nn.BatchNorm1d(6, affine=False, eps=1e-6, momentum=None)
    assert [name for name, _ in net.named_parameters()] == ["head.weight", "head.bias"]
    assert net.head.weight.std() < 0.02
    for scale in (1, 2, 5):
        features = scale * torch.randn(64, 6) + 3
        wanted = (features - features.mean(dim=0)) / (features.var(dim=0, correction=0) + 1e-6).sqrt()
        torch.testing.assert_close(net.train()(features), net.head(wanted))
        norm.train()(features)
    torch.testing.assert_close(net.mean, norm.running_mean)
    torch.testing.assert_close(net.variance, norm.running_var)
    torch.testing.assert_close(net.eval()(features), net.head(norm.eval()(features)))


def test_the_probe_depends_on_its_seed_alone():
    state = torch.get_rng_state()
    assert torch.equal(probe().head.weight, probe().head.weight)
    assert not torch.equal(probe().head.weight, probe(1).head.weight)
    assert torch.equal(state, torch.get_rng_state())


def test_cls_tokens_are_the_first_tokens_of_the_last_layer(monkeypatch):
    monkeypatch.setitem(mae.SIZES, "vit_tiny", (32, 2, 2))
    encoder = build(ModelConfig(name="vit_tiny", patch_size=8), 32, 0).eval()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    found = cls_tokens(encoder, images)
    torch.testing.assert_close(found, encoder.encode(encoder.embed(to_patches(images, 8)))[:, 0])
    assert not found.requires_grad


def test_travel_grows_with_images_and_epochs():
    assert LinearConfig().travel(1_281_167) == pytest.approx(225, abs=1)
    assert LinearConfig(batch_size=64).travel(1_281_167) == LinearConfig().travel(1_281_167)
    assert LinearConfig(epochs=900).travel(5000) == pytest.approx(10 * LinearConfig().travel(5000))
