"""The classifier for fine-tuning: loading the encoder, deterministic drop path, learning rate and decay by layer."""

import numpy as np
import pytest
import torch
from torch.nn.functional import layer_norm

from mimcl.model import mae
from mimcl.model.config import ModelConfig
from mimcl.model.evaluate.finetune import (
    Classifier,
    DeterministicDropPath,
    normalise,
    soft_cross_entropy,
)
from mimcl.model.evaluate.finetune_config import FinetuneConfig
from mimcl.model.mae import build, to_patches

TINY = ModelConfig(name="vit_tiny", patch_size=8, decoder_depth=1)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(mae.SIZES, "vit_tiny", (32, 3, 2))


def make_classifier(drop_path: float = 0.3, seed: int = 0) -> Classifier:
    classifier = Classifier(TINY, 32, 5, drop_path)
    classifier.initialise(build(TINY, 32, 1).state_dict(), torch.Generator().manual_seed(seed))
    return classifier


def images(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), np.uint8))


def test_features_are_those_of_the_encoder_without_its_last_norm():
    encoder, classifier = build(TINY, 32, 1).eval(), make_classifier().eval()
    encoder.norm = torch.nn.Identity()
    pooled = encoder.features(to_patches(images(4), 8))
    logits = classifier(normalise(images(4)))
    torch.testing.assert_close(logits, classifier.vit.head(layer_norm(pooled, (32,), eps=1e-6)))
    assert 0 < classifier.vit.head.weight.std() < 4e-5
    assert logits.abs().max() < 1e-3


def test_it_depends_on_its_seed_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, again, other = make_classifier(), make_classifier(), make_classifier(seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.vit.head.weight, other.vit.head.weight)
    first.train().keep_paths(np.random.default_rng(0).random((4, len(first.paths))))
    first(normalise(images(4))).sum().backward()
    assert torch.equal(state, torch.get_rng_state())


def test_paths_are_dropped_by_the_given_numbers_at_rates_that_grow_with_depth():
    classifier = make_classifier(0.3)
    assert [path.rate for path in classifier.paths] == pytest.approx([0.15, 0.15, 0.3, 0.3])
    classifier.keep_paths(np.array([[0.14, 0.16, 0.29, 0.31], [0.9] * 4]))
    assert [path.kept.tolist() for path in classifier.paths] == [[False, True], [True] * 2, [False, True], [True] * 2]
    x = torch.ones(2, 3, 4)
    out = classifier.paths[0].train()(x)
    assert not out[0].any()
    torch.testing.assert_close(out[1], x[1] / 0.85)
    assert torch.equal(classifier.paths[0].eval()(x), x)


def test_drop_path_keeps_the_expectation():
    path = DeterministicDropPath(0.2)
    path.kept = torch.from_numpy(np.random.default_rng(0).random(20_000) >= 0.2)
    assert path.train()(torch.ones(20_000, 1, 1)).mean().item() == pytest.approx(1, abs=0.01)


def test_an_image_does_not_depend_on_the_rest_of_the_batch():
    classifier = make_classifier(0.5).train()
    numbers = np.random.default_rng(3).random((6, len(classifier.paths)))
    classifier.keep_paths(numbers)
    together = classifier.vit.forward_features(normalise(images(6)))
    classifier.keep_paths(numbers[4:])
    torch.testing.assert_close(together[4:], classifier.vit.forward_features(normalise(images(6)[4:])))
    classifier.keep_paths(1 - numbers[4:])
    assert not torch.allclose(together[4:], classifier.vit.forward_features(normalise(images(6)[4:])), atol=1e-3)


def test_each_layer_has_its_learning_rate_and_vectors_do_not_decay():
    classifier, config = make_classifier(), FinetuneConfig(layer_decay=0.6)
    of = {}
    for group in classifier.parameter_groups(config):
        for parameter in group["params"]:
            of[id(parameter)] = group["lr_scale"], group["weight_decay"]
    for name, parameter in classifier.vit.named_parameters():
        stem, *rest = name.split(".")
        layer = int(rest[0]) + 1 if stem == "blocks" else 4 if stem in ("fc_norm", "head") else 0
        scale, decay = of.pop(id(parameter))
        assert scale == pytest.approx(0.6 ** (4 - layer)), name
        assert decay == (0.0 if parameter.ndim == 1 or name in ("pos_embed", "cls_token") else 0.05), name
    assert not of


def test_the_loss_is_the_cross_entropy_of_torch():
    logits, targets = torch.randn(6, 5), torch.rand(6, 5).softmax(dim=1)
    wanted = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(soft_cross_entropy(logits, targets), wanted)


def test_encoder_sizes_have_the_settings_of_the_paper():
    large, huge = FinetuneConfig.overrides_for("vit_large"), FinetuneConfig.overrides_for("vit_huge")
    assert (large["epochs"], large["base_lr"], large["layer_decay"], large["drop_path"]) == (50, 1e-3, 0.75, 0.2)
    assert huge == large | {"drop_path": 0.3}
    assert FinetuneConfig.overrides_for("vit_base") == FinetuneConfig.overrides_for("vit_tiny") == {}
    base = FinetuneConfig()
    assert (base.epochs, base.base_lr, base.layer_decay, base.drop_path, base.batch_size) == (
        100,
        5e-4,
        0.65,
        0.1,
        1024,
    )


@pytest.mark.parametrize(
    ("name", "value"), [("drop_path", 1.0), ("mixup", -0.1), ("epochs", 0.0), ("rand_augment", 11)]
)
def test_invalid_values_are_errors(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        FinetuneConfig(**{name: value})
