"""Requirements of all maskers that do not learn: exact numbers, pure in the key, no state."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from mimcl.curriculum.masking.factory import make_masker
from mimcl.curriculum.masking.mask import Mask
from mimcl.curriculum.masking.masker import Masker
from mimcl.curriculum.masking.masking_config import HardPatchesConfig, LearnedMaskingConfig, MaskingConfig
from mimcl.curriculum.masking.schedule import MaskingSchedule
from mimcl.pipeline import augment

NAMES = ("random", "block", "grid", "green", "blue", "red", "purple")


def made(name: str, patches: int, ratio: float = 0.75, more: tuple[int, ...] = ()) -> Masker:
    """The parts of the model that these maskers use: number of patches and device."""
    model = SimpleNamespace(num_patches=patches, grids=(patches, *more), device=torch.device("cpu"))
    config = MaskingConfig(name, ratio)
    clock = MaskingSchedule("epoch", 1, 1)
    return make_masker(config, model, clock, hard_patches=HardPatchesConfig(), learned=LearnedMaskingConfig(), seed=0)


def keys_of(draws: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(augment.hash64(seed, np.arange(draws), augment.STREAM_MASK).view(np.int64))


def propose(name: str, side: int, ratio: float, keys: torch.Tensor, progress: float = 0.0) -> Mask:
    return made(name, side * side, ratio).propose(torch.empty(0), keys, torch.nn.Identity(), progress)


@given(st.sampled_from(NAMES), st.integers(2, 17), st.floats(0.01, 0.99), st.integers(0, 99))
@example("block", 14, 0.75, 0)
@example("grid", 7, 0.75, 0)
@example("grid", 2, 0.5, 0)
@example("block", 2, 0.75, 0)
def test_exactly_the_ratio_is_removed_and_order_is_restored(name, side, ratio, seed):
    patches, draws = side * side, 20
    kept = int(patches * (1 - ratio))
    assume(0 < kept < patches)
    mask = propose(name, side, ratio, keys_of(draws, seed))
    assert mask.ids_keep.shape == (draws, kept)
    assert mask.ids_keep.dtype == mask.ids_restore.dtype == torch.int64
    assert mask.mask.dtype == torch.float32
    assert (mask.mask.sum(1) == patches - kept).all()
    assert (mask.mask.gather(1, mask.ids_keep) == 0).all()
    assert torch.equal(mask.ids_restore.gather(1, mask.ids_keep), torch.arange(kept).expand(draws, kept))
    assert torch.equal(mask.ids_restore.sort(1).values, torch.arange(patches).expand(draws, patches))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("side", "ratio"), [(14, 0.75), (7, 0.6), (5, 0.3)])
def test_a_mask_depends_on_its_key_only(name, side, ratio):
    keys, state = keys_of(60), torch.random.get_rng_state()
    whole = propose(name, side, ratio, keys)
    shuffled = torch.from_numpy(np.random.default_rng(0).permutation(60))
    for places in (slice(31, 32), slice(0, 7), shuffled):
        part = propose(name, side, ratio, keys[places], progress=1.0)
        for of_part, of_whole in zip(part[:3], whole[:3], strict=True):
            assert torch.equal(of_part, of_whole[places])
    assert torch.equal(torch.random.get_rng_state(), state)
    # A grid has as many patterns as offsets; on small images single blocks may repeat.
    assert len(whole.mask.unique(dim=0)) > (3 if name == "grid" else 15)


@pytest.mark.parametrize("name", NAMES)
def test_there_are_no_parameters_and_no_state(name):
    masker = made(name, 64)
    assert not masker.state_dict()
    assert not list(masker.parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("ratio", "kept"), [(0.99, 0), (1e-17, 64)])
def test_a_ratio_that_keeps_or_removes_nothing_is_refused(name, ratio, kept):
    with pytest.raises(ValueError, match=f"keeps {kept} of 64"):
        made(name, 64, ratio)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, math.nan])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ValueError, match=f"masking.mask_ratio is {ratio}"):
        MaskingConfig("grid", ratio)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("side", "ratio"), [(14, 0.75), (7, 0.6), (16, 0.9)])
def test_masks_are_the_same_on_the_gpu_and_made_without_waiting_for_it(name, side, ratio):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    masker = made(name, side * side, ratio)
    on_host = masker.propose(torch.empty(0), keys_of(4096), torch.nn.Identity(), 0.0)
    masker, keys = masker.cuda(), keys_of(4096).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu = masker.propose(torch.empty(0), keys, torch.nn.Identity(), 0.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert on_gpu.mask.is_cuda
    for host, gpu in zip(on_host[:3], on_gpu[:3], strict=True):
        assert torch.equal(host, gpu.cpu())


@pytest.mark.parametrize("name", NAMES)
def test_images_of_other_sizes_get_the_masks_of_a_masker_for_that_size(name):
    masker, keys = made(name, 64, more=(9, 36)), keys_of(50)
    for patches in (64, 9, 36):
        expected = made(name, patches).propose(torch.empty(0), keys, torch.nn.Identity(), 0.0)
        found = masker.propose(torch.empty(50, patches, 3), keys, torch.nn.Identity(), 0.0)
        assert all(torch.equal(*parts) for parts in zip(found[:3], expected[:3], strict=True))
    assert not masker.state_dict()


def test_a_ratio_must_fit_every_size():
    with pytest.raises(ValueError, match="keeps 0 of 4 patches"):
        made("random", 64, 0.9, more=(4,))
