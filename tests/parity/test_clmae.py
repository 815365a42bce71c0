"""CL-MAE agrees with the reference implementation where it is right; where it is not, a test shows the difference."""

import numpy as np
import pytest
import torch

from mimcl.curriculum.masking.learned import LearnedMasker, curriculum_factor, kl_from_ratio
from mimcl.curriculum.masking.masking_config import LearnedMaskingConfig
from mimcl.curriculum.masking.schedule import MaskingSchedule
from mimcl.model.mae import MaskedAutoencoderViT, patchify, reconstruction_loss

TOLERANCE = 1e-5
RATIO = 0.75
CLOCK = MaskingSchedule("epoch", 200, 200)
ITS_NAMES = {"mlp_head.0.": "norm.", "mlp_head.1.": "head."}


@pytest.fixture
def case(golden):
    """The arrays, and a model and a masker of their sizes with their weights; the whole batch is one group."""
    arrays = golden("clmae_tiny.npz")
    weights = {name[3:]: torch.from_numpy(value) for name, value in arrays.items() if name.startswith("sd.")}
    of_network = {name[12:]: weights.pop(name) for name in list(weights) if name.startswith("masking_net.")}
    assert not of_network.pop("pos_embed").any()  # of its CLS token
    width, _, patch_size, _ = weights["patch_embed.proj.weight"].shape
    depths = [
        1 + max(int(name[len(start) :].split(".")[0]) for name in names if name.startswith(start))
        for names, start in ((weights, "blocks."), (weights, "decoder_blocks."), (of_network, "blocks."))
    ]
    model = MaskedAutoencoderViT(
        image_size=arrays["images"].shape[-1],
        patch_size=patch_size,
        width=width,
        depth=depths[0],
        heads=4,  # as the folder's README says; no array shows it
        decoder_width=weights["mask_token"].shape[-1],
        decoder_depth=depths[1],
        decoder_heads=4,
        norm_pix_loss=True,
    )
    model.load_state_dict(weights)
    model.requires_grad_(False)
    config = LearnedMaskingConfig(depth=depths[2], heads=4, group_size=len(arrays["images"]))
    masker = LearnedMasker(config, model, RATIO, CLOCK, seed=0)
    for theirs, ours in ITS_NAMES.items():
        for kind in ("weight", "bias"):
            of_network[ours + kind] = of_network.pop(theirs + kind)
    for kind in ("weight", "bias"):  # theirs says what to keep, ours what to remove
        of_network[f"head.{kind}"] = -of_network[f"head.{kind}"]
    masker.network.load_state_dict(of_network)
    return arrays, model, masker


def proposed(arrays, model, masker):
    patches = patchify(torch.from_numpy(arrays["images"]), model.patch_size)
    return patches, masker.propose(patches, torch.empty(0), model, torch.zeros((), dtype=torch.float64))


def test_scores_masks_and_the_loss_of_the_first_pass(case):
    arrays, model, masker = case
    patches, mask = proposed(arrays, model, masker)
    np.testing.assert_allclose(1 - mask.scores.detach(), arrays["keep_prob"], atol=TOLERANCE)
    np.testing.assert_array_equal(mask.mask, arrays["mask"])
    # Kept and removed patches are in the order of their scores, as in the reference.
    np.testing.assert_array_equal(mask.ids_restore, arrays["ids_restore"])
    loss = reconstruction_loss(model(patches, mask), mask.mask).mean()
    np.testing.assert_allclose(loss, arrays["loss"], atol=TOLERANCE)


def test_every_term_of_the_second_pass(case):
    arrays, model, masker = case
    patches, mask = proposed(arrays, model, masker)
    progress = torch.zeros((), dtype=torch.float64)
    whole = masker.second_loss(patches, mask, model, progress).detach()
    other_sign = masker.second_loss(patches, mask, model, progress + 1).detach()
    terms = {name: masker.figures(None, mask, progress)[name] for name in ("gaussian", "kl", "diversity")}
    names = {"gaussian": "m_gauss", "kl": "m_kl", "diversity": "m_div"}
    for name, term in terms.items():
        np.testing.assert_allclose(term.detach(), arrays[names[name]], atol=TOLERANCE, err_msg=name)
    np.testing.assert_allclose((whole - other_sign) / 2, np.full(len(patches), arrays["m_recon"]), atol=TOLERANCE)
    expected = sum(arrays[name] for name in ("m_recon", "m_gauss", "m_kl", "m_div"))
    np.testing.assert_allclose(whole, np.full(len(patches), expected), atol=TOLERANCE)


def test_the_curriculum_factor(golden):
    expected = golden("clmae_tiny.npz")["lambda_cl"]
    progress = torch.arange(200, dtype=torch.float64) / 200
    found = [curriculum_factor(share, CLOCK) for share in progress]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def its_kl(mean_kept: torch.Tensor) -> torch.Tensor:
    """The reference's divergence, of the mean score of kept patches; its target is 1/4 for any ratio."""
    return mean_kept * (mean_kept / 0.25).log() + (1 - mean_kept) * ((1 - mean_kept) / 0.75).log()


def test_the_kl_follows_the_mask_ratio_and_its_weight_need_not_follow_the_group_size(case):
    arrays, model, masker = case
    patches, mask = proposed(arrays, model, masker)
    theirs = its_kl(1 - mask.scores.detach().mean(dim=1))
    np.testing.assert_allclose(0.1 * theirs.sum(), arrays["m_kl"], atol=TOLERANCE)
    halves = torch.full((1, 1, 16), 0.5)
    assert its_kl(1 - halves.mean()) > 0.1  # also for a ratio of 0.5
    assert kl_from_ratio(halves, 0.5).item() == pytest.approx(0, abs=1e-6)
    mean = LearnedMasker(
        LearnedMaskingConfig(depth=5, heads=4, group_size=len(patches), kl_reduction="mean"),
        model,
        RATIO,
        CLOCK,
        seed=0,
    )
    found = mean.figures(None, mask, torch.zeros((), dtype=torch.float64))["kl"].item()
    assert found == pytest.approx(arrays["m_kl"] / len(patches), abs=TOLERANCE)


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_the_kl_is_finite_where_the_reference_has_0_log_0(score):
    scores = torch.full((1, 1, 16), score, requires_grad=True)
    assert its_kl(1 - scores.mean()).isnan()
    kl = kl_from_ratio(scores, RATIO)
    kl.sum().backward()
    assert kl.item() == pytest.approx(-np.log(RATIO if score else 1 - RATIO), rel=1e-4)
    assert scores.grad.isfinite().all()


def test_one_optimizer_for_both_would_move_the_network_while_it_is_frozen(case):
    # The reference freezes it with gradients of 0. Ours does not move: see tests/curriculum/masking/test_learned.py.
    arrays, model, masker = case
    patches, mask = proposed(arrays, model, masker)
    optimizer = torch.optim.AdamW([*model.parameters(), *masker.parameters()], lr=1e-3)
    masker.second_loss(patches, mask, model, torch.zeros((), dtype=torch.float64)).mean().backward()
    optimizer.step()
    before = masker.network.head.weight.detach().clone()
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    assert not torch.equal(masker.network.head.weight, before)
