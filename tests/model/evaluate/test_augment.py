"""Erasing and mixing of images and labels, against independent formulas."""

import numpy as np
import pytest
import torch

from mimcl.curriculum.masking.uniforms import mix64
from mimcl.model.evaluate.augment import (
    ERASING_NUMBERS,
    MIXING_NUMBERS,
    erase,
    erasing_boxes,
    mix,
    mixing_weights,
    normals,
    smooth_labels,
)


def numbers(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, columns))


def keys(rows: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 2**64, rows, np.uint64)


def test_erased_boxes_have_the_given_areas_and_aspect_ratios():
    boxes = erasing_boxes(numbers(20_000, ERASING_NUMBERS), 224, 0.25)
    erased = boxes[boxes[:, 2] > 0]
    assert len(erased) / len(boxes) == pytest.approx(0.25, abs=0.01)
    top, left, height, width = erased.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 224).all()
    assert (left + width <= 224).all()
    area = height * width / 224**2
    assert area.min() > 0.018
    assert area.max() < 0.345
    assert area.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.005)
    assert np.log(height / width).mean() == pytest.approx(0, abs=0.05)
    assert 0.28 < (height / width).min() < (height / width).max() < 3.6
    assert (top + height == 224).any()
    assert not erasing_boxes(numbers(50, ERASING_NUMBERS), 224, 0.0)[:, 2:].any()


def test_erasing_changes_the_box_alone_with_noise_that_depends_on_the_key():
    images = torch.zeros(3, 3, 16, 16)
    erase(images, np.array([[2, 3, 5, 7], [0, 0, 0, 0], [2, 3, 5, 7]]), keys(3), mix64)
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[2:7, 3:10] = True
    for place in (0, 2):
        assert (images[place][:, inside] != 0).all()
        assert not images[place][:, ~inside].any()
    assert not images[1].any()
    assert not torch.equal(images[0], images[2])
    again = torch.zeros(1, 3, 16, 16)
    erase(again, np.array([[2, 3, 5, 7]]), keys(3)[2:], mix64)
    assert torch.equal(again[0], images[2])


def test_normals_are_standard_normal():
    from scipy.stats import kstest

    found = normals(torch.from_numpy(keys(50).view(np.int64)), 401, mix64)
    assert found.shape == (50, 401)
    assert kstest(found.flatten().numpy(), "norm").pvalue > 0.01
    assert np.corrcoef(found[:, 0::2][:, :200].flatten(), found[:, 1::2].flatten())[0, 1] == pytest.approx(0, abs=0.03)


def test_mixup_mixes_images_and_labels_alike():
    images, labels = torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 0, 1])
    targets = smooth_labels(labels, 4, 0.1)
    share = np.array([0.3, 0.8])
    mixed, soft = mix(images, targets, share, np.zeros((2, 4), np.int64))
    for place, partner, own in [(0, 2, 0.3), (1, 1, 0.3), (2, 0, 0.3), (3, 5, 0.8), (4, 4, 0.8), (5, 3, 0.8)]:
        torch.testing.assert_close(mixed[place], own * images[place] + (1 - own) * images[partner])
        torch.testing.assert_close(soft[place], own * targets[place] + (1 - own) * targets[partner])


def test_cutmix_puts_the_partners_box_in_and_weighs_labels_by_area():
    numbers_of = numbers(200, MIXING_NUMBERS)
    share, boxes = mixing_weights(numbers_of, keys(200), 16, 0.0, 1.0, 0.5)
    area = boxes[:, 2] * boxes[:, 3] / 256
    np.testing.assert_allclose(share, 1 - area)
    images, targets = torch.randn(400, 3, 16, 16), smooth_labels(torch.arange(400) % 4, 4, 0.0)
    mixed, soft = mix(images, targets, share, boxes)
    for group in range(200):
        top, left, height, width = boxes[group]
        wanted = images[2 * group].clone()
        wanted[:, top : top + height, left : left + width] = images[
            2 * group + 1, :, top : top + height, left : left + width
        ]
        torch.testing.assert_close(mixed[2 * group], wanted)
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(400))


def test_shares_follow_the_beta_distribution_and_depend_on_the_group_alone():
    numbers_of, of_keys = numbers(20_000, MIXING_NUMBERS), keys(20_000)
    share, boxes = mixing_weights(numbers_of, of_keys, 224, 0.8, 1.0, 0.5)
    cut = numbers_of[:, 0] < 0.5
    assert not boxes[~cut].any()
    assert share[~cut].mean() == pytest.approx(0.5, abs=0.01)
    assert share[~cut].var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.003)  # of Beta(a, a)
    full = boxes[cut & (boxes[:, 0] > 0) & (boxes[:, 1] > 0) & (boxes[:, :2] + boxes[:, 2:] < 224).all(axis=1)]
    assert (full[:, 2] == full[:, 3]).all()
    share_alone, box = mixing_weights(numbers_of[7:9], of_keys[7:9], 224, 0.8, 1.0, 0.5)
    np.testing.assert_array_equal(share_alone, share[7:9])
    np.testing.assert_array_equal(box, boxes[7:9])
    whole, none = mixing_weights(numbers_of[:5], of_keys[:5], 224, 0.0, 0.0, 0.5)
    assert (whole == 1).all()
    assert not none.any()
    only, _ = mixing_weights(numbers_of, of_keys, 224, 0.4, 0.0, 0.5)
    assert only.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.004)


def test_a_share_of_one_changes_nothing():
    images, targets = torch.randn(4, 3, 8, 8), smooth_labels(torch.arange(4), 4, 0.1)
    mixed, soft = mix(images, targets, np.ones(2), np.zeros((2, 4), np.int64))
    assert torch.equal(mixed, images)
    assert torch.equal(soft, targets)


def test_smoothed_labels_are_probabilities():
    found = smooth_labels(torch.tensor([2, 0]), 4, 0.1)
    torch.testing.assert_close(found, torch.tensor([[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]]))
