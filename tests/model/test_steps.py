"""The step loop: accumulation over micro-batches, skipped steps, outcomes one step late, exact resumption."""

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from timm.optim import Lars
from torch import nn

from mimcl.model.evaluate.supervised import LabelledObjective
from mimcl.model.steps import StepLoop
from mimcl.model.training_error import TrainingError

BATCH, PARTS, STEPS = 8, 2, 6


@dataclass
class Part:
    x: torch.Tensor
    y: torch.Tensor
    position: int
    bad: tuple = ()


def parts(start: int = 0, poisoned: tuple[int, ...] = ()):
    for step in range(start, STEPS):
        for part in range(PARTS):
            generator = torch.Generator().manual_seed(10 * step + part)
            x = torch.randn(BATCH // PARTS, 5, generator=generator)
            if step in poisoned and part == 0:
                x = x * torch.inf
            yield Part(x, torch.randint(0, 3, (BATCH // PARTS,), generator=generator), (step + 1) * BATCH)


@dataclass
class Training:
    """A loop and what it trains."""

    module: nn.Module
    loop: StepLoop


def made(kind: str = "adamw") -> Training:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.BatchNorm1d(5, affine=False), nn.Linear(5, 3))
    groups = [{"params": [module[1].weight], "lr_scale": 0.5}, {"params": [module[1].bias]}]
    if kind == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
    else:
        optimizer = Lars(groups, lr=0.0, momentum=0.9, always_adapt=True)

    def losses(part: Part) -> torch.Tensor:
        return nn.functional.cross_entropy(module(part.x), part.y, reduction="none")

    rate = lambda position: 0.1 + position / 100  # noqa: E731
    objective = LabelledObjective(module, optimizer, losses, rate, batch_size=BATCH)
    sizes = {"batch_size": BATCH, "micro_batches": PARTS, "draws": STEPS * BATCH}
    return Training(module, StepLoop(objective, torch.device("cpu"), **sizes))


def run(training: Training, batches=None, **options) -> list:
    """Trains to the end, or to where it stops; the outcomes of all steps."""
    return [outcome for step in training.loop.steps(batches or parts(), **options) for outcome in step.outcomes]


def weights(training: Training) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in training.module.state_dict().items()}


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_step_is_that_of_torch_on_the_whole_batch():
    training = made()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        by_hand = nn.Sequential(nn.BatchNorm1d(5, affine=False), nn.Linear(5, 3))
    groups = [{"params": [by_hand[1].weight]}, {"params": [by_hand[1].bias]}]
    optimizer = torch.optim.AdamW(groups, lr=0.0)
    found = run(training)
    assert training.loop.position == STEPS * BATCH
    stream, losses = parts(), []
    for step in range(STEPS):
        loss = sum(
            nn.functional.cross_entropy(by_hand(part.x), part.y, reduction="sum") / BATCH
            for part in (next(stream) for _ in range(PARTS))
        )
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        for group, scale in zip(optimizer.param_groups, (0.5, 1.0), strict=True):
            group["lr"] = scale * (0.1 + step * BATCH / 100)
        optimizer.step()
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(training.module.state_dict()[name], value, msg=name)
    assert [outcome.loss for outcome in found] == pytest.approx(losses)
    assert [outcome.step for outcome in found] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("kind", ["adamw", "lars"])
@pytest.mark.parametrize("bad", [0, 3])
def test_a_step_without_a_finite_gradient_changes_nothing(kind, bad):
    training, before, after = made(kind), [], []

    before.append(weights(training))
    for step in training.loop.steps(parts(poisoned=(bad,))):
        (before if step.number == bad else after if step.number == bad + 1 else []).append(weights(training))
    one, other = before[-1], after[0]
    one.pop("0.num_batches_tracked")  # a number that nothing depends on, here
    assert same(one, other)
    assert all(value.isfinite().all() for value in weights(training).values())
    assert not same(one, weights(training))


def test_too_many_of_them_are_an_error():
    with pytest.raises(TrainingError, match=r"3 steps in a row, up to step 4; .*base_lr"):
        run(made(), parts(poisoned=(1, 2, 3, 4, 5)))


@pytest.mark.parametrize("kind", ["adamw", "lars"])
def test_what_was_stopped_goes_on_bit_for_bit(kind):
    whole = made(kind)
    run(whole)
    first, stops = made(kind), iter([False, False, True, True])
    run(first, stop=lambda: next(stops))
    assert BATCH * 3 <= first.loop.position < BATCH * STEPS  # one step late
    second = made(kind)
    second.module.load_state_dict(weights(first))
    second.loop.load_state_dict(first.loop.state_dict())
    run(second, parts(first.loop.position // BATCH))
    assert second.loop.position == BATCH * STEPS
    assert same(weights(whole), weights(second))


def test_outcomes_come_at_once_where_they_are_due():
    steps = made().loop.steps(parts(), is_due=lambda step: step == 3)
    seen = {step.number: [outcome.step for outcome in step.outcomes] for step in steps}
    assert seen == {1: [], 2: [1], 3: [2, 3], 4: [], 5: [4], 6: [5, 6]}


def in_a_thread(work):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@pytest.mark.parametrize("kind", ["adamw", "lars"])
def test_the_state_of_a_step_under_way_is_that_before_it(kind):
    """Another thread may read it, in the middle of the step only, and resume from it exactly."""
    training, resumed, found = made(kind), made(kind), []
    loop, objective = training.loop, training.loop._objective

    def is_free() -> bool:
        free = loop.changing.acquire(blocking=False)
        if free:
            loop.changing.release()
        return free

    def read() -> bool:
        assert is_free()
        if loop.position == 2 * BATCH:
            outcomes = [outcome.step for outcome in loop.flush()]
            found.append((outcomes, copy.deepcopy(objective.tensors()), copy.deepcopy(loop.state_dict())))

    class Watch:
        def observe(self, part, losses):
            in_a_thread(read)

    for optimizer in objective.optimizers():
        optimizer.register_step_pre_hook(lambda *_: found.append(in_a_thread(is_free)))
    for _ in loop.steps(parts(), [Watch()]):
        assert not in_a_thread(is_free)
    assert in_a_thread(is_free)
    assert [free for free in found if isinstance(free, bool)] == [False] * STEPS
    (first, *_), (second, tensors, state) = [entry for entry in found if not isinstance(entry, bool)]
    assert (first, second) == ([2], [])  # the outcome of the step before comes once
    assert state["position"] == 2 * BATCH
    resumed.module.load_state_dict(tensors)
    resumed.loop.load_state_dict(state)
    run(resumed, parts(start=2))
    assert same(weights(resumed), weights(training))
