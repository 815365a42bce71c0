"""HPM agrees with the reference implementation, except where the reference is wrong."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mimcl.curriculum.masking.hard_patches import HardPatchesMasker
from mimcl.curriculum.masking.loss_prediction import absolute_loss, ranking_loss
from mimcl.curriculum.masking.mask import keep_lowest
from mimcl.curriculum.masking.masking_config import HardPatchesConfig
from mimcl.curriculum.masking.schedule import MaskingSchedule
from mimcl.model.mae import MaskedAutoencoderViT, patchify, reconstruction_loss

TOLERANCE = 1e-5
EPOCHS = 200
_PREDICTOR = {"decoder_blocks_losspred": "blocks", "decoder_norm_losspred": "norm", "decoder_pred_losspred": "head"}


@pytest.fixture
def case(golden):
    """The arrays, and a model and a masker of their sizes with their weights."""
    arrays = golden("hpm_tiny.npz")
    weights = {name[3:]: torch.from_numpy(value) for name, value in arrays.items() if name.startswith("sd.")}
    of_predictor = {}
    for name in [name for name in weights if "losspred" in name]:
        part, _, rest = name.partition(".")
        value = weights.pop(name)
        # The reference averages the outputs; the mean of linear outputs is linear, with the mean of the weights.
        of_predictor[f"{_PREDICTOR[part]}.{rest}"] = value.mean(0, keepdim=True) if "pred_losspred" in part else value
    width, _, patch_size, _ = weights["patch_embed.proj.weight"].shape
    model = MaskedAutoencoderViT(
        image_size=arrays["images"].shape[-1],
        patch_size=patch_size,
        width=width,
        depth=1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks.")),
        heads=4,  # as the folder's README says; no array shows it
        decoder_width=weights["mask_token"].shape[-1],
        decoder_depth=1 + max(int(name.split(".")[1]) for name in weights if name.startswith("decoder_blocks.")),
        decoder_heads=4,
        norm_pix_loss=True,
    )
    model.load_state_dict(weights)
    masker = HardPatchesMasker(HardPatchesConfig(), model, 0.75, MaskingSchedule("epoch", EPOCHS, EPOCHS), seed=0)
    masker.predictor.load_state_dict(of_predictor)
    masker.teacher.predictor.load_state_dict(of_predictor)
    return arrays, model, masker


@pytest.fixture
def passed(case):
    """The model's output and the masker's predictions, with the reference's mask."""
    arrays, model, masker = case
    mask = keep_lowest(torch.from_numpy(arrays["mask"]) + torch.linspace(0, 0.5, 16), 0.75)
    np.testing.assert_array_equal(mask.mask.bool(), arrays["mask"])
    output = model(patchify(torch.from_numpy(arrays["images"]), 8), mask)
    return output, mask, masker.predictor(output.decoder_input)


def in_image_order(arrays, name):
    """The reference has kept patches first, then removed ones, each in the image's order."""
    places = torch.from_numpy(arrays["mask"]).int().argsort(dim=1, stable=True)
    ordered = np.empty_like(arrays[name])
    for image, order in enumerate(places.numpy()):
        ordered[image, order] = arrays[name][image]
    return ordered


def of_removed(values, mask):
    return values[mask.mask.bool()].view(len(values), -1).detach()


def test_reconstruction_and_its_losses(case, passed):
    arrays, (output, mask, _) = case[0], passed
    np.testing.assert_allclose(output.pred.detach(), in_image_order(arrays, "pix_pred"), atol=TOLERANCE)
    np.testing.assert_allclose(of_removed(output.per_patch_loss, mask), arrays["loss_matrix"], atol=TOLERANCE)
    loss = reconstruction_loss(output, mask.mask).mean()
    np.testing.assert_allclose(loss.item(), arrays["loss_mean"], atol=TOLERANCE)


def test_predicted_losses_of_student_and_teacher(case, passed):
    arrays, model, masker = case
    np.testing.assert_allclose(passed[2].detach(), in_image_order(arrays, "loss_pred"), atol=TOLERANCE)
    patches, progress = patchify(torch.from_numpy(arrays["images"]), 8), torch.zeros((), dtype=torch.float64)
    proposed = masker.propose(patches, torch.arange(len(patches)), model, progress)
    np.testing.assert_allclose(proposed.scores, arrays["full_loss_pred"], atol=TOLERANCE)


@pytest.mark.parametrize(("loss", "name"), [(ranking_loss, "rank_loss"), (absolute_loss, "abs_loss")])
def test_losses_of_the_predictor(case, passed, loss, name):
    output, mask, predicted = passed
    ours = loss(predicted, output.per_patch_loss, mask.mask).mean()
    np.testing.assert_allclose(ours.item(), case[0][name], atol=TOLERANCE)


def test_schedules_of_200_epochs(golden):
    arrays = golden("hpm_tiny.npz")
    model = MaskedAutoencoderViT(
        112, 8, 16, 1, 1, decoder_width=16, decoder_depth=1, decoder_heads=1, norm_pix_loss=True
    )
    masker = HardPatchesMasker(HardPatchesConfig(), model, 0.75, MaskingSchedule("epoch", EPOCHS, EPOCHS), seed=0)
    output = SimpleNamespace(
        decoder_input=torch.zeros(1, 197, 16), per_patch_loss=torch.zeros(1, 196), predicted=torch.arange(196)[None]
    )
    mask = keep_lowest(torch.rand(1, 196, generator=torch.Generator().manual_seed(0)), 0.75)
    for epoch in range(EPOCHS):
        for share in (0.0, 0.5, 0.999):
            progress = torch.tensor((epoch + share) / EPOCHS, dtype=torch.float64)
            figures = masker.figures(output, mask, progress)
            assert 147 * figures["hard_share"].item() == pytest.approx(arrays["hard_count"][epoch], abs=1e-4)
            assert figures["teacher_momentum"].item() == pytest.approx(arrays["ema_decay"][epoch], abs=1e-12)


def reference_loss(predicted, target):
    """As the reference computes it, over removed patches (B, R): one normaliser for all, 1e-6 in the logarithms."""
    likely = torch.sigmoid(predicted[:, :, None] - predicted[:, None, :])
    harder = (target[:, :, None] > target[:, None, :]).float()
    easier = (target[:, :, None] < target[:, None, :]).float()
    losses = -harder * torch.log(likely + 1e-6) - easier * torch.log(1 - likely + 1e-6)
    return losses.sum() / (harder + easier).sum()


def test_the_reference_as_written_here_gives_the_stored_number(case, passed):
    arrays, (output, mask, predicted) = case[0], passed
    loss = reference_loss(of_removed(predicted, mask), of_removed(output.per_patch_loss, mask))
    np.testing.assert_allclose(loss.item(), arrays["rank_loss"], atol=TOLERANCE)


def test_with_ties_each_image_has_the_same_weight_in_any_batch():
    predicted = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]])
    target = torch.tensor([[3.0, 2.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]])  # six pairs, and three
    whole = ranking_loss(predicted, target, torch.ones(2, 4))
    alone = [ranking_loss(p[None], t[None], torch.ones(1, 4)) for p, t in zip(predicted, target, strict=True)]
    assert torch.equal(whole, torch.cat(alone))
    theirs = [reference_loss(p[None], t[None]) for p, t in zip(predicted, target, strict=True)]
    torch.testing.assert_close(whole, torch.stack(theirs), atol=2e-5, rtol=0)
    together = (6 * theirs[0] + 3 * theirs[1]) / 9  # what the reference's mean is, other than that of its halves
    torch.testing.assert_close(reference_loss(predicted, target), together)
    assert abs(together - whole.mean()) > 0.01


def test_a_confident_mistake_is_still_corrected():
    """The reference's loss is clipped at -log(1e-6), where its gradient is 0."""
    target, removed = torch.tensor([[1.0, 0.0]]), torch.ones(1, 2)
    ours, theirs = (torch.tensor([[-20.0, 20.0]], requires_grad=True) for _ in range(2))
    loss, stuck = ranking_loss(ours, target, removed).sum(), reference_loss(theirs, target)
    (loss + stuck).backward()
    assert loss.item() == pytest.approx(40, abs=1e-4)
    assert stuck.item() == pytest.approx(-math.log(1e-6), abs=0.1)
    torch.testing.assert_close(ours.grad, torch.tensor([[-1.0, 1.0]]))
    assert theirs.grad.abs().max() < 1e-6
