"""Colour-noise masks: each colour has its part of the spectrum, every patch is removed equally often."""

import numpy as np
import pytest
import torch

from mimcl.curriculum.masking.colour import ColourMasker, blur
from mimcl.pipeline import augment

COLOURS = ("green", "blue", "red", "purple")
DRAWS = 3000


def keys_of(draws: int) -> torch.Tensor:
    return torch.from_numpy(augment.hash64(0, np.arange(draws), augment.STREAM_MASK).view(np.int64))


def bands(images: torch.Tensor) -> list[float]:
    """Mean power of images (B, S, S) in three bands of frequency from low to high, of a total of 1 for white noise."""
    side = images.shape[1]
    power = torch.fft.fft2(images - images.mean((1, 2), keepdim=True)).abs().square().mean(0)
    frequency = torch.fft.fftfreq(side).square()
    radius = (frequency[:, None] + frequency).sqrt()  # cycles per patch
    power = power / power[radius > 0].mean()
    return [float(power[(radius > low) & (radius <= high)].mean()) for low, high in ((0, 0.15), (0.15, 0.3), (0.3, 1))]


@pytest.mark.parametrize("side", [8, 14, 16])
@pytest.mark.parametrize("of", ["noise", "masks"])
def test_each_colour_has_its_part_of_the_spectrum(side, of):
    keys, found = keys_of(DRAWS), {}
    for colour in COLOURS:
        masker = ColourMasker(colour, side * side, 0.75)
        images = masker.noise(keys)
        if of == "masks":
            images = masker.propose(torch.empty(0), keys, torch.nn.Identity(), torch.tensor(0.0)).mask.double()
        found[colour] = bands(images.unflatten(1, (side, side)))
    print(side, of, found)
    low, middle, high = found["red"]
    assert low > 1.5 * middle > 3 * high
    low, middle, high = found["blue"]
    assert high > middle > 1.5 * low
    low, middle, high = found["green"]
    assert middle > 1.2 * low
    assert middle > 1.5 * high
    low, middle, high = found["purple"]
    assert middle < low
    assert middle < high


@pytest.mark.parametrize("colour", COLOURS)
def test_every_patch_is_removed_equally_often(colour):
    mask = ColourMasker(colour, 196, 0.75).propose(torch.empty(0), keys_of(DRAWS), torch.nn.Identity(), None).mask
    assert (mask.sum(1) == 147).all()
    share = mask.mean(0)
    deviation = (0.75 * 0.25 / DRAWS) ** 0.5
    assert (share - 0.75).abs().max() < 4.5 * deviation


@pytest.mark.parametrize("side", [2, 5, 14])
@pytest.mark.parametrize("width", [0.6, 1.6])
def test_a_blur_keeps_the_mean_and_is_the_same_everywhere(side, width):
    matrix = blur(side, width)
    torch.testing.assert_close(matrix.sum(1), torch.ones(side, dtype=torch.float64))
    torch.testing.assert_close(matrix, matrix.T)
    for shift in range(side):
        torch.testing.assert_close(matrix[shift].roll(-shift), matrix[0])
