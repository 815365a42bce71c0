"""RandAugment: operations compared with Pillow's; choices that depend only on seed and draw."""

import numpy as np
import pytest
import torch
from helpers.images import picture
from PIL import Image, ImageEnhance, ImageOps
from timm.data import auto_augment as timms

from mimcl.pipeline.rand_augment import OPERATIONS, choices, rand_augment

FILL = (124, 116, 104)
NAMES = list(OPERATIONS)
MOVING = {"resample": Image.Resampling.BILINEAR, "fillcolor": FILL}


def solarize_add(image: Image.Image, level: float) -> Image.Image:
    pixels = np.asarray(image).astype(int)
    return Image.fromarray(np.where(pixels < 128, pixels + int(11 * level), pixels).astype(np.uint8))


def kept(level: float) -> int:
    """Bits; 0 are too few for Pillow's own function."""
    return 4 - int(0.4 * level)


def enhanced(kind):
    return lambda image, level: kind(image).enhance(max(0.1, 1 + 0.09 * level))


# Pillow's operation, and the grey levels it may differ by, except at a few pixels if it moves them.
EXPECTED = {
    "AutoContrast": (lambda image, _: ImageOps.autocontrast(image), 1),
    "Equalize": (lambda image, _: ImageOps.equalize(image), 0),
    "Invert": (lambda image, _: ImageOps.invert(image), 0),
    "Rotate": (lambda image, level: image.rotate(3 * level, **MOVING), 2),
    "Posterize": (lambda image, level: image.point(lambda value: value >> 8 - kept(level) << 8 - kept(level)), 0),
    "Solarize": (lambda image, level: ImageOps.solarize(image, 256 - int(25.6 * level)), 0),
    "SolarizeAdd": (solarize_add, 0),
    "Color": (enhanced(ImageEnhance.Color), 1),
    "Contrast": (enhanced(ImageEnhance.Contrast), 1),
    "Brightness": (enhanced(ImageEnhance.Brightness), 1),
    "Sharpness": (enhanced(ImageEnhance.Sharpness), 1),
    "ShearX": (lambda image, level: timms.shear_x(image, 0.03 * level, **MOVING), 2),
    "ShearY": (lambda image, level: timms.shear_y(image, 0.03 * level, **MOVING), 2),
    "TranslateX": (lambda image, level: timms.translate_x_rel(image, -0.045 * level, **MOVING), 2),
    "TranslateY": (lambda image, level: timms.translate_y_rel(image, -0.045 * level, **MOVING), 2),
}


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


@pytest.mark.parametrize("level", [9.0, 7.5, 10.0, -8.5])
@pytest.mark.parametrize("name", NAMES)
def test_operations_match_pillow(name, level):
    by_pillow, tolerance = EXPECTED[name]
    if level < 0 and name in ("AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd"):
        level = -level
    image = picture(3, 40, 40).point(lambda value: 30 + 3 * value // 5)  # with room for contrast
    found = OPERATIONS[name](tensor(image), level)
    wanted = tensor(by_pillow(image, level))
    off = (found.int() - wanted.int()).abs().amax(dim=1)
    assert found.dtype == torch.uint8
    # Where pixels were moved away, only Pillow's fill has a hard edge.
    moved = name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
    assert (off > tolerance).float().mean() <= (0.06 if moved else 0)
    assert not torch.equal(found, tensor(image))


def test_magnitudes_directions_and_operations_are_distributed_as_in_timm():
    operations, levels = choices(7, np.arange(40_000), 9.0, 0.5)
    assert operations.shape == levels.shape == (2, 40_000)
    assert (operations >= 0).mean() == pytest.approx(0.5, abs=0.01)
    used = np.bincount(operations[operations >= 0], minlength=len(NAMES))
    np.testing.assert_allclose(used / used.sum(), 1 / len(timms._RAND_INCREASING_TRANSFORMS), atol=0.004)
    assert len(NAMES) == len(timms._RAND_INCREASING_TRANSFORMS)
    rotated = levels[operations == NAMES.index("Rotate")]
    assert np.abs(rotated).mean() == pytest.approx(8.99, abs=0.03)
    assert np.abs(rotated).std() == pytest.approx(0.51, abs=0.03)  # a little is cut off at 10
    assert (rotated < 0).mean() == pytest.approx(0.5, abs=0.03)
    assert (levels[operations == NAMES.index("Solarize")] > 0).all()
    assert (levels[operations == NAMES.index("Equalize")] == 0).all()
    assert set(np.unique(2 * levels % 1)) == {0.0}
    assert np.corrcoef(operations)[0, 1] == pytest.approx(0, abs=0.02)


def test_a_draw_does_not_depend_on_its_batch_and_no_image_is_changed_in_place():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (48, 3, 16, 16), dtype=torch.uint8, generator=generator)
    draws = np.arange(100, 148)
    before, state = images.clone(), torch.get_rng_state()
    together = rand_augment(images, draws, 5, 9.0, 0.5)
    assert torch.equal(images, before)
    assert torch.equal(state, torch.get_rng_state())
    alone = torch.cat([rand_augment(images[k : k + 1], draws[k : k + 1], 5, 9.0, 0.5) for k in range(48)])
    assert torch.equal(together, alone)
    assert 0.6 < (together != images).flatten(1).any(dim=1).float().mean() < 0.95  # of all, three in four are picked
    assert not torch.equal(together, rand_augment(images, draws, 6, 9.0, 0.5))


def test_the_chosen_operations_are_applied():
    images = tensor(picture(1, 24, 24)).repeat(30, 1, 1, 1)
    operations, levels = choices(0, np.arange(30), 9.0, 0.5)
    found = rand_augment(images, np.arange(30), 0, 9.0, 0.5)
    for place in range(30):
        wanted = images[:1]
        for operation, level in zip(operations[:, place], levels[:, place], strict=True):
            if operation >= 0:
                wanted = OPERATIONS[NAMES[operation]](wanted, level)
        assert torch.equal(found[place : place + 1], wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_matches_the_cpu(name):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    images, level = tensor(picture(3, 40, 40)).repeat(4, 1, 1, 1), 9.0
    off = (OPERATIONS[name](images.cuda(), level).cpu().int() - OPERATIONS[name](images, level).int()).abs()
    # Rounding may differ; if images are moved, a pixel at the edge may be filled or not.
    assert (off > 1).float().mean() <= 0.01


@pytest.mark.gpu
def test_a_gpu_changes_the_same_images():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    images, draws = tensor(picture(3, 40, 40)).repeat(64, 1, 1, 1), np.arange(64)
    by_cpu, by_gpu = (rand_augment(images.to(where), draws, 5, 9.0, 0.5).cpu() for where in ("cpu", "cuda"))
    # An image that got another operation, or another level, differs in most of its pixels.
    off = ((by_cpu.int() - by_gpu.int()).abs() > 16).float().flatten(1).mean(dim=1)
    assert off.max() <= 0.1
    assert not torch.equal(by_gpu, images)
