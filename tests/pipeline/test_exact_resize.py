"""Boxes resized by matrices have the bits of Pillow's filter, whatever else is in their batch."""

import numpy as np
import pytest
import torch
from helpers.images import picture
from PIL import Image

from mimcl.pipeline.augment import random_crops
from mimcl.pipeline.exact_resize import resize_boxes

BICUBIC = Image.Resampling.BICUBIC
SIZES = [(32, 32, 32), (32, 32, 24), (28, 40, 32), (64, 96, 33), (60, 20, 48), (1, 5, 16), (200, 150, 7), (3, 3, 3)]


def images_of(count, width, height):
    """Smooth pictures, noise, and extremes that overshoot, (n, H, W, 3)."""
    rng = np.random.default_rng(width)
    noise = rng.integers(0, 256, (count, height, width, 3), np.uint8)
    noise[::3] = (noise[::3] > 127) * 255
    noise[1::3] = [np.asarray(picture(number, width + 9, height + 9))[:height, :width] for number in range(count)][1::3]
    return noise


def resized(images, boxes, flips, side):
    return resize_boxes(torch.from_numpy(images).transpose(2, 3).contiguous(), boxes, flips, side)


def by_pillow(image, box, flip, side, at_once):
    left, top, width, height = box
    crop = Image.fromarray(image).crop((left, top, left + width, top + height))
    rows = crop if at_once else crop.resize((side, height), BICUBIC)
    done = rows.resize((side, side), BICUBIC)
    return np.asarray(done.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else done).transpose(2, 0, 1)


@pytest.mark.parametrize(("width", "height", "side"), SIZES)
def test_a_box_has_the_bits_of_pillow_across_rows_and_then_down_columns(width, height, side):
    images = images_of(40, width, height)
    boxes, flips = random_crops(3)(np.arange(40), np.full(40, width), np.full(40, height))
    found = resized(images, boxes, flips, side).numpy()
    assert len(np.unique(boxes[:, 2:], axis=0)) > 1 or min(width, height) == 1
    for number in range(40):
        image, box, flip = images[number], boxes[number].tolist(), flips[number]
        np.testing.assert_array_equal(found[number], by_pillow(image, box, flip, side, at_once=False))
        if box[3] <= side:  # otherwise Pillow 13 may begin with the columns
            np.testing.assert_array_equal(found[number], by_pillow(image, box, flip, side, at_once=True))


def test_a_result_does_not_depend_on_the_other_images_of_its_batch():
    images = images_of(64, 50, 40)
    boxes, flips = random_crops(5)(np.arange(64), np.full(64, 50), np.full(64, 40))
    together = resized(images, boxes, flips, 20)
    for part in (slice(0, 1), slice(7, 20), slice(40, 64)):
        assert torch.equal(resized(images[part], boxes[part], flips[part], 20), together[part])


@pytest.mark.gpu
def test_a_gpu_computes_the_same_bits_in_reduced_precision_as_well():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    images = torch.from_numpy(images_of(64, 50, 40)).transpose(2, 3).contiguous()
    boxes, flips = random_crops(5)(np.arange(64), np.full(64, 50), np.full(64, 40))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        found = resize_boxes(images.cuda(), boxes, flips, 32)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found.cpu(), resize_boxes(images, boxes, flips, 32))
