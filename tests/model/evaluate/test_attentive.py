"""Efficient probing against a straightforward computation, one query and one token at a time."""

import math

import pytest
import torch
from sklearn.datasets import load_digits

from mimcl.model.config import ModelConfig
from mimcl.model.evaluate.attentive import AttentiveConfig, AttentiveFastConfig, AttentiveProbe, adamw, patch_tokens
from mimcl.model.evaluate.linear import lars
from mimcl.model.mae import build, to_patches

WIDTH = 12


def probe(queries: int = 4, classes: int = 3, seed: int = 0) -> AttentiveProbe:
    return AttentiveProbe(WIDTH, queries, classes, torch.Generator().manual_seed(seed))


def tokens(images: int = 5, count: int = 7, seed: int = 1) -> torch.Tensor:
    return 3 * torch.randn(images, count, WIDTH, generator=torch.Generator().manual_seed(seed))


def slow_pool(net: AttentiveProbe, images: torch.Tensor) -> torch.Tensor:
    """As the paper writes it: values of all tokens first, of which each query sums its own part."""
    queries = len(net.queries)
    part = WIDTH // queries
    projection = net.values.reshape(WIDTH, WIDTH)
    pooled = []
    for image in images:
        values = [projection @ token for token in image]
        parts = []
        for number, query in enumerate(net.queries):
            scores = [math.exp((query @ token).item() / math.sqrt(WIDTH)) for token in image]
            own = [value[number * part : (number + 1) * part] for value in values]
            parts.append(sum(score / sum(scores) * value for score, value in zip(scores, own, strict=True)))
        pooled.append(torch.cat(parts))
    return torch.stack(pooled)


@pytest.mark.parametrize("queries", [1, 3, 4, 12])
def test_pooling_is_that_of_the_paper(queries):
    net = probe(queries)
    with torch.no_grad():
        net.queries.normal_(generator=torch.Generator().manual_seed(2))  # sharp attention
        torch.testing.assert_close(net.pool(tokens()), slow_pool(net, tokens()), rtol=1e-4, atol=1e-5)


def test_it_has_queries_one_projection_and_a_linear_layer_and_starts_near_the_mean():
    net = probe()
    sizes = {name: weight.numel() for name, weight in net.named_parameters()}
    assert sizes == {
        "queries": 4 * WIDTH,
        "values": WIDTH * WIDTH,
        "probe.head.weight": 3 * WIDTH,
        "probe.head.bias": 3,
    }
    mean = tokens().mean(dim=1) @ net.values.reshape(WIDTH, WIDTH).T
    torch.testing.assert_close(net.pool(tokens()), mean, rtol=0.2, atol=0.2)
    for mine, other in zip(net.parameters(), probe().parameters(), strict=True):
        assert torch.equal(mine, other)
    assert not torch.equal(net.queries, probe(seed=1).queries)


def test_the_order_of_the_tokens_does_not_matter():
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(probe().pool(tokens()[:, order]), probe().pool(tokens()))


@pytest.mark.parametrize("queries", [0, 5, 24])
def test_queries_must_divide_the_width(queries):
    with pytest.raises(ValueError, match=f"queries is {queries}; it must divide the width of a token, 12"):
        probe(queries)


def test_parameters_are_adapted_or_decayed_if_they_are_matrices():
    for optimizer, key in (
        (lars(probe(), AttentiveConfig()), "always_adapt"),
        (adamw(probe(), AttentiveFastConfig()), "weight_decay"),
    ):
        matrices, vectors = optimizer.param_groups
        assert [weight.ndim for weight in matrices["params"]] == [2, 3, 2]
        assert [weight.ndim for weight in vectors["params"]] == [1]
        assert matrices[key]
        assert not vectors[key]


@pytest.mark.parametrize("config", [AttentiveConfig, AttentiveFastConfig])
@pytest.mark.parametrize("name", ["epochs", "batch_size", "base_lr"])
def test_values_must_be_above_zero(config, name):
    with pytest.raises(ValueError, match=f"{name} is 0; it must be above 0"):
        config(**{name: 0})


def test_it_finds_the_token_that_matters_where_the_mean_cannot():
    """A digit among tokens of larger noise, marked by one number: attention finds it, a mean drowns it."""
    digits = load_digits()
    generator = torch.Generator().manual_seed(0)
    images = torch.tensor(digits.data, dtype=torch.float32) / 16 - 0.3
    count, width = 9, 68
    made = torch.zeros(len(images), count, width)
    made[..., :64] = 0.5 * torch.randn(len(images), count, 64, generator=generator)
    place = torch.randint(count, (len(images),), generator=generator)
    rows = torch.arange(len(images))
    made[rows, place, :64] = images
    made[rows, place, 64:] = 3.0
    labels = torch.tensor(digits.target)
    accuracies = {}
    for name in ("attention", "mean"):
        net = AttentiveProbe(width, 4, 10, torch.Generator().manual_seed(0))
        net.queries.requires_grad_(name == "attention")
        optimizer = adamw(net, AttentiveFastConfig())
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
        for step in range(200):
            batch = torch.randperm(1400, generator=torch.Generator().manual_seed(step))[:256]
            torch.nn.functional.cross_entropy(net(made[batch]), labels[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            accuracies[name] = (net.eval()(made[1400:]).argmax(dim=1) == labels[1400:]).float().mean().item()
    assert accuracies["attention"] > 0.5
    assert accuracies["mean"] < 0.2


def test_the_tokens_are_those_of_the_patches_alone():
    model = build(ModelConfig("vit_tiny", patch_size=4, decoder_width=32, decoder_depth=1), 16, seed=0)
    images = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = patch_tokens(model, images)
    assert found.shape == (3, 16, 192)
    assert not found.requires_grad
    torch.testing.assert_close(found.mean(dim=1), model.features(to_patches(images, 4)))
