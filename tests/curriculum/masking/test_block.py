"""Block-wise masks: large connected areas, everywhere in the image."""

import numpy as np
import pytest
import torch
from scipy.ndimage import label

from mimcl.curriculum.masking import block
from mimcl.curriculum.masking.block import BlockMasker
from mimcl.curriculum.masking.random import RandomMasker
from mimcl.pipeline import augment

SIDE, PATCHES = 14, 196


def masks(kind: type, ratio: float, draws: int) -> np.ndarray:
    keys = torch.from_numpy(augment.hash64(0, np.arange(draws), augment.STREAM_MASK).view(np.int64))
    mask = kind(PATCHES, ratio).propose(torch.empty(0), keys, torch.nn.Identity(), 0.0).mask
    return mask.view(draws, SIDE, SIDE).bool().numpy()


def border(masks: np.ndarray) -> float:
    """Share of neighbouring pairs of patches with one kept and one removed."""
    pairs = (masks[:, 1:] ^ masks[:, :-1], masks[:, :, 1:] ^ masks[:, :, :-1])
    return float(np.concatenate([pair.ravel() for pair in pairs]).mean())


@pytest.mark.parametrize("ratio", [0.4, 0.5, 0.75])
def test_removed_patches_are_connected(ratio):
    blocks, scattered = masks(BlockMasker, ratio, 500), masks(RandomMasker, ratio, 500)
    assert border(blocks) < 0.4 * border(scattered)
    areas = [label(mask)[1] for mask in blocks]
    assert np.mean(areas) < 4
    assert min(areas) == 1


@pytest.mark.parametrize("ratio", [0.4, 0.75])
def test_single_patches_are_few(ratio):
    """A removed patch without a removed neighbour is not part of a block, except if a block was trimmed."""
    padded = np.pad(masks(BlockMasker, ratio, 500), ((0, 0), (1, 1), (1, 1)))
    beside = padded[:, 2:, 1:-1] | padded[:, :-2, 1:-1] | padded[:, 1:-1, 2:] | padded[:, 1:-1, :-2]
    alone = padded[:, 1:-1, 1:-1] & ~beside
    assert alone.sum((1, 2)).mean() < 1


def test_masks_are_symmetric_and_cover_all_places():
    """Blocks inside the image cover its centre more often than its border, but mirrored places equally."""
    share = masks(BlockMasker, 0.5, 8000).mean(0)
    assert share.min() > 0.03
    assert share[5:9, 5:9].mean() > share[[0, -1]].mean()
    for mirrored in (share[::-1], share[:, ::-1], share.T):
        assert np.abs(share - mirrored).max() < 0.04  # 5 standard errors of the difference are 0.04


@pytest.mark.parametrize("side", [2, 4, 7, 14, 16])
def test_shapes_fit_the_grid_and_the_size(side):
    for size in range(1, side * side):
        shapes = block._shapes(size, side)
        for height, width in shapes:
            assert 1 <= height <= side
            assert 1 <= width <= side
            assert size <= height * width < size + min(height, width)
        assert sorted(shapes) == sorted((width, height) for height, width in shapes)
        aspect = max(height / width for height, width in shapes)
        assert aspect <= 1 / 0.3
        if 16 <= size <= 0.3 * side * side:  # so long a block fits
            assert aspect > 1.7
