"""RankMe and LiDAR against straightforward computations by numpy and scipy, and on features of known rank."""

import numpy as np
import pytest
import scipy.linalg
from sklearn.datasets import load_digits

from mimcl.model.evaluate.rank import DELTA, lidar, rank_me

DIGITS = load_digits()


def effective_rank(spectrum):
    shares = np.array([value for value in spectrum if value > 0], np.float64)
    shares /= shares.sum()
    return np.exp(-sum(share * np.log(share) for share in shares))


def slow_lidar(views, delta=DELTA):
    """By one image and one view at a time, and the generalised eigenvalue problem B v = lambda W v."""
    views = np.asarray(views, np.float64)
    images, count, width = views.shape
    means = [sum(view for view in image) / count for image in views]
    mean = sum(means) / images
    between, within = np.zeros((width, width)), np.zeros((width, width))
    for image, own in zip(views, means, strict=True):
        between += np.outer(own - mean, own - mean) / (images - 1)
        for view in image:
            within += np.outer(view - own, view - own) / (images * (count - 1))
    values = scipy.linalg.eigh(between, within + delta * np.eye(width), eigvals_only=True)
    return effective_rank(values.clip(min=0))


def orthonormal(rows, columns, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((rows, columns)))[0]


@pytest.mark.parametrize(("rows", "columns"), [(100, 12), (12, 100), (12, 12)])
def test_of_isotropic_features_all_dimensions_count(rows, columns):
    features = orthonormal(max(rows, columns), min(rows, columns))
    features = features if rows > columns else features.T
    assert rank_me(features) == pytest.approx(12, rel=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_equal_dimensions_are_counted_and_empty_ones_are_not(rank):
    features = orthonormal(200, rank) @ orthonormal(32, rank, seed=1).T
    assert rank_me(features) == pytest.approx(rank, rel=1e-4)


def test_rank_me_of_two_unequal_dimensions():
    features = np.zeros((10, 5))
    features[0, 0], features[1, 1] = 3.0, 1.0
    assert rank_me(features) == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))
    assert rank_me(-7 * features) == pytest.approx(rank_me(features))


@pytest.mark.parametrize("data", ["digits", "noise", "wide"])
def test_rank_me_agrees_with_numpy(data):
    noise = np.random.default_rng(0).standard_normal((30, 200)) * np.geomspace(1, 1e-3, 200)
    features = {"digits": DIGITS.data, "noise": noise.T, "wide": noise}[data].astype(np.float32)
    singular = np.sqrt(np.linalg.eigvalsh(np.float64(features).T @ np.float64(features)).clip(min=0))
    singular = np.sort(singular)[::-1][: min(features.shape)]
    assert rank_me(features) == pytest.approx(effective_rank(singular), rel=1e-5)
    assert rank_me(features) <= min(features.shape)


def test_collapsed_features_have_no_rank():
    assert rank_me(np.zeros((9, 4))) == 0
    constant = np.full((50, 6, 8), 0.3)
    assert rank_me(constant[:, 0]) == pytest.approx(1)
    assert lidar(constant) == 0
    assert lidar(np.zeros((50, 6, 8))) == 0
    same_images = np.broadcast_to(np.random.default_rng(0).standard_normal((1, 6, 8)), (50, 6, 8))
    assert lidar(same_images) == 0  # views differ, images do not


def digit_views(views, noise, images=300):
    """As if the views of a digit differed by noise alone."""
    rng = np.random.default_rng(0)
    return (DIGITS.data[:images, None] + noise * rng.standard_normal((images, views, 64))).astype(np.float32)


@pytest.mark.parametrize(("views", "noise"), [(2, 1.0), (5, 4.0), (20, 0.1)])
@pytest.mark.parametrize("delta", [1e-4, 1.0])
def test_lidar_agrees_with_the_generalised_eigenvalues(views, noise, delta):
    made = digit_views(views, noise)
    assert lidar(made, delta) == pytest.approx(slow_lidar(made, delta), rel=1e-5)


def test_lidar_counts_the_dimensions_in_which_images_differ_more_than_views():
    rng = np.random.default_rng(0)
    images = np.zeros((4000, 20))
    images[:, :4] = rng.standard_normal((4000, 4))
    views = images[:, None] + 0.01 * rng.standard_normal((4000, 10, 20))
    assert lidar(views) == pytest.approx(4, rel=0.01)
    noisy = images[:, None] + rng.standard_normal((4000, 10, 20)) * np.array([10.0] + 19 * [0.01])
    assert lidar(noisy) == pytest.approx(3, rel=0.01)  # the first dimension says nothing about the image


def test_lidar_is_the_same_for_features_in_another_basis_but_for_delta():
    views = digit_views(4, 1.0)
    turned = views @ orthonormal(64, 64)
    assert lidar(turned) == pytest.approx(lidar(views), rel=1e-4)
    assert lidar(views + 5) == pytest.approx(lidar(views), rel=1e-4)


def test_many_images_are_taken_in_blocks():
    views = np.random.default_rng(0).standard_normal((700, 3, 6))
    assert lidar(views) == pytest.approx(slow_lidar(views), rel=1e-6)
    assert lidar(views[:2]) == pytest.approx(1)  # two means differ in one direction


@pytest.mark.parametrize("shape", [(1, 5, 4), (5, 1, 4), (5, 4)])
def test_a_single_image_or_view_is_refused(shape):
    with pytest.raises(ValueError, match="at least 2 views of at least 2 images"):
        lidar(np.ones(shape))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(wrong):
    features = np.ones((6, 3, 4))
    features[2, 1, 0] = wrong
    for measure in (lambda: rank_me(features[:, 1]), lambda: lidar(features)):
        with pytest.raises(ValueError, match="not all finite"):
            measure()
