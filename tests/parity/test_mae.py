"""The MAE agrees with the reference implementation: latent, prediction, loss and gradients."""

import numpy as np
import pytest
import torch

from mimcl.curriculum.masking.mask import keep_lowest
from mimcl.model.mae import MaskedAutoencoderViT, patchify, reconstruction_loss

TOLERANCE = 1e-5


@pytest.fixture
def case(golden):
    """The arrays, and a model of their sizes with their weights."""
    arrays = golden("mae_tiny.npz")
    weights = {name[3:]: torch.from_numpy(value) for name, value in arrays.items() if name.startswith("sd.")}
    width, _, patch_size, _ = weights["patch_embed.proj.weight"].shape
    blocks = {int(name.split(".")[1]) for name in weights if name.startswith("blocks.")}
    decoder_blocks = {int(name.split(".")[1]) for name in weights if name.startswith("decoder_blocks.")}
    model = MaskedAutoencoderViT(
        image_size=arrays["images"].shape[-1],
        patch_size=patch_size,
        width=width,
        depth=len(blocks),
        heads=4,  # as the folder's README says; no array shows it
        decoder_width=weights["mask_token"].shape[-1],
        decoder_depth=len(decoder_blocks),
        decoder_heads=4,
        norm_pix_loss=True,
    )
    model.load_state_dict(weights)
    return arrays, model


def test_forward_and_gradients(case):
    arrays, model = case
    mask = keep_lowest(torch.from_numpy(arrays["noise"]), 0.75)
    np.testing.assert_array_equal(mask.ids_restore, arrays["ids_restore"])
    np.testing.assert_array_equal(mask.mask, arrays["mask"])
    output = model(patchify(torch.from_numpy(arrays["images"]), model.patch_size), mask)
    loss = reconstruction_loss(output, mask.mask).mean()
    loss.backward()
    np.testing.assert_allclose(output.latent.detach(), arrays["latent"], atol=TOLERANCE)
    np.testing.assert_allclose(output.pred.detach(), arrays["pred"], atol=TOLERANCE)
    np.testing.assert_allclose(loss.item(), arrays["loss"], atol=TOLERANCE)
    compared = {name[5:] for name in arrays if name.startswith("grad.")}
    assert compared == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            np.testing.assert_allclose(parameter.grad, arrays[f"grad.{name}"], atol=TOLERANCE, err_msg=name)
