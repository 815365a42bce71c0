"""Random masks: exact number, uniform, and the same noise on the host and in torch."""

import numpy as np
import pytest
import torch

from mimcl.curriculum.masking.mask import keep_lowest
from mimcl.curriculum.masking.random import RandomMasker
from mimcl.curriculum.masking.uniforms import mix64, uniforms
from mimcl.pipeline import augment


def keys_of(draws: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(augment.hash64(seed, np.arange(draws), augment.STREAM_MASK).view(np.int64))


def test_numpy_and_torch_hash_alike():
    small = np.arange(100, dtype=np.uint64)
    numbers = np.concatenate([small, small + np.uint64(2**63), ~small])
    in_torch = mix64(torch.from_numpy(numbers.view(np.int64))).numpy().view(np.uint64)
    np.testing.assert_array_equal(in_torch, augment.mix64(numbers))
    # Published outputs of splitmix64 with seed 0: successive states are multiples of the golden gamma.
    state = torch.tensor([0, 0x9E3779B97F4A7C15 - 2**64])
    published = np.array([0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4], np.uint64)
    np.testing.assert_array_equal(mix64(state).numpy().view(np.uint64), published)
    hashes = augment.hash64(7, np.arange(50), 3)
    in_torch = uniforms(torch.from_numpy(hashes.view(np.int64)), 33).numpy()
    np.testing.assert_array_equal(in_torch, augment.uniforms(hashes, 33))


@pytest.mark.parametrize(("patches", "ratio"), [(196, 0.75), (64, 0.75), (64, 0.6), (49, 0.9), (16, 0.5)])
def test_exactly_the_ratio_is_removed_and_order_is_restored(patches, ratio):
    mask = RandomMasker(patches, ratio).propose(torch.empty(0), keys_of(40), torch.nn.Identity(), 0.0)
    kept = int(patches * (1 - ratio))
    assert mask.ids_keep.shape == (40, kept)
    assert (mask.mask.sum(1) == patches - kept).all()
    assert (mask.mask.gather(1, mask.ids_keep) == 0).all()
    places = torch.arange(kept).expand(40, kept)
    assert torch.equal(mask.ids_restore.gather(1, mask.ids_keep), places)
    assert torch.equal(mask.ids_restore.sort(1).values, torch.arange(patches).expand(40, patches))


def test_a_mask_depends_on_its_key_only():
    masker, keys = RandomMasker(64, 0.75), keys_of(10)
    whole = masker.propose(torch.empty(0), keys, torch.nn.Identity(), 0.0)
    part = masker.propose(torch.empty(0), keys[4:7], torch.nn.Identity(), 1.0)
    assert torch.equal(whole.mask[4:7], part.mask)


def test_every_patch_is_removed_equally_often():
    draws, patches = 20_000, 64
    removed = RandomMasker(patches, 0.75).propose(torch.empty(0), keys_of(draws), torch.nn.Identity(), 0.0).mask.mean(0)
    deviation = (0.75 * 0.25 / draws) ** 0.5
    assert ((removed - 0.75).abs() < 4.5 * deviation).all()
    assert (removed - 0.75).std() > 0.5 * deviation  # the draws are not one mask repeated


def test_keep_lowest_keeps_in_ascending_order_of_noise():
    mask = keep_lowest(torch.tensor([[0.9, 0.1, 0.5, 0.3]]), 0.5)
    assert mask.ids_keep.tolist() == [[1, 3]]
    assert mask.mask.tolist() == [[1, 0, 1, 0]]
    assert mask.ids_restore.tolist() == [[3, 0, 2, 1]]


def test_a_ratio_that_keeps_no_patch_is_refused():
    with pytest.raises(ValueError, match=r"mask_ratio is 0.99.* keeps 0 of 64"):
        RandomMasker(64, 0.99)
