"""Hard patches mining: which patches are removed, what the loss predictor learns, how the teacher follows."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.exhaustive import exhaustive

from mimcl.curriculum.masking.factory import make_masker
from mimcl.curriculum.masking.loss_prediction import absolute_loss, ranking_accuracy, ranking_loss
from mimcl.curriculum.masking.mask import Mask, agreement, keep_lowest
from mimcl.curriculum.masking.masking_config import HardPatchesConfig, LearnedMaskingConfig, MaskingConfig
from mimcl.curriculum.masking.schedule import MaskingSchedule
from mimcl.curriculum.masking.uniforms import uniforms
from mimcl.model.config import OptimConfig, TrainerConfig
from mimcl.model.mae import MaskedAutoencoderViT, to_patches
from mimcl.model.trainer import Trainer
from mimcl.pipeline.augment import STREAM_MASK, hash64

SIDE, EPOCHS, REMOVED = 6, 10, 27  # of 36 patches


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


def make_model(seed=0):
    model = MaskedAutoencoderViT(
        8 * SIDE, 8, 32, 2, 2, decoder_width=32, decoder_depth=1, decoder_heads=2, norm_pix_loss=True
    )
    model.initialise(torch.Generator().manual_seed(seed))
    return model


def make(model=None, *, clock="epoch", ratio=0.75, epochs=EPOCHS, seed=0, **options):
    return make_masker(
        MaskingConfig("hard-patches", ratio, clock),
        model or make_model(),
        MaskingSchedule(clock, epochs, epochs),
        hard_patches=HardPatchesConfig(**options),
        learned=LearnedMaskingConfig(),
        seed=seed,
    )


def learned(masker, seed=1):
    """Weights as after some training: all random, so that all patches have different scores."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in masker.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.device))
    return masker


def at(progress):
    return torch.tensor(progress, dtype=torch.float64)


def patches_of(count, seed=0):
    return torch.randn(count, SIDE * SIDE, 192, generator=torch.Generator().manual_seed(seed))


def keys_of(draws, seed=0):
    return torch.from_numpy(hash64(seed, np.arange(draws), STREAM_MASK).view(np.int64))


def mined(scores, keys, hardest, ratio=0.75):
    """The reference, image by image: the hardest patches, then random ones until enough are removed."""
    masks = torch.zeros(scores.shape)
    kept = int(scores.shape[1] * (1 - ratio))
    for image, noise in enumerate(uniforms(keys, scores.shape[1])):
        hard = sorted(range(scores.shape[1]), key=lambda patch: -scores[image, patch].item())[:hardest]
        others = sorted(set(range(scores.shape[1])) - set(hard), key=lambda patch: noise[patch].item())
        masks[image, hard + others[kept:]] = 1
    return masks


@pytest.mark.parametrize(
    ("start", "end", "progress", "hardest"),
    [
        (0.0, 0.5, 0.0, 1),  # int(27 * 0.5 * 1 / 10)
        (0.0, 0.5, 0.45, 6),
        (0.0, 0.5, 0.99, 13),
        (1.0, 1.0, 0.3, 27),
        (0.0, 0.0, 0.99, 0),
        (0.5, 0.0, 0.0, 12),
        (0.5, 0.0, 0.99, 0),
    ],
)
def test_the_hardest_are_removed_and_of_the_others_random_ones(start, end, progress, hardest):
    masker = learned(make(start_share=start, end_share=end))
    patches, keys = patches_of(7), keys_of(7)
    mask = masker.propose(patches, keys, torch.nn.Identity(), at(progress))
    assert torch.equal(mask.mask, mined(mask.scores, keys, hardest))
    assert (mask.mask.sum(1) == REMOVED).all()
    assert mask.scores.dtype == torch.float32
    assert not mask.scores.requires_grad
    assert torch.equal(mask.ids_restore.gather(1, mask.ids_keep), torch.arange(9).expand(7, 9))
    assert (mask.mask.gather(1, mask.ids_keep) == 0).all()


def test_the_teacher_sees_the_whole_image():
    masker = learned(make())
    patches, keys = patches_of(3), keys_of(3)
    teacher = masker.teacher
    latent = teacher.model.encode(teacher.model.embed(patches))
    expected = teacher.predictor(teacher.model.decoder_embed(latent) + teacher.model.decoder_pos_embed)
    torch.testing.assert_close(masker.propose(patches, keys, torch.nn.Identity(), at(0.0)).scores, expected)
    assert not hasattr(teacher.model, "decoder_blocks")
    assert not hasattr(teacher.model, "decoder_pred")


def test_equal_scores_and_nan_scores_remove_the_same_number():
    masker, patches, keys = make(start_share=1.0, end_share=1.0), patches_of(4), keys_of(4)
    with torch.no_grad():
        masker.teacher.predictor.head.weight.zero_()
    flat = masker.propose(patches, keys, torch.nn.Identity(), at(0.5))
    assert (flat.scores == flat.scores[0, 0]).all()
    broken = masker.propose(patches * torch.nan, keys, torch.nn.Identity(), at(0.5))
    for mask in (flat, broken):
        assert (mask.mask.sum(1) == REMOVED).all()


def test_noise_depends_on_the_draw_only():
    masker, patches, keys = learned(make()), patches_of(12), keys_of(12)
    state = torch.random.get_rng_state()
    whole = masker.propose(patches, keys, torch.nn.Identity(), at(0.6))
    for places in (slice(3, 4), slice(4, 9), torch.tensor([7, 0, 11])):
        part = masker.propose(patches[places], keys[places], torch.nn.Identity(), at(0.6))
        assert torch.equal(part.mask, whole.mask[places])
        assert torch.equal(part.ids_keep, whole.ids_keep[places])
    other = masker.propose(patches, keys_of(12, seed=1), torch.nn.Identity(), at(0.6))
    assert not torch.equal(other.mask, whole.mask)
    assert torch.equal(torch.random.get_rng_state(), state)


def removed_mask(count, patches=36, seed=0):
    return keep_lowest(torch.rand(count, patches, generator=torch.Generator().manual_seed(seed)), 0.75).mask


def test_the_ranking_loss_is_the_mean_over_ordered_pairs():
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randn(3, 36, generator=generator)
    target = torch.randint(0, 9, (3, 36), generator=generator) / 8  # with ties
    target[2] = 0.5  # nothing to order
    mask = removed_mask(3)
    losses, right, pairs = [0.0] * 3, 0, 0
    for image in range(3):
        terms = []
        for i in mask[image].nonzero().flatten().tolist():
            for j in mask[image].nonzero().flatten().tolist():
                if target[image, i] > target[image, j]:
                    margin = (predicted[image, i] - predicted[image, j]).item()
                    terms.append(math.log1p(math.exp(-margin)))
                    right, pairs = right + (margin > 0), pairs + 1
        losses[image] = sum(terms) / len(terms) if terms else 0.0
    torch.testing.assert_close(ranking_loss(predicted, target, mask), torch.tensor(losses))
    assert losses[2] == 0
    assert ranking_accuracy(predicted, target, mask).item() == pytest.approx(right / pairs)


def test_kept_patches_and_the_level_of_a_prediction_do_not_matter_to_the_ranking():
    generator = torch.Generator().manual_seed(0)
    predicted, target = torch.randn(2, 4, 36, generator=generator)
    mask = removed_mask(4)
    loss = ranking_loss(predicted, target, mask)
    torch.testing.assert_close(ranking_loss(predicted + 3, target, mask), loss)
    elsewhere = torch.where(mask == 0, 1e3, 0.0)
    torch.testing.assert_close(ranking_loss(predicted + elsewhere, target - elsewhere, mask), loss)
    torch.testing.assert_close(
        absolute_loss(predicted + elsewhere, target, mask), absolute_loss(predicted, target, mask)
    )


def test_the_absolute_loss_is_against_the_standardised_target():
    generator = torch.Generator().manual_seed(0)
    predicted, target = torch.randn(2, 4, 36, generator=generator, dtype=torch.float64)
    mask = removed_mask(4)
    losses = absolute_loss(predicted, target, mask)
    for image, removed in enumerate(mask.bool()):
        wanted, got = target[image, removed].numpy(), predicted[image, removed].numpy()
        wanted = (wanted - wanted.mean()) / np.sqrt(wanted.var(ddof=1) + 1e-6)
        assert losses[image].item() == pytest.approx(np.square(got - wanted).mean())
    # One removed patch has no variance; its standardised target is 0.
    assert absolute_loss(torch.tensor([[3.0, 5.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0]])) == 9


@pytest.mark.parametrize("loss", [ranking_loss, absolute_loss])
def test_gradients_are_right_and_none_reaches_the_target(loss):
    generator = torch.Generator().manual_seed(0)
    predicted, target = torch.randn(2, 2, 12, generator=generator, dtype=torch.float64)
    mask = removed_mask(2, 12).double()
    predicted.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: loss(p, target, mask), predicted)
    target.requires_grad_()
    loss(predicted, target, mask).sum().backward()
    assert target.grad is None
    assert (predicted.grad[mask == 0] == 0).all()


@pytest.mark.parametrize("ranking", ["relative", "absolute"])
def test_the_gradient_reaches_the_encoder_and_not_what_is_predicted(ranking):
    model = make_model()
    masker = learned(make(model, ranking=ranking, ranking_weight=2.0))
    patches, keys = patches_of(4), keys_of(4)
    mask = masker.propose(patches, keys, model, at(0.5))
    output = model(patches, mask)
    loss = masker.loss(output, mask)
    assert loss.shape == (4,)
    loss.sum().backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {"cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "mask_token"} <= reached
    assert not [name for name in reached if name.startswith(("decoder_blocks", "decoder_norm", "decoder_pred"))]
    assert model.blocks[0].attn.qkv.weight.grad.abs().max() > 0
    assert all(parameter.grad is not None for _, parameter in masker.parameters_with_model())
    assert all(parameter.grad is None for parameter in masker.teacher.parameters())
    loss_of = {"relative": ranking_loss, "absolute": absolute_loss}[ranking]
    expected = loss_of(masker.predictor(output.decoder_input), output.per_patch_loss, mask.mask)
    torch.testing.assert_close(loss, 2 * expected)


def test_scores_and_losses_are_float32_in_bfloat16_too():
    model = make_model()
    masker, patches, keys = learned(make(model)), patches_of(8), keys_of(8)
    full = masker.propose(patches, keys, model, at(0.5))
    with torch.autocast("cpu", torch.bfloat16):
        mask = masker.propose(patches, keys, model, at(0.5))
        output = model(patches, full)
        loss = masker.loss(output, full)
    assert mask.scores.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(mask.scores, full.scores, atol=0.1, rtol=0.1)
    assert not torch.equal(mask.scores, full.scores)
    assert not torch.equal(mask.scores, mask.scores.bfloat16().float())
    torch.testing.assert_close(loss, masker.loss(model(patches, full), full), atol=0.05, rtol=0.05)


def moved(model, step):
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.device))


def test_the_teacher_is_the_average_over_the_finite_steps(device):
    model = make_model().to(device)
    masker = make(model, start_momentum=0.5, end_momentum=0.9, momentum_epochs=4)
    names = [name for name, _ in masker.teacher.named_parameters()]
    students = {f"model.{name}": p for name, p in model.named_parameters()}
    students |= {f"predictor.{name}": p for name, p in masker.predictor.named_parameters()}
    assert {"model.cls_token", "predictor.head.bias", "model.decoder_embed.weight"} <= set(names)
    expected = {name: students[name].detach().double() for name in names}
    for step in range(2 * EPOCHS):  # two an epoch
        moved(model, step)
        moved(masker.predictor, step)
        finite = step != 7
        before = {name: p.clone() for name, p in masker.teacher.named_parameters()}
        masker.after_step(model, at(step / (2 * EPOCHS)).to(device), torch.tensor(finite, device=device))
        momentum = 0.5 + 0.4 * min(step // 2 / 4, 1) if finite else 1.0
        for name, parameter in masker.teacher.named_parameters():
            if finite:
                expected[name] = momentum * expected[name] + (1 - momentum) * students[name].detach().double()
            else:
                assert torch.equal(parameter, before[name])
            torch.testing.assert_close(parameter.double(), expected[name], atol=1e-5, rtol=1e-5)
    assert not any(parameter.requires_grad for parameter in masker.teacher.parameters())


def figures_at(masker, progress):
    output = SimpleNamespace(
        decoder_input=torch.zeros(1, 37, 32), per_patch_loss=torch.zeros(1, 36), predicted=torch.arange(36)[None]
    )
    mask = keep_lowest(torch.rand(1, 36, generator=torch.Generator().manual_seed(0)), 0.75)
    return {name: figure.item() for name, figure in masker.figures(output, mask, at(progress)).items()}


@pytest.mark.parametrize(
    ("start", "end"), [(0.0, 0.5), (0.5, 0.0), (1.0, 1.0), (0.0, 0.0)], ids=["easy-hard", "hard-easy", "hard", "random"]
)
@pytest.mark.parametrize("clock", ["epoch", "step"])
def test_shares_of_the_papers_ablation(start, end, clock):
    masker = make(start_share=start, end_share=end, clock=clock)
    for step in range(40):
        done = (step // 4 + 1) / EPOCHS if clock == "epoch" else step / 40
        hardest = int(REMOVED * (start + (end - start) * done) + 1e-9)
        assert figures_at(masker, step / 40)["hard_share"] * REMOVED == pytest.approx(hardest, abs=1e-4)


def test_a_whole_number_of_patches_is_not_rounded_down_to_one_less():
    # In float64, 27 (1 + (0.2 - 1) 5 / 6) is just below 9.
    assert figures_at(make(start_share=1.0, end_share=0.2, epochs=6), 4.5 / 6)["hard_share"] == pytest.approx(9 / 27)


def test_momentum_rises_over_epochs_or_over_a_share_of_training():
    def momenta(**options):
        masker = make(**options)
        return [figures_at(masker, step / 40)["teacher_momentum"] for step in range(40)]

    by_epoch = [0.999 + 0.0009 * (step // 4) / 100 for step in range(40)]
    assert momenta() == pytest.approx(by_epoch, abs=1e-12)
    by_step = [0.999 + 0.0009 * step / 400 for step in range(40)]
    assert momenta(clock="step") == pytest.approx(by_step, abs=1e-12)
    half = [0.9 + 0.09 * min(step / 20, 1) for step in range(40)]
    options = dict(momentum_share=0.5, start_momentum=0.9, end_momentum=0.99)
    assert momenta(clock="step", **options) == pytest.approx(half, abs=1e-12)
    half = [0.9 + 0.09 * min(step // 4 / 5, 1) for step in range(40)]
    assert momenta(**options) == pytest.approx(half, abs=1e-12)


def test_agreement_is_how_often_two_images_agree_on_a_patch():
    def of(rows):
        removed = torch.tensor(rows, dtype=torch.float32)
        return agreement(Mask(removed, removed, removed)).item()

    assert of([[1, 0, 1, 1], [1, 0, 1, 1]]) == 1
    assert of([[1, 0], [0, 1]]) == 0.5
    assert of([[1, 0, 1], [1, 1, 0], [1, 1, 0], [1, 0, 1]]) == pytest.approx((1 + 0.5 + 0.5) / 3)
    many = keep_lowest(torch.rand(4000, 16, generator=torch.Generator().manual_seed(0)), 0.75)
    assert agreement(many).item() == pytest.approx(0.625, abs=0.001)


def test_weights_follow_the_seed_and_initial_predictions_are_almost_equal():
    model, state = make_model(), torch.random.get_rng_state()
    first, again, other = make(model, seed=1), make(model, seed=1), make(model, seed=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = [masker.predictor.blocks[0].attn.qkv.weight for masker in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    mask = first.propose(patches_of(4), keys_of(4), model, at(0.0))
    loss = first.loss(model(patches_of(4), mask), mask)
    torch.testing.assert_close(loss, torch.full((4,), math.log(2)), atol=0.03, rtol=0)
    assert len(make(model, predictor_depth=3).predictor.blocks) == 3
    assert first.predictor.blocks[0].attn.num_heads == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_share": -0.1}, "hard_patches.start_share is -0.1"),
        ({"end_share": 1.1}, "hard_patches.end_share is 1.1"),
        ({"end_share": math.nan}, "hard_patches.end_share is nan"),
        ({"start_momentum": 1.0}, "hard_patches.start_momentum is 1.0"),
        ({"end_momentum": -0.5}, "hard_patches.end_momentum is -0.5"),
        ({"momentum_epochs": 0}, "hard_patches.momentum_epochs is 0"),
        ({"momentum_share": 1.5}, "hard_patches.momentum_share is 1.5"),
        ({"momentum_share": 0.0}, "hard_patches.momentum_share is 0.0"),
        ({"ranking_weight": 0.0}, "hard_patches.ranking_weight is 0.0"),
        ({"predictor_depth": 0}, "hard_patches.predictor_depth is 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HardPatchesConfig(**options)


@pytest.mark.parametrize(("ratio", "kept"), [(0.99, 0), (1e-17, 36)])
def test_a_ratio_that_keeps_or_removes_nothing_is_refused(ratio, kept):
    with pytest.raises(ValueError, match=f"keeps {kept} of 36"):
        make(ratio=ratio)


@pytest.mark.slow
@pytest.mark.parametrize("ranking", ["relative", "absolute"])
@pytest.mark.parametrize("backend", ["aot_eager", *exhaustive("inductor")])
def test_compiled_it_is_the_same_and_is_compiled_once(ranking, backend):
    torch.compiler.reset()
    model = make_model()
    masker, patches, keys = learned(make(model, ranking=ranking, momentum_share=0.5)), patches_of(3), keys_of(3)
    propose = torch.compile(masker.propose, fullgraph=True, backend=backend)
    loss = torch.compile(masker.loss, fullgraph=True, backend=backend)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for progress in (0.0, 0.04, 0.5, 0.99):
            expected = masker.propose(patches, keys, model, at(progress))
            mask = propose(patches, keys, model, at(progress))
            torch.testing.assert_close(mask.scores, expected.scores, atol=1e-4, rtol=1e-4)
            assert torch.equal(mask.mask, expected.mask)
            assert torch.equal(mask.ids_restore, expected.ids_restore)
            output = model(patches, expected)
            torch.testing.assert_close(loss(output, expected), masker.loss(output, expected), atol=1e-3, rtol=1e-3)
            moved(model, 0)
            masker.after_step(model, at(progress), torch.tensor(True))


BATCH, STEPS = 16, 60
DRAWS, SAMPLES = BATCH * STEPS, 10 * BATCH


def stream(start=0, micro=BATCH):
    """Images of which one corner is hard: noise there, a smooth slope elsewhere."""
    for first in range(start, DRAWS, micro):
        bits = hash64(1, np.arange(first * 1728, (first + micro) * 1728), 9)
        noise = torch.from_numpy((bits >> np.uint64(56)).astype(np.uint8)).view(micro, 3, 24, 24)
        slope = torch.linspace(0, 255, 8 * SIDE).to(torch.uint8)
        images = torch.minimum(slope[:, None], slope).expand(micro, 3, -1, -1).clone()
        images[:, :, :24, :24] = noise
        keys = torch.from_numpy(hash64(0, np.arange(first, first + micro), STREAM_MASK).view(np.int64))
        position = (first // BATCH + 1) * BATCH
        yield SimpleNamespace(images=images, keys=keys, position=position, bad=())


def make_trainer(micro_batches=1, draws=DRAWS):
    model = make_model()
    options = dict(start_momentum=0.9, end_momentum=0.95)
    config = TrainerConfig(epochs=DRAWS / SAMPLES, log_every_steps=10)
    return Trainer(
        model,
        make(model, epochs=DRAWS / SAMPLES, **options),
        config,
        OptimConfig(base_lr=0.03, warmup_epochs=1),
        samples=SAMPLES,
        draws=draws,
        batch_size=BATCH,
        micro_batches=micro_batches,
        precision="float32",
    )


def test_the_predictor_learns_which_patches_are_hard_and_the_teacher_follows():
    trainer, figures = make_trainer(), {}

    for step in trainer.steps(stream()):
        if step.report:
            figures[step.number] = step.report.masking
    assert figures[1]["ranking_accuracy"] < 0.6
    assert figures[STEPS]["ranking_accuracy"] > 0.8
    assert [round(figures[step]["hard_share"] * REMOVED) for step in (1, 10, 20, 60)] == [2, 2, 4, 13]
    assert figures[STEPS]["teacher_momentum"] == pytest.approx(0.9 + 0.05 * 5 / 100)
    batch = next(stream())
    patches = to_patches(batch.images, 8)
    mask = trainer.masker.propose(patches, batch.keys, trainer.model, at(0.99))
    noisy = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    noisy[:3, :3] = True
    assert mask.scores[:, noisy.flatten()].mean() > mask.scores[:, ~noisy.flatten()].mean()
    assert mask.mask[:, noisy.flatten()].mean() > 0.85  # chance: 0.75
    # Masks that remove the same corner agree more than random ones.
    assert figures[STEPS]["mask_agreement"] > figures[1]["mask_agreement"]


def tensors_of(trainer):
    return {name: tensor.clone() for name, tensor in trainer.tensors().items()}


def test_a_saved_state_is_resumed_bit_for_bit():
    unbroken, kept = make_trainer(), {}

    for step in unbroken.steps(stream()):
        if step.number == STEPS // 2:
            kept["tensors"], kept["state"] = tensors_of(unbroken), copy.deepcopy(unbroken.state_dict())
    assert {"masker.predictor.head.weight", "masker.teacher.model.cls_token"} <= kept["tensors"].keys()
    again = make_trainer()
    again.load(**kept)
    for _ in again.steps(stream(start=again.position)):
        pass
    for name, tensor in unbroken.tensors().items():
        assert torch.equal(again.tensors()[name], tensor), name


def test_micro_batches_give_the_same_run():
    runs = []
    for pieces in (1, 4):
        trainer = make_trainer(pieces, draws=4 * BATCH)
        batches = stream(micro=BATCH // pieces)
        for _ in trainer.steps(batch for batch in batches if batch.position <= 4 * BATCH):
            pass
        runs.append(trainer.tensors())
    for name, tensor in runs[0].items():
        if not name.endswith("head.bias"):  # a ranking does not depend on it: its gradient is what sums round off
            torch.testing.assert_close(runs[1][name], tensor, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.gpu
@pytest.mark.parametrize("ranking", ["relative", "absolute"])
def test_nothing_waits_for_the_gpu(ranking):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = make_model().cuda()
    masker, patches, keys = make(model, ranking=ranking), patches_of(8).cuda(), keys_of(8).cuda()
    progress, finite = at(0.5).cuda(), torch.tensor(True).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            mask = masker.propose(patches, keys, model, progress)
            loss = masker.loss(model(patches, mask), mask)
        loss.sum().backward()
        masker.after_step(model, progress, finite)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (mask.mask.sum(1) == REMOVED).all()
    assert mask.mask.is_cuda


def test_images_of_another_size_are_mined_alike():
    model = make_model()
    model.add_grids([3])
    masker = learned(make(model, start_share=0.5, end_share=0.5))
    patches = torch.randn(20, 9, 192, generator=torch.Generator().manual_seed(3))
    keys = keys_of(20)
    mask = masker.propose(patches, keys, model, at(0.0))
    expected = mined(masker.teacher(patches), keys, hardest=3)  # half of 7, rounded down
    assert torch.equal(mask.mask, expected)
    output = model(patches, mask)
    masker.loss(output, mask).sum().backward()
    assert all(parameter.grad is not None for _, parameter in masker.parameters_with_model())
    assert masker.figures(output, mask, at(0.0))["hard_share"] == pytest.approx(3 / 7)
