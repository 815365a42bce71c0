"""Grid-wise masks: one of each 2 x 2 at ratio 0.75, other lattices at other ratios."""

import numpy as np
import pytest
import torch

from mimcl.curriculum.masking.grid import GridMasker, _lattices
from mimcl.pipeline import augment


def masks(side: int, ratio: float, draws: int = 200) -> torch.Tensor:
    keys = torch.from_numpy(augment.hash64(0, np.arange(draws), augment.STREAM_MASK).view(np.int64))
    mask = GridMasker(side * side, ratio).propose(torch.empty(0), keys, torch.nn.Identity(), 0.0).mask
    return mask.view(draws, side, side)


@pytest.mark.parametrize("side", [2, 4, 8, 14, 16])
def test_one_of_each_two_by_two_is_kept(side):
    cells = masks(side, 0.75).view(200, side // 2, 2, side // 2, 2)
    assert (cells.sum((2, 4)) == 3).all()
    first = cells[:, :1, :, :1]
    assert torch.equal(cells, first.expand_as(cells))  # the same one in every cell of an image
    offsets = (first.flatten(1) == 0).int().argmax(1).bincount(minlength=4)
    assert (offsets > 25).all()  # 50 are expected, 6 is a standard deviation


def test_a_quarter_removed_is_the_opposite_pattern():
    assert (masks(8, 0.25).view(200, 4, 2, 4, 2).sum((2, 4)) == 1).all()


def test_half_is_a_chessboard():
    both = masks(8, 0.5)
    assert (both[:, 1:] != both[:, :-1]).all()
    assert (both[:, :, 1:] != both[:, :, :-1]).all()
    assert 0 < both[:, 0, 0].mean() < 1


@pytest.mark.parametrize(("side", "ratio"), [(7, 0.75), (14, 0.6), (9, 0.7)])
def test_single_patches_only_make_up_the_difference(side, ratio):
    """For some offset, mask and lattice differ only by the difference of their numbers of kept patches."""
    kept = masks(side, ratio).flatten(1) == 0
    every = min((3, 4), key=lambda every: abs(1 / every - int(side * side * (1 - ratio)) / side**2))
    patterns = torch.stack([_lattices(side, every) == offset for offset in range(every)])
    differing = (kept[:, None] ^ patterns).sum(2)
    surplus = (kept.sum(1)[:, None] - patterns.sum(1)).abs()
    assert (differing == surplus).any(1).all()


@pytest.mark.parametrize(
    ("every", "squared"), [(2, 2), (3, 2), (4, 4), (5, 5), (9, 9), (10, 10), (16, 16)]
)  # the best that a square grid allows
def test_a_lattice_keeps_its_patches_apart(every, squared):
    lattices = _lattices(2 * every, every)
    assert lattices.bincount().tolist() == [4 * every] * every  # alike in number
    for number in range(every):
        places = torch.stack(torch.nonzero(lattices.view(2 * every, -1) == number, as_tuple=True), 1).double()
        apart = torch.cdist(places, places).square().round() + 1e9 * torch.eye(len(places))
        assert apart.min() == squared
