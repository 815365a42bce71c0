"""The trainer on made-up batches: gradients, accumulation, skipped steps, resume, and the contract with maskers."""

import copy
import random
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
import torch._inductor.config

from mimcl.curriculum.masking.masker import Masker
from mimcl.curriculum.masking.random import RandomMasker
from mimcl.model.config import OptimConfig, TrainerConfig
from mimcl.model.determinism import use_deterministic_kernels
from mimcl.model.forward_backward import CompileUnit
from mimcl.model.mae import MaskedAutoencoderViT, reconstruction_loss, to_patches
from mimcl.model.optim import learning_rate
from mimcl.model.trainer import Trainer
from mimcl.model.training_error import TrainingError
from mimcl.pipeline.augment import STREAM_MASK, hash64

BATCH, STEPS = 8, 6
DRAWS = BATCH * STEPS


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


@pytest.fixture
def deterministic(monkeypatch):
    """As trainer.deterministic: on a GPU the same bits come from the same steps only so."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # put back afterwards
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    with torch._inductor.config.patch(deterministic=False):
        use_deterministic_kernels()
        yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def compiler(device, monkeypatch):
    """Compiles for a GPU; on the CPU it traces and differentiates, but generates no machine code, which takes long."""
    if device == "cpu":
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@dataclass
class MadeBatch:
    images: torch.Tensor
    keys: torch.Tensor
    position: int
    bad: tuple = ()


def stream(micro: int = BATCH, start: int = 0, device: str = "cpu"):
    """Draw g is always the same image, whatever the micro-batch."""
    for first in range(start, DRAWS, micro):
        draws = np.arange(first, first + micro)
        bits = hash64(1, np.arange(first * 192, (first + micro) * 192), 9)
        pixels = torch.from_numpy((bits >> np.uint64(56)).astype(np.uint8)).view(micro, 3, 8, 8)
        images = torch.nn.functional.interpolate(pixels.float(), 32, mode="bilinear").to(torch.uint8)
        keys = torch.from_numpy(hash64(0, draws, STREAM_MASK).view(np.int64))
        yield MadeBatch(images.to(device), keys.to(device), (first // BATCH + 1) * BATCH)


def make(
    micro_batches: int = 1,
    masker: torch.nn.Module | None = None,
    precision="float32",
    device="cpu",
    unit: CompileUnit | None = None,
    **config,
) -> Trainer:
    model = MaskedAutoencoderViT(
        32, 8, 32, 2, 2, decoder_width=32, decoder_depth=1, decoder_heads=1, norm_pix_loss=True
    )
    model.initialise(torch.Generator().manual_seed(0))
    return Trainer(
        model.to(device),
        masker or RandomMasker(model.num_patches, 0.75).to(device),
        TrainerConfig(**{"epochs": STEPS, "log_every_steps": 2, "compile": unit is not None, **config}),
        OptimConfig(base_lr=0.03, warmup_epochs=1),
        samples=BATCH,
        draws=DRAWS,
        batch_size=BATCH,
        micro_batches=micro_batches,
        precision=precision,
        compile_unit=unit or "whole",
    )


def run(trainer: Trainer, batches, observers=()) -> list:
    return [(step.number, step.report) for step in trainer.steps(batches, observers)]


def weights_of(trainer: Trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def test_a_run_is_adamw_on_the_mean_loss_over_removed_patches():
    trainer = make()
    model = copy.deepcopy(trainer.model)
    masker, config = trainer.masker, OptimConfig(base_lr=0.03, warmup_epochs=1)
    no_decay = [p for p in model.parameters() if p.ndim <= 1]
    decay = [p for p in model.parameters() if p.ndim > 1 and p.requires_grad]
    groups = [dict(params=decay, weight_decay=0.05), dict(params=no_decay, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), foreach=False)
    for step, batch in enumerate(stream()):
        patches = to_patches(batch.images, 8)
        mask = masker.propose(patches, batch.keys, model, 0.0)
        optimizer.zero_grad()
        reconstruction_loss(model(patches, mask), mask.mask).mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, STEPS, BATCH, config)
        optimizer.step()
    run(trainer, stream())
    expected = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    torch.testing.assert_close(weights_of(trainer), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_change_the_weights(steps):
    model = make().model
    trainer: Trainer = Trainer(
        model,
        RandomMasker(model.num_patches, 0.75),
        TrainerConfig(epochs=steps),
        OptimConfig(base_lr=0.03, warmup_epochs=steps / 10),
        samples=BATCH,
        draws=steps * BATCH,
        batch_size=BATCH,
        micro_batches=1,
        precision="float32",
    )
    before, (_, report) = weights_of(trainer), run(trainer, islice(stream(), steps))[0]
    assert report.lr == pytest.approx(0.03 * BATCH / 256)
    assert not torch.equal(weights_of(trainer), before)


def test_reports_come_first_last_and_between_with_mean_losses():
    every_step, trainer = {}, make()
    observed = []

    class Observer:
        def observe(self, batch, per_sample_loss):
            assert not per_sample_loss.requires_grad
            observed.append(per_sample_loss)

    reports = run(trainer, stream(), [Observer()])
    assert [step for step, _ in reports] == [1, 2, 3, 4, 5, 6]
    every_step = {step: report for step, report in reports if report}
    assert list(every_step) == [1, 2, 4, 6]
    losses = [loss.mean().item() for loss in observed]
    assert every_step[1].loss == pytest.approx(losses[0])
    assert every_step[4].loss == pytest.approx((losses[2] + losses[3]) / 2)
    assert every_step[6].draw == DRAWS
    assert every_step[4].lr == pytest.approx(learning_rate(3, STEPS, BATCH, OptimConfig(base_lr=0.03, warmup_epochs=1)))
    assert 0 <= every_step[6].data_wait <= 1
    assert losses[-1] < losses[0]


def test_micro_batches_give_the_same_run():
    whole, pieces = make(), make(micro_batches=4)
    first, second = run(whole, stream()), run(pieces, stream(micro=2))
    torch.testing.assert_close(weights_of(whole), weights_of(pieces), atol=1e-4, rtol=1e-3)
    assert [r.loss for _, r in first if r] == pytest.approx([r.loss for _, r in second if r], rel=1e-5)


@pytest.mark.parametrize(("precision", "unit"), [("float32", None), ("bfloat16", None), ("bfloat16", "blocks")])
def test_taking_up_a_saved_state_continues_bit_for_bit(precision, unit, device, deterministic, compiler):
    unbroken = make(precision=precision, device=device, unit=unit)
    run(unbroken, stream(device=device))
    broken = make(precision=precision, device=device, unit=unit)
    kept = {}

    for step in broken.steps(stream(device=device)):
        if step.number == 3:
            kept["tensors"] = {name: tensor.clone() for name, tensor in broken.tensors().items()}
            kept["state"] = copy.deepcopy(broken.state_dict())
    again = make(precision=precision, device=device, unit=unit)
    again.load(**kept)
    assert again.position == 3 * BATCH
    run(again, stream(start=again.position, device=device))
    assert torch.equal(weights_of(again), weights_of(unbroken))


def test_bfloat16_has_a_float32_loss_near_that_of_float32():
    low, full = (run(make(precision=p), stream()) for p in ("bfloat16", "float32"))
    losses = [[r.loss for _, r in reports if r] for reports in (low, full)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]


def spoiled(steps, micro=BATCH, device="cpu"):
    """The stream with infinite pixels at some steps (1, 2, ...)."""
    for batch in stream(micro, device=device):
        if batch.position // BATCH in steps:
            batch.images = torch.full_like(batch.images, 1).float() * torch.inf
        yield batch


def test_a_step_without_a_finite_gradient_changes_nothing(device):
    trainer = make(device=device)
    seen = {}

    for step in trainer.steps(spoiled({3}, device=device)):
        optimizers = copy.deepcopy(trainer.state_dict()["optimizers"])
        seen[step.number] = weights_of(trainer).clone(), optimizers, step.report
    assert torch.equal(seen[2][0], seen[3][0])
    for before, after in zip(seen[2][1][0]["state"].values(), seen[3][1][0]["state"].values(), strict=True):
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert not torch.equal(seen[3][0], seen[4][0])
    assert weights_of(trainer).isfinite().all()
    report = seen[4][2]
    assert report.nonfinite_steps == 1
    assert np.isfinite(report.loss)
    assert seen[6][2].nonfinite_steps == 0


def test_too_many_such_steps_in_a_row_stop_the_run():
    with pytest.raises(TrainingError, match=r"no finite gradient in . steps in a row.*base_lr"):
        run(make(max_nonfinite=2), spoiled({2, 3, 4, 5}))
    run(make(max_nonfinite=2), spoiled({2, 4, 6}))  # never two in a row


def test_every_outcome_comes_once_one_step_late_and_at_once_where_a_report_or_checkpoint_is_due():
    trainer = make(checkpoint_every_steps=5, log_every_steps=100)
    seen = {step.number: step.outcomes for step in trainer.steps(spoiled({3}))}
    assert {step: [o.step for o in outcomes] for step, outcomes in seen.items()} == {
        1: [1],
        2: [],
        3: [2],
        4: [3],
        5: [4, 5],
        6: [6],
    }
    outcomes = [outcome for step in seen for outcome in seen[step]]
    assert [outcome.finite for outcome in outcomes] == [True, True, False, True, True, True]
    assert [outcome.lr for outcome in outcomes] == [
        learning_rate(step, STEPS, BATCH, OptimConfig(base_lr=0.03, warmup_epochs=1)) for step in range(STEPS)
    ]
    assert not any(outcome.stop or outcome.bad for outcome in outcomes)


def test_bad_samples_are_counted_by_step():
    batches = list(stream(micro=4))
    batches[2].bad, batches[3].bad = ("one",), ("two", "three")  # both of step 2
    seen = [outcome for step in make(micro_batches=2).steps(batches) for outcome in step.outcomes]
    assert [outcome.bad for outcome in seen] == [0, 3, 0, 0, 0, 0]


def test_a_run_asked_to_stop_ends_one_step_later_and_goes_on_as_if_it_had_not():
    unbroken = run(whole := make(log_every_steps=4), stream())
    trainer, reports = make(log_every_steps=4), []
    for step in trainer.steps(stream(), stop=lambda: len(reports) == 1):
        reports.append((step.number, step.report))
    assert not trainer.finished
    assert trainer.position == 3 * BATCH  # asked in step 2, known after step 3
    again = make(log_every_steps=4)
    again.load({k: v.clone() for k, v in trainer.tensors().items()}, copy.deepcopy(trainer.state_dict()))
    reports += run(again, stream(start=again.position))
    assert torch.equal(weights_of(again), weights_of(whole))
    # The report of step 4 is the mean over steps 2 to 4, of which the first two were before the stop.
    assert [r.loss for _, r in reports if r] == [r.loss for _, r in unbroken if r]


@pytest.mark.parametrize("config", [{"log_every_steps": 1}, {"log_every_steps": 2}, {"checkpoint_every_steps": 2}])
def test_being_asked_to_stop_in_a_step_that_reports_or_saves_is_not_missed(config):
    trainer, seen = make(**config), []
    for step in trainer.steps(stream(), stop=lambda: len(seen) == 1):  # asked in step 2
        seen.append(step.number)
    assert not trainer.finished
    assert seen == [1, 2]


def test_training_leaves_every_global_generator_alone():
    trainer = make()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    run(trainer, stream())
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert before[2] == random.getstate()


@pytest.mark.parametrize("unit", ["blocks", "whole"])
def test_a_compiled_run_has_the_losses_of_an_eager_one(unit, device, compiler):
    runs = [run(make(precision="bfloat16", device=device, unit=how), stream(device=device)) for how in (None, unit)]
    eager, compiled = ([report.loss for _, report in reports if report] for reports in runs)
    assert compiled == pytest.approx(eager, rel=0.01)


@pytest.mark.gpu
@pytest.mark.parametrize("unit", [None, "blocks"])
def test_between_reports_the_host_never_waits_for_the_device(unit):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch._dynamo.reset()
    trainer = make(precision="bfloat16", device="cuda", unit=unit, log_every_steps=10**9)
    batches = list(stream(device="cuda"))
    # The first step, which compiles, and the last one report; torch raises at whatever waits in the steps between.
    modes = {1: "error", STEPS - 1: "default"}
    try:
        for step in trainer.steps(batches):
            if step.number in modes:
                torch.cuda.set_sync_debug_mode(modes[step.number])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.position == DRAWS


def test_timing_a_micro_batch_changes_nothing():
    trainer, untouched = make(), make()
    assert trainer.time_of_micro_batch(next(stream())) > 0
    run(trainer, stream())
    run(untouched, stream())
    assert torch.equal(weights_of(trainer), weights_of(untouched))


class LearningMasker(Masker):
    """Uses every part of the contract: a loss added to the model's, an objective of its own, a state."""

    def __init__(self):
        super().__init__()
        self.random = RandomMasker(16, 0.75)
        self.beside = torch.nn.Parameter(torch.zeros(()))  # with the model's optimizer
        self.own = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.progress = []

    def propose(self, patches, keys, model, progress):
        self.progress.append(progress.item())
        return self.random.propose(patches, keys, model, progress)

    def loss(self, output, mask):
        return (self.beside - 1).square().expand(len(mask.mask))

    def second_loss(self, patches, mask, model, progress):
        # Reaches into the model, which this objective must not move.
        return (self.own - 2).square() + 100 * model.cls_token.square().sum().expand(len(patches))

    def after_step(self, model, progress, finite):
        self.steps += finite

    def parameters_with_model(self):
        return [("beside", self.beside)]

    def own_parameters(self):
        return [("own", self.own)]


def test_a_learning_masker_is_trained_saved_and_taken_up():
    plain = make()
    run(plain, stream())
    masker = LearningMasker()
    trainer = make(masker=masker)
    run(trainer, stream())
    assert masker.beside.item() > 0
    assert masker.own.item() > 0
    assert masker.steps == STEPS
    assert masker.progress == pytest.approx([step / STEPS for step in range(STEPS)])
    # Neither objective reaches the model's weights.
    assert torch.equal(weights_of(plain), weights_of(trainer))
    tensors = trainer.tensors()
    assert {"masker.beside", "masker.own", "masker.steps"} <= tensors.keys()
    again = make(masker=LearningMasker())
    again.load(tensors, trainer.state_dict())
    assert again.masker.own.item() == masker.own.item()
    assert again.masker.steps == STEPS


def test_micro_batches_of_a_masker_with_its_own_objective_accumulate():
    whole, pieces = make(masker=LearningMasker()), make(micro_batches=2, masker=LearningMasker())
    run(whole, stream())
    run(pieces, stream(micro=4))
    assert pieces.masker.own.item() == pytest.approx(whole.masker.own.item(), rel=1e-5)


def test_a_masker_does_not_move_in_a_step_without_a_finite_gradient():
    trainer = make(masker=LearningMasker())
    run(trainer, spoiled({2, 5}))
    assert trainer.masker.steps == STEPS - 2


def test_a_checkpoint_of_another_masker_is_refused_by_what_is_missing_or_foreign():
    plain, learning = make(), make(masker=LearningMasker())
    before = weights_of(learning)
    with pytest.raises(ValueError, match=r"^it has no masker.beside, masker.own, masker.steps \(3 tensors missing\); "):
        learning.load(plain.tensors(), plain.state_dict())
    with pytest.raises(
        ValueError, match=r"^it has masker.beside, .* \(3 tensors\), which this run does not have; resume with"
    ):
        plain.load(learning.tensors(), learning.state_dict())
    other = {name.replace("blocks.1.", "blocks.2."): tensor for name, tensor in learning.tensors().items()}
    other["decoder_blocks.1.norm1.bias"] = other["extra"] = other["more"] = torch.zeros(1)
    with pytest.raises(
        ValueError,
        match=r"has no blocks.1 \(12 tensors missing\) and has blocks.2, decoder_blocks.1, extra ... \(15 tensors\)",
    ):
        learning.load(other, learning.state_dict())
    assert torch.equal(weights_of(learning), before)
