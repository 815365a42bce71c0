"""CL-MAE's masker: masks that follow from scores, the objective term by term, groups, and what it does in a trainer."""

import copy
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from helpers.exhaustive import exhaustive

from mimcl.curriculum.masking import learned
from mimcl.curriculum.masking.factory import make_masker
from mimcl.curriculum.masking.learned import (
    LearnedMasker,
    area_averages,
    curriculum_factor,
    diversity,
    gaussian,
    kl_from_ratio,
    soft_reconstruction,
)
from mimcl.curriculum.masking.mask import keep_lowest
from mimcl.curriculum.masking.masker import Masker
from mimcl.curriculum.masking.masking_config import HardPatchesConfig, LearnedMaskingConfig, MaskingConfig
from mimcl.curriculum.masking.schedule import MaskingSchedule
from mimcl.model.config import OptimConfig, TrainerConfig
from mimcl.model.forward_backward import ForwardBackward, twin
from mimcl.model.mae import MaskedAutoencoderViT, to_patches
from mimcl.model.trainer import Trainer
from mimcl.pipeline.augment import hash64

BATCH, GROUP, STEPS, RATIO = 16, 4, 6, 0.75
START, END = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
SMALL = LearnedMaskingConfig(depth=2, heads=2, group_size=GROUP)


def make_model() -> MaskedAutoencoderViT:
    model = MaskedAutoencoderViT(
        32, 8, 32, 1, 2, decoder_width=32, decoder_depth=1, decoder_heads=1, norm_pix_loss=False
    )
    model.initialise(torch.Generator().manual_seed(0))
    return model


def make(model, *, seed=0, mask_ratio=RATIO, clock="step", epochs=STEPS, **config) -> LearnedMasker:
    return make_masker(
        MaskingConfig("learned", mask_ratio, clock),
        model,
        MaskingSchedule(clock, epochs, epochs),
        hard_patches=HardPatchesConfig(),
        learned=dataclasses.replace(SMALL, **config),
        seed=seed,
    )


def pixels(first: int, count: int) -> torch.Tensor:
    """Images of the draws from `first` on, uint8: each has smooth parts and rough ones."""
    bits = hash64(1, np.arange(first * 192, (first + count) * 192), 9) >> np.uint64(56)
    coarse = torch.from_numpy(bits.astype(np.uint8)).view(count, 3, 8, 8).float()
    rough = torch.linspace(0, 1, 32)
    fine = coarse.repeat(1, 1, 4, 4)
    smooth = torch.nn.functional.interpolate(coarse, 32, mode="bilinear")
    return (rough * fine + (1 - rough) * smooth).to(torch.uint8)


PATCHES = to_patches(pixels(0, 2 * GROUP), 8)


def propose(masker, model, patches=PATCHES):
    return masker.propose(patches, torch.zeros(len(patches), dtype=torch.int64), model, START)


def some_scores(groups=2, images=GROUP, patches=16) -> torch.Tensor:
    return torch.rand(groups, images, patches, generator=torch.Generator().manual_seed(0), requires_grad=True)


# Masks


@pytest.mark.parametrize("ratio", [0.75, 0.6, 0.1])
def test_exactly_the_patches_with_the_highest_scores_are_removed(ratio):
    model = make_model()
    masker = make(model, mask_ratio=ratio)
    mask, again = propose(masker, model), propose(masker, model)
    kept = int(16 * (1 - ratio))
    assert mask.scores.dtype == torch.float32
    assert ((mask.scores > 0) & (mask.scores < 1)).all()
    assert (mask.mask.sum(1) == 16 - kept).all()
    assert mask.ids_keep.shape == (len(PATCHES), kept)
    for scores, removed in zip(mask.scores, mask.mask.bool(), strict=True):
        assert scores[removed].min() >= scores[~removed].max()
    assert all(torch.equal(one, other) for one, other in zip(mask, again, strict=True))


def test_a_mask_depends_on_its_image_only():
    model = make_model()
    masker = make(model)
    whole = propose(masker, model)
    part = masker.propose(PATCHES[5:6], torch.tensor([77]), model, END)
    torch.testing.assert_close(part.scores, whole.scores[5:6])
    assert torch.equal(part.mask, whole.mask[5:6])
    assert len(whole.scores.unique(dim=0)) == len(PATCHES)


def test_in_bfloat16_scores_are_as_fine_as_in_float32_and_the_sort_sees_no_gradient(monkeypatch):
    model, sorted_by = make_model(), []
    masker = make(model)
    monkeypatch.setattr(
        learned, "keep_lowest", lambda noise, ratio: sorted_by.append(noise) or keep_lowest(noise, ratio)
    )
    with torch.autocast("cpu", torch.bfloat16):
        mask = propose(masker, model)
        losses = masker.second_loss(PATCHES, mask, twin(model, frozen=True), START)
    assert mask.scores.dtype == losses.dtype == torch.float32
    assert mask.scores.requires_grad
    assert not sorted_by[0].requires_grad
    assert torch.equal(sorted_by[0], mask.scores)
    logits = mask.scores.logit()
    assert ((logits - logits.bfloat16()) / logits).abs().median() > 1e-4
    torch.testing.assert_close(losses, masker.second_loss(PATCHES, mask, model, START), rtol=0.02, atol=0)


def test_weights_are_a_function_of_the_seed_and_not_those_of_the_model():
    model, state = make_model(), torch.random.get_rng_state()
    one, same, other = (make(model, seed=seed).network for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, weights in one.state_dict().items():
        assert torch.equal(weights, same.state_dict()[name])
        assert "token" not in name or weights.std().item() == pytest.approx(0.02, rel=0.5)
        if weights.ndim > 1:
            assert not torch.equal(weights, other.state_dict()[name])
    assert not torch.allclose(one.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    assert not one.head.bias.any()


# The objective


def test_each_term_matches_its_formula():
    scores = some_scores().detach()
    errors = torch.rand(scores.shape, generator=torch.Generator().manual_seed(1))
    for group, (s, e) in enumerate(zip(scores.double().numpy(), errors.double().numpy(), strict=True)):
        weighted = sum(s[n, p] * e[n, p] for n in range(GROUP) for p in range(16))
        assert soft_reconstruction(scores, errors)[group].item() == pytest.approx(weighted / s.sum(), rel=1e-5)
        hills = [0.12 * math.sqrt(2 * math.pi) * math.exp(-((x - 0.5) ** 2) / (2 * 0.12**2)) for x in s.flat]
        assert gaussian(scores)[group].item() == pytest.approx(np.mean(hills), rel=1e-5)
        for n in range(GROUP):
            mean = s[n].mean()
            kl = mean * math.log(mean / 0.6) + (1 - mean) * math.log((1 - mean) / 0.4)
            assert kl_from_ratio(scores, 0.6)[group, n].item() == pytest.approx(kl, rel=1e-4)
        pairs = [math.exp(-0.1 * math.dist(s[i], s[j])) for i, j in itertools.combinations(range(GROUP), 2)]
        assert diversity(scores)[group].item() == pytest.approx(np.mean(pairs), rel=1e-5)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_objective_is_the_weighted_sum_of_its_terms_in_every_group(reduction):
    model = make_model()
    masker = make(model, gauss_weight=0.3, kl_weight=0.7, kl_reduction=reduction, diversity_weight=1.1)
    mask = propose(masker, model)
    tokens = torch.stack([(1 - s)[:, None] * t for s, t in zip(mask.scores, model.embed(PATCHES), strict=True)])
    errors = model.reconstruct(tokens, torch.arange(16).repeat(len(PATCHES), 1), PATCHES).per_patch_loss
    for progress, factor in ((START, 1), (START + 0.25, 0.5), (END, -1)):
        losses, by_hand = masker.second_loss(PATCHES, mask, model, progress), 0
        for first in range(0, len(PATCHES), GROUP):
            s, e = (values[None, first : first + GROUP] for values in (mask.scores, errors))
            kl = getattr(kl_from_ratio(s, RATIO), reduction)()
            expected = factor * soft_reconstruction(s, e) + 0.3 * gaussian(s) + 0.7 * kl + 1.1 * diversity(s)
            torch.testing.assert_close(losses[first : first + GROUP], expected.expand(GROUP))
            by_hand = by_hand + GROUP * expected
        # Through the scaled tokens as well as through the weights of the errors.
        found, wanted = (torch.autograd.grad(loss.sum(), mask.scores, retain_graph=True) for loss in (losses, by_hand))
        torch.testing.assert_close(found, wanted)


def test_a_group_of_one_image_has_no_diversity_and_equal_scores_have_a_gradient():
    assert diversity(some_scores(images=1)).tolist() == [0, 0]
    scores = some_scores()
    alike = scores[:, :1].expand(-1, GROUP, -1)
    loss = diversity(alike)
    torch.testing.assert_close(loss, torch.ones(2))
    loss.sum().backward()
    assert scores.grad.isfinite().all()


def test_scores_that_are_all_0_or_1_give_finite_losses_and_gradients():
    model = make_model()
    masker = make(model)
    for bias in (-200.0, 200.0):
        with torch.no_grad():
            masker.network.head.bias.fill_(bias)
        mask = propose(masker, model)
        assert (mask.scores == (bias > 0)).all()  # rounded: the reference has 0 log 0 here
        losses = masker.second_loss(PATCHES, mask, model, START)
        assert losses.isfinite().all()
        assert kl_from_ratio(mask.scores[None], RATIO).min() > 0.25
        losses.sum().backward()
        assert all(parameter.grad.isfinite().all() for _, parameter in masker.own_parameters())


def test_incomplete_groups_are_refused():
    model = make_model()
    masker = make(model)
    with pytest.raises(ValueError, match=r"^6 draws .*learned_masking.group_size \(4\)"):
        masker.second_loss(PATCHES[:6], propose(masker, model, PATCHES[:6]), model, START)


# The curriculum


@pytest.mark.parametrize("epochs", [1, 2, 3, 10, 49, 800])
def test_by_epochs_the_factor_is_constant_within_each_and_passes_over_0(epochs):
    progress = torch.arange(7 * epochs, dtype=torch.float64) / (7 * epochs)
    schedule = MaskingSchedule("epoch", epochs, epochs)
    found = np.array([curriculum_factor(share, schedule) for share in progress]).reshape(epochs, 7)
    expected = [1 - 2 * e / epochs if e < epochs / 2 else 1 - 2 * (e + 1) / epochs for e in range(epochs)]
    np.testing.assert_allclose(found, np.repeat(np.array(expected)[:, None], 7, axis=1), atol=1e-12)
    assert epochs == 1 or (found[0, 0], found[-1, -1]) == (1, pytest.approx(-1))


def test_by_steps_the_factor_is_a_straight_line():
    schedule = MaskingSchedule("step", 3.7, 3.7)
    found = [curriculum_factor(START + share, schedule).item() for share in (0, 0.25, 0.5, 1)]
    assert found == [1, 0.5, 0, -1]


@pytest.mark.parametrize(("progress", "direction"), [(START, -1), (END, 1)])
def test_the_network_makes_reconstruction_easier_as_a_partner_and_harder_as_an_adversary(progress, direction):
    model = twin(make_model(), frozen=True)
    masker = make(model, gauss_weight=0.0, kl_weight=0.1, diversity_weight=0.0)
    optimizer = torch.optim.AdamW(masker.parameters(), lr=1e-3)
    losses = []
    for _ in range(25):
        mask = propose(masker, model)
        objective = masker.second_loss(PATCHES, mask, model, progress).mean()
        kl = masker.figures(None, mask, progress)["kl"]
        losses.append((objective - kl).item() * -direction)
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
    assert direction * (losses[-1] - losses[0]) > 0.02 * losses[0]


# In a trainer


@dataclasses.dataclass
class MadeBatch:
    images: torch.Tensor
    keys: torch.Tensor
    position: int
    bad: tuple = ()


def stream(micro_batches=1, start=0, device="cpu"):
    micro = BATCH // micro_batches
    for first in range(start, BATCH * STEPS, micro):
        keys = torch.arange(first, first + micro)
        yield MadeBatch(pixels(first, micro).to(device), keys.to(device), (first // BATCH + 1) * BATCH)


def trainer_of(masker=None, micro_batches=1, precision="float32", device="cpu", log_every_steps=1, **config) -> Trainer:
    model = make_model().to(device)
    return Trainer(
        model,
        masker or make(model, **config),
        TrainerConfig(epochs=STEPS, log_every_steps=log_every_steps),
        OptimConfig(base_lr=0.03, warmup_epochs=0),
        samples=BATCH,
        draws=BATCH * STEPS,
        batch_size=BATCH,
        micro_batches=micro_batches,
        precision=precision,
    )


def flat(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def gradients_of_first_step(micro_batches, **config) -> list[torch.Tensor]:
    """The network's gradients: AdamW's first moments after one step are a tenth of them."""
    trainer = trainer_of(micro_batches=micro_batches, **config)
    next(trainer.steps(stream(micro_batches)))
    return [state["exp_avg"] for state in trainer.state_dict()["optimizers"][1]["state"].values()]


def test_micro_batches_of_whole_groups_give_the_same_gradient():
    whole = gradients_of_first_step(1)
    for micro_batches in (2, 4):
        for one, other in zip(gradients_of_first_step(micro_batches), whole, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
    in_other_groups = gradients_of_first_step(1, group_size=2 * GROUP)
    assert not all(torch.allclose(a, b, rtol=1e-2) for a, b in zip(in_other_groups, whole, strict=True))


def run(trainer, batches) -> list[dict[str, float]]:
    return [step.report.masking if step.report else None for step in trainer.steps(batches)]


class Replay(Masker):
    """Returns masks that were proposed before."""

    def __init__(self, masks):
        super().__init__()
        self.masks = iter(masks)

    def propose(self, patches, keys, model, progress):
        return next(self.masks)


def test_the_second_objective_moves_the_network_and_not_the_model():
    masker, masks = make(make_model()), []
    proposed, before = masker.propose, flat(masker)

    def noting(*arguments):
        masks.append(proposed(*arguments))
        return masks[-1]

    masker.propose = noting
    trainer = trainer_of(masker, micro_batches=2)
    run(trainer, stream(2))
    assert not torch.equal(flat(masker), before)
    assert len(masks) == 2 * STEPS
    replayed = trainer_of(Replay(masks), micro_batches=2)
    run(replayed, stream(2))
    assert torch.equal(flat(replayed.model), flat(trainer.model))


@pytest.mark.parametrize("second", [False, True])
def test_only_the_second_objective_reaches_the_network(second):
    model = make_model()
    masker = make(model)
    own = list(masker.parameters())
    passes = ForwardBackward(model, masker, own, BATCH, "float32", None)
    passes.backward(pixels(0, BATCH), torch.arange(BATCH), START, second)
    assert all((parameter.grad is not None) == second for parameter in own)
    if second:
        assert all(parameter.grad.any() for parameter in own)
        plain = make_model()
        passes = ForwardBackward(plain, make(plain), [], BATCH, "float32", None)
        passes.backward(pixels(0, BATCH), torch.arange(BATCH), START, second=False)
        for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
            assert one.grad is other.grad is None or torch.equal(one.grad, other.grad), name


def test_the_network_is_unchanged_between_its_steps():
    trainer, seen = trainer_of(second_every=3), []
    seen.append(flat(trainer.masker))
    seen += [flat(trainer.masker) for _ in trainer.steps(stream())]
    assert [not torch.equal(*pair) for pair in itertools.pairwise(seen)] == [True, False, False, True, False, False]


def test_reports_have_the_maskers_figures():
    figures = run(trainer_of(log_every_steps=2, clock="epoch"), stream())
    factors = [found["curriculum_factor"] for found in figures if found]
    assert factors == pytest.approx([1, 2 / 3, -1 / 3, -1])  # of steps 1, 2, 4, 6
    for found in filter(None, figures):
        assert 0 < found["score_mean"] < 1
        assert 0 < found["score_entropy"] <= 1
        assert 0.5 <= found["mask_agreement"] <= 1
        assert all(found[name] >= 0 for name in ("gaussian", "kl", "diversity"))


def test_figures_match_their_definitions():
    model = make_model()
    masker = make(model)
    mask = propose(masker, model)
    sure = mask._replace(scores=torch.tensor([[0.0] * 4 + [1.0] * 4 + [0.5] * 8]).expand(len(PATCHES), 16))
    removed = torch.zeros(len(PATCHES), 16)
    removed[:, :12] = 1
    removed[:2, 11:13] = torch.tensor([0.0, 1.0])  # 2 of 8 images differ, in two patches
    figures = masker.figures(None, sure._replace(mask=removed), START)
    assert figures["score_mean"].item() == pytest.approx(0.5)
    assert figures["score_entropy"].item() == pytest.approx(0.5)
    assert figures["mask_agreement"].item() == pytest.approx((14 + 2 * (0.25**2 + 0.75**2)) / 16)
    assert figures["gaussian"].item() == pytest.approx(0.12 * math.sqrt(2 * math.pi) / 2, rel=1e-3)
    assert figures["diversity"].item() == pytest.approx(2.0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_saved_state_is_resumed_bit_for_bit(precision):
    unbroken = trainer_of(precision=precision, second_every=2)
    run(unbroken, stream())
    broken, kept = trainer_of(precision=precision, second_every=2), {}

    for step in broken.steps(stream()):
        if step.number == 3:
            kept["tensors"] = {name: tensor.clone() for name, tensor in broken.tensors().items()}
            kept["state"] = copy.deepcopy(broken.state_dict())
    again = trainer_of(precision=precision, second_every=2, seed=9)
    again.load(**kept)
    run(again, stream(start=again.position))
    for part in ("model", "masker"):
        assert torch.equal(flat(getattr(again, part)), flat(getattr(unbroken, part)))
    for found, expected in zip(again.state_dict()["optimizers"], unbroken.state_dict()["optimizers"], strict=True):
        for one, other in zip(found["state"].values(), expected["state"].values(), strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", *exhaustive("inductor")])
def test_compiled_it_is_the_same_and_progress_does_not_recompile(backend):
    torch.compiler.reset()
    model = make_model()
    frozen = twin(model, frozen=True)
    masker = make(model, depth=1, clock="epoch")
    compiled_propose, compiled_second = (
        torch.compile(function, fullgraph=True, backend=backend) for function in (masker.propose, masker.second_loss)
    )
    keys = torch.arange(len(PATCHES))
    for stance, share in (("default", 0.0), ("fail_on_recompile", 0.4), ("fail_on_recompile", 1.0)):
        progress = START + share
        with torch.compiler.set_stance(stance):
            mask = compiled_propose(PATCHES, keys, frozen, progress)
            losses = compiled_second(PATCHES, mask, frozen, progress)
            losses.sum().backward()
        found = [parameter.grad for parameter in masker.parameters()]
        masker.zero_grad()
        expected_mask = masker.propose(PATCHES, keys, frozen, progress)
        expected = masker.second_loss(PATCHES, expected_mask, frozen, progress)
        expected.sum().backward()
        torch.testing.assert_close(mask.scores, expected_mask.scores)
        assert torch.equal(mask.mask, expected_mask.mask)
        torch.testing.assert_close(losses, expected)
        for grad, parameter in zip(found, masker.parameters(), strict=True):
            torch.testing.assert_close(grad, parameter.grad, rtol=1e-3, atol=1e-5)
        masker.zero_grad()


@pytest.mark.gpu
@pytest.mark.parametrize("second_every", [1, 2])
def test_the_host_never_waits_for_the_device(second_every):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    masker = make(make_model().cuda(), second_every=second_every, clock="epoch")
    trainer = trainer_of(masker, micro_batches=2, device="cuda", precision="bfloat16", log_every_steps=10**9)
    batches = list(stream(2, device="cuda"))
    # The first and the last step report; torch raises if anything synchronises in the steps between.
    modes = {1: "error", STEPS - 1: "default"}
    try:
        for step in trainer.steps(batches):
            if step.number in modes:
                torch.cuda.set_sync_debug_mode(modes[step.number])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.position == BATCH * STEPS


# Values out of range


@pytest.mark.parametrize("field", ["depth", "heads", "group_size", "second_every"])
def test_numbers_below_1_are_refused(field):
    with pytest.raises(ValueError, match=f"^learned_masking.{field} is 0"):
        LearnedMaskingConfig(**{field: 0})


@pytest.mark.parametrize("field", ["gauss_weight", "kl_weight", "diversity_weight"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_weights_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=f"learned_masking.{field} is {value}"):
        LearnedMaskingConfig(**{field: value})
    assert getattr(LearnedMaskingConfig(**{field: 0.0}), field) == 0


def test_heads_and_ratio_must_fit_the_model():
    model = make_model()
    with pytest.raises(ValueError, match="learned_masking.heads is 3.*32"):
        make(model, heads=3)
    with pytest.raises(ValueError, match="keeps 0 of 16"):
        make(model, mask_ratio=0.99)


@pytest.mark.parametrize(("side", "smaller"), [(4, 2), (14, 7), (14, 10), (8, 3), (5, 5), (7, 1)])
def test_a_smaller_grid_gets_the_averages_over_the_areas_of_its_cells(side, smaller):
    averages = area_averages(side, smaller)
    fine = torch.randn(side, side, generator=torch.Generator().manual_seed(0))
    # Every cell of the smaller grid is the mean of side x side equal parts of it, each within one cell of the grid.
    exact = fine.repeat_interleave(smaller, 0).repeat_interleave(smaller, 1)
    expected = exact.unflatten(1, (smaller, side)).unflatten(0, (smaller, side)).mean((1, 3))
    torch.testing.assert_close(fine.flatten() @ averages, expected.flatten(), rtol=1e-5, atol=1e-6)


def test_images_of_another_size_get_scores_and_gradients_of_that_size():
    model = make_model()
    model.add_grids([2])
    masker = make(model)
    patches = torch.randn(GROUP, 4, 192, generator=torch.Generator().manual_seed(0))
    mask = masker.propose(patches, torch.arange(GROUP), model, START)
    assert mask.scores.shape == (GROUP, 4)
    assert (mask.mask.sum(1) == 3).all()
    masker.second_loss(patches, mask, model, START).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for _, parameter in masker.own_parameters())
    assert masker.state_dict().keys() == make(make_model()).state_dict().keys()
