"""The images of the demo: the files, their dependence on the seed, and what atypicality changes."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mimcl.cli.demo.demo_images import CLASSES, SIDE, atypicality, draw, write_images


def written(folder: Path, seed: int) -> dict[str, bytes]:
    """Relative path to content of three train images and one val image of each class."""
    write_images(folder, train=3 * len(CLASSES) + 1, val=len(CLASSES), seed=seed)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return written(tmp_path_factory.mktemp("images"), seed=1)


def test_every_class_has_equally_many_images_in_each_split(files):
    counts = Counter(tuple(path.split("/")[:2]) for path in files)
    assert counts == {("train", name): 3 for name in CLASSES} | {("val", name): 1 for name in CLASSES}


def test_they_are_jpeg_in_colour_and_of_the_stated_size(files, tmp_path):
    for content in files.values():
        (tmp_path / "image").write_bytes(content)
        with Image.open(tmp_path / "image") as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (SIDE, SIDE))
            assert np.asarray(image).std() > 10  # grey levels


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(files, tmp_path):
    assert written(tmp_path / "same", seed=1) == files
    other = written(tmp_path / "other", seed=2)
    assert not set(other.values()) & set(files.values())


def test_no_image_occurs_twice(files):
    assert len(set(files.values())) == len(files)


def test_atypicality_is_read_from_the_name(files):
    found = [atypicality(path) for path in files]
    assert all(0 <= value <= 1 for value in found)
    assert len(set(found)) > 10
    assert atypicality("images/train/dots/0007_23.jpg") == 0.23
    assert atypicality("0007_05.jpg") == 0.05
    assert atypicality("0007_100.jpg") == 1
    for name in ("0007.jpg", "0007_23.png", "photo.jpg"):
        with pytest.raises(ValueError, match="NNNN_AA.jpg"):
            atypicality(name)


@pytest.mark.parametrize("name", CLASSES)
def test_the_atypical_lie_further_from_the_mean_of_their_class(name):
    levels = np.repeat([0.05, 0.4, 0.9], 20)
    images = np.stack([draw(name, level, np.random.default_rng([3, i])) for i, level in enumerate(levels)]) / 255.0
    images /= images.mean(axis=(1, 2, 3), keepdims=True)  # the light has nothing to do with it
    distance = np.sqrt(((images - images[:20].mean(axis=0)) ** 2).mean(axis=(1, 2, 3)))
    near, middle, far = (distance[levels == level].mean() for level in np.unique(levels))
    assert near < middle < far


def test_classes_differ_only_in_the_texture():
    images = [draw(name, 0.0, np.random.default_rng(4)).astype(float) for name in CLASSES]
    ground = [image[:4, :4] for image in images]  # a corner, where no shape reaches
    for image, corner in zip(images[1:], ground[1:], strict=True):
        np.testing.assert_array_equal(corner, ground[0])
        assert abs(image - images[0]).mean() > 5


def test_an_unknown_texture_is_refused():
    with pytest.raises(ValueError, match="'plaid'"):
        draw("plaid", 0.5, np.random.default_rng(0))
