"""The learning rate schedule, and which parameters decay."""

import math

import pytest
import torch

from mimcl.model.config import ModelConfig, OptimConfig
from mimcl.model.mae import build
from mimcl.model.optim import adamw, learning_rate


def test_learning_rate_warms_up_then_falls_along_half_a_cosine():
    config = OptimConfig(base_lr=1.5e-4, warmup_epochs=40)
    peak = 1.5e-4 * 4096 / 256

    def at(epoch):
        return learning_rate(epoch, 800, 4096, config)

    assert at(0) == 0
    assert at(10) == pytest.approx(peak / 4)
    assert at(40) == pytest.approx(peak)
    assert at(420) == pytest.approx(peak / 2)
    assert at(40 + 760 / 4) == pytest.approx(peak * (1 + math.sqrt(0.5)) / 2)
    assert at(800) == pytest.approx(0, abs=1e-12)
    assert at(800.4) == pytest.approx(0, abs=1e-12)  # the last batch may go beyond the last epoch


def test_no_warm_up_starts_at_the_peak():
    assert learning_rate(0, 10, 512, OptimConfig(base_lr=1e-3, warmup_epochs=0)) == pytest.approx(2e-3)


@pytest.mark.parametrize("warmup", [0, 0.1, 1, 40, 800])
@pytest.mark.parametrize("samples", [1, 64, 640, 1_281_167])
@pytest.mark.parametrize("steps", [0.1, 1, 1.01, 2, 2.5, 3, 9, 10, 11])
def test_no_run_is_so_short_that_nothing_is_learned(steps, samples, warmup):
    """The last step of a cosine may have a rate near 0, the first one of a warm-up has 0; never all of them."""
    batch, step = 64, 64 / samples
    epochs = steps * step
    config = OptimConfig(base_lr=1e-3, warmup_epochs=warmup * step)
    peak = 1e-3 * batch / 256
    rates = [learning_rate(n * step, epochs, batch, config, step) for n in range(math.ceil(steps))]
    assert (0.2 * peak if warmup < steps else 0) < max(rates) <= peak
    if warmup < 1 or steps <= 1:
        assert rates[0] == pytest.approx(peak)  # the first step does not wait for a warm-up that it is longer than
    else:
        assert rates[0] == 0


@pytest.mark.parametrize(("steps", "samples"), [(10, 500), (10, 1_281_167), (391, 500), (250_225, 1_281_167)])
def test_the_rates_of_longer_runs_are_those_of_the_formula(steps, samples):
    batch, step = 64, 64 / samples
    epochs = steps * step
    config = OptimConfig(base_lr=1e-3, warmup_epochs=epochs / 10)
    for number in {0, 1, 2, steps // 2, steps - 1}:
        assert learning_rate(number * step, epochs, batch, config, step) == learning_rate(
            number * step, epochs, batch, config
        )


def test_biases_norms_and_fixed_positions_do_not_decay():
    model = build(ModelConfig("vit_tiny", 8, 32, 1), 32, seed=0)
    decayed, kept = adamw(model.named_parameters(), OptimConfig(weight_decay=0.3)).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decayed["weight_decay"] == 0.3
    assert kept["weight_decay"] == 0
    assert {names[id(p)].rpartition(".")[2] for p in kept["params"]} == {"bias", "weight"}
    assert all("norm" in names[id(p)] or names[id(p)].endswith("bias") for p in kept["params"])
    assert not any("norm" in names[id(p)] or names[id(p)].endswith("bias") for p in decayed["params"])
    trained = len(decayed["params"]) + len(kept["params"])
    assert trained == sum(parameter.requires_grad for parameter in model.parameters())
    assert trained == len(list(model.parameters())) - 2  # the two tables of positions


def test_decay_shrinks_parameters_with_negligible_gradients():
    weight, bias = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    optimizer = adamw([("weight", weight), ("bias", bias)], OptimConfig(weight_decay=0.5))
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    weight.grad, bias.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), 0.95))
    torch.testing.assert_close(bias.detach(), torch.ones(2))


@pytest.mark.parametrize("bad", [dict(base_lr=-1.0), dict(warmup_epochs=-1.0), dict(betas=(0.9, 1.0))])
def test_invalid_values_are_errors_that_name_them(bad):
    with pytest.raises(ValueError, match=f"optim.{next(iter(bad))}"):
        OptimConfig(**bad)
