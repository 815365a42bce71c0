"""Maskers that learn, with an autoencoder whose decoder has cross-attention and predicts a share of the patches."""

import pytest
import torch

from mimcl.curriculum.masking.factory import make_masker
from mimcl.curriculum.masking.loss_prediction import ranking_accuracy, ranking_loss
from mimcl.curriculum.masking.masking_config import HardPatchesConfig, LearnedMaskingConfig, MaskingConfig
from mimcl.curriculum.masking.schedule import MaskingSchedule
from mimcl.model.cross_mae import CrossMaskedAutoencoder
from mimcl.model.mae import MaskedAutoencoderViT

GROUP, SIDE, REMOVED = 4, 6, 27  # of 36 patches
START = torch.tensor(0.0, dtype=torch.float64)
KEYS = torch.arange(GROUP) * 0x9E3779B97F4A7C15 % 2**62
SIZES = dict(decoder_width=32, decoder_depth=2, decoder_heads=2, norm_pix_loss=True)


def make(masking: str, kind=CrossMaskedAutoencoder):
    """Return a model and its masker with weights as after some training."""
    model = kind(8 * SIDE, 8, 16, 3, 2, **SIZES)
    model.initialise(torch.Generator().manual_seed(0))
    model.add_grids([3])
    masker = make_masker(
        MaskingConfig(masking),
        model,
        MaskingSchedule("step", 1, 1),
        hard_patches=HardPatchesConfig(start_share=0.5),
        learned=LearnedMaskingConfig(depth=1, group_size=GROUP),
        seed=0,
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in masker.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model, masker


def patches_of(patches: int = SIDE * SIDE):
    return torch.randn(GROUP, patches, 192, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("side", [SIDE, 3])
def test_the_loss_predictor_makes_tokens_of_all_patches_itself(side):
    model, masker = make("hard-patches")
    patches = patches_of(side * side)
    teacher = masker.teacher
    assert not [name for name, _ in teacher.model.named_parameters() if name.startswith(("decoder_b", "decoder_mix"))]
    tokens = teacher.predictor.input.embed(teacher.model.encode(teacher.model.embed(patches)))
    tokens = tokens + model.positions("decoder_pos_embed", side * side)
    mask = masker.propose(patches, KEYS, model, START)
    torch.testing.assert_close(mask.scores, teacher.predictor(tokens))

    output = model(patches, mask, masker.predicted(mask, KEYS, 0.5))
    masker.loss(output, mask).sum().backward()
    assert all(parameter.grad is not None for _, parameter in masker.parameters_with_model())
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    encoder = {"cls_token", *(f"patch_embed.proj.{part}" for part in ("weight", "bias"))}
    encoder |= {name for name, _ in model.named_parameters() if name.startswith("blocks.")}
    assert reached == encoder


@pytest.mark.parametrize("side", [SIDE, 3])
def test_its_input_is_that_of_maes_decoder_with_the_same_weights(side):
    plain, _ = make("hard-patches", MaskedAutoencoderViT)
    _, masker = make("hard-patches")
    own = masker.predictor.input
    own.load_state_dict(
        {
            "embed.weight": plain.decoder_embed.weight,
            "embed.bias": plain.decoder_embed.bias,
            "mask_token": plain.mask_token,
        }
    )
    patches = patches_of(side * side)
    mask = masker.propose(patches, KEYS, plain, START)
    latent = plain.encode(plain.embed(patches, mask.ids_keep))
    assert torch.equal(own(latent, mask.ids_restore), plain.to_decoder(latent, mask.ids_restore))
    latent = plain.encode(plain.embed(patches))
    assert torch.equal(own(latent, None), plain.to_decoder(latent, None))


@pytest.mark.parametrize("kind", [CrossMaskedAutoencoder, MaskedAutoencoderViT])
@pytest.mark.parametrize("share", [0.25, 0.6, 1.0])
def test_only_predicted_patches_are_ranked(kind, share):
    model, masker = make("hard-patches", kind)
    patches = patches_of()
    mask = masker.propose(patches, KEYS, model, START)
    ids = masker.predicted(mask, KEYS, share)
    assert ids.shape == (GROUP, round(share * REMOVED))
    output = model(patches, mask, ids)
    losses, accuracy = masker.loss(output, mask), masker.figures(output, mask, START)["ranking_accuracy"]
    own = masker.predictor.input
    tokens = own(output.latent, mask.ids_restore) if own else output.decoder_input
    among = torch.zeros(GROUP, SIDE * SIDE).scatter(1, ids, 1.0)
    everything = masker.predictor(tokens), output.per_patch_loss, among
    torch.testing.assert_close(losses, ranking_loss(*everything))
    torch.testing.assert_close(accuracy, ranking_accuracy(*everything))


@pytest.mark.parametrize("side", [SIDE, 3])
def test_the_masking_network_learns_from_all_patches(side):
    model, masker = make("learned")
    patches = patches_of(side * side)
    mask = masker.propose(patches, KEYS, model, START)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    tokens = (1 - mask.scores).unsqueeze(-1) * model.embed(patches)
    output = model.reconstruct(tokens, None, patches)
    assert (output.per_patch_loss > 0).all()
    gradients = torch.autograd.grad(output.per_patch_loss.sum(), mask.scores, retain_graph=True)[0]
    assert (gradients != 0).all()
    masker.second_loss(patches, mask, model, START).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for _, parameter in masker.own_parameters())
