"""The hash behind boxes and flips, and their distributions."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, kstest
from torchvision.transforms import RandomResizedCrop

from mimcl.pipeline import augment
from mimcl.pipeline.augment import (
    central_crops,
    crop_boxes,
    evaluation_boxes,
    flips,
    hash64,
    mix64,
    random_crops,
    uniforms,
)

GAMMA = 0x9E3779B97F4A7C15
DRAWS = 20_000


def test_splitmix64_of_the_public_definition():
    # The n-th output of the generator seeded with s is mix64(s + n gamma).
    with np.errstate(over="ignore"):
        zero = mix64(np.arange(3, dtype=np.uint64) * np.uint64(GAMMA))
        seeded = mix64(np.uint64(1234567) + np.arange(5, dtype=np.uint64) * np.uint64(GAMMA))
    assert [int(x) for x in zero] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [int(x) for x in seeded] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def reference_hash(seed, draw, stream) -> int:
    def mix(x):
        mask = 2**64 - 1
        z = (x + GAMMA) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    return mix(mix(mix(seed % 2**64) ^ draw) ^ stream)


@given(st.integers(-(2**63), 2**64 - 1), st.integers(0, 2**63 - 1), st.integers(0, 2**16))
def test_hash64_is_its_definition(seed, draw, stream):
    assert hash64(seed, draw, stream).tolist() == [reference_hash(seed, draw, stream)]
    assert hash64(seed, np.array([draw, 0]), stream)[0] == reference_hash(seed, draw, stream)


def test_hash64_is_pure_and_sensitive_to_each_argument():
    draws = np.arange(1000)
    base = hash64(7, draws, 1)
    assert (base == hash64(7, draws, 1)).all()
    assert (base[::-1] == hash64(7, draws[::-1], 1)).all()
    assert (base[500:] == hash64(7, draws[500:], 1)).all()
    assert draws.tolist() == list(range(1000))  # not written to
    everything = np.concatenate([hash64(seed, draws, stream) for seed in (7, 8, -7) for stream in (1, 2, 3, 16)])
    assert len(np.unique(everything)) == len(everything)
    for other in (hash64(8, draws, 1), hash64(7, draws + 1, 1), hash64(7, draws, 2)):
        changed = np.bitwise_count(base ^ other).mean()
        assert 31 < changed < 33  # of 64 bits


def test_uniforms():
    numbers = uniforms(hash64(0, np.arange(5000), 1), 22)
    assert numbers.shape == (5000, 22)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert kstest(numbers.ravel(), "uniform").pvalue > 0.001
    for column in numbers.T:
        assert kstest(column, "uniform").pvalue > 1e-4
    correlation = np.corrcoef(numbers.T) - np.eye(22)
    assert np.abs(correlation).max() < 5 / np.sqrt(5000)
    extremes = uniforms(np.array([0, 2**64 - 1], np.uint64), 4)
    assert ((extremes >= 0) & (extremes < 1)).all()


SHAPES = [(500, 375), (375, 500), (32, 32), (224, 400), (1, 1), (1000, 10), (10, 1000), (2, 3), (64, 48)]


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_crop_boxes_are_distributed_as_in_torchvision(width, height):
    count = 4000
    image = torch.empty(1, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(width * 10_000 + height)
        theirs = np.array(
            [RandomResizedCrop.get_params(image, (0.2, 1.0), (3 / 4, 4 / 3)) for _ in range(count)], np.float64
        )[:, [1, 0, 3, 2]]  # top, left, height, width
    hashes = hash64(5, np.arange(DRAWS), augment.STREAM_CROP)
    ours = crop_boxes(hashes, np.full(DRAWS, width), np.full(DRAWS, height)).astype(np.float64)

    def quantities(boxes):
        left, top, w, h = boxes.T
        return {"left": left, "top": top, "width": w, "height": h, "area": w * h, "aspect": w / h, "right": left + w}

    for name, values in quantities(ours).items():
        p = kstest(values, quantities(theirs)[name]).pvalue
        assert p > 1e-3, (name, p)


def test_a_crop_that_never_fits_is_the_central_one():
    hashes = hash64(0, np.arange(100), 1)
    for (width, height), box in {(1000, 10): (493, 0, 13, 10), (10, 1000): (0, 493, 10, 13)}.items():
        boxes = crop_boxes(hashes, np.full(100, width), np.full(100, height))
        assert np.unique(boxes, axis=0).tolist() == [list(box)]


SIZES = st.one_of(st.integers(1, 70), st.integers(1, 20_000))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=50), st.integers(0, 2**63))
def test_boxes_are_inside_the_image(sizes, seed):
    width, height = np.array(sizes, np.int32).T
    for boxes in (crop_boxes(hash64(seed, np.arange(len(sizes)), 1), width, height), evaluation_boxes(width, height)):
        assert boxes.dtype == np.int32
        left, top, w, h = boxes.T.astype(np.int64)
        assert (left >= 0).all()
        assert (top >= 0).all()
        assert (w >= 1).all()
        assert (h >= 1).all()
        assert (left + w <= width).all()
        assert (top + h <= height).all()


def test_flips_half():
    mirrored = flips(hash64(3, np.arange(100_000), augment.STREAM_FLIP))
    assert mirrored.dtype == bool
    assert binomtest(int(mirrored.sum()), 100_000).pvalue > 0.001
    assert binomtest(int((mirrored[1:] == mirrored[:-1]).sum()), 99_999).pvalue > 0.001


def test_evaluation_boxes():
    width, height = np.array([256, 500, 375, 1, 2, 1000]), np.array([256, 375, 500, 1, 9, 10])
    assert evaluation_boxes(width, height).tolist() == [
        [16, 16, 224, 224],
        [86, 23, 328, 328],
        [23, 86, 328, 328],
        [0, 0, 1, 1],
        [0, 3, 2, 2],
        [495, 0, 9, 9],
    ]


def test_random_crops_are_functions_of_the_draw():
    draws, rng = np.arange(300), np.random.default_rng(0)
    width, height = rng.integers(1, 600, 300), rng.integers(1, 600, 300)
    boxes, mirrored = random_crops(5)(draws, width, height)
    order = rng.permutation(300)
    again, mirrored_again = random_crops(5)(draws[order], width[order], height[order])
    assert (again == boxes[order]).all()
    assert (mirrored_again == mirrored[order]).all()
    assert (boxes != random_crops(6)(draws, width, height)[0]).any(axis=1).mean() > 0.6
    wide = np.full(300, 400)
    left = random_crops(5)(draws, wide, wide)[0][:, 0]
    assert abs(np.corrcoef(left, mirrored)[0, 1]) < 0.2  # the flip does not depend on the crop


def test_central_crops_are_never_flipped():
    boxes, mirrored = central_crops(np.arange(2), np.array([256, 40]), np.array([256, 80]))
    assert boxes.tolist() == evaluation_boxes(np.array([256, 40]), np.array([256, 80])).tolist()
    assert not mirrored.any()


def test_stream_numbers_are_distinct():
    root = Path(augment.__file__).parents[1]
    numbers = {}
    for path in (root / "pipeline" / "augment.py", *sorted((root / "curriculum").rglob("*.py"))):
        for node in ast.parse(path.read_text()).body:
            name = getattr(node.targets[0], "id", "") if isinstance(node, ast.Assign) else ""
            if name.startswith("STREAM_"):
                numbers[path.name, name] = node.value.value
    assert len(numbers) >= 3
    # The number for masks may occur in several files: that counts once.
    uses = {(name if name == "STREAM_MASK" else (path, name)): number for (path, name), number in numbers.items()}
    assert len(set(uses.values())) == len(uses)
    for (path, name), number in numbers.items():
        assert (number < 16) == (path == "augment.py" or name == "STREAM_MASK")
