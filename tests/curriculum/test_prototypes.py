"""Prototypes: the build on images of known typicality, and what is stored on disk."""

import io
import json
import os
import re
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers.typicality import blobs, collection, resized
from scipy.stats import spearmanr

from mimcl.curriculum import prototypes
from mimcl.curriculum.features import build_extractor
from mimcl.curriculum.prototypes import PrototypeError, PrototypeSet, build_prototypes


def build(features, k=6, seed=0, **options):
    about = dict(features_name="pixels", features_reason="requested", index_fingerprint="a1b2")
    return build_prototypes([features], k, seed, **about, **options)


def test_build_is_deterministic_and_depends_on_its_arguments():
    features, groups = blobs(4)
    features, groups = features[::3], groups[::3]
    one, two = build(features, k=None), build(features, k=None)
    for name in ("cluster", "raw_distance", "distance", "centroids"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.info == two.info
    assert not np.array_equal(one.centroids, build(features, k=None, seed=1).centroids)
    six = build(features)
    assert len(set(zip(groups, six.cluster, strict=True))) == 6
    assert six.distance.min() == 0
    assert six.distance.max() == 1
    kept = {name: six.info[name] for name in ("format", "k", "davies_bouldin", "cluster_sizes", "samples")}
    assert kept == {
        "format": "mimcl-prototypes/1",
        "k": 6,
        "davies_bouldin": None,
        "cluster_sizes": [26, 27],
        "samples": 160,
    }
    assert min(one.info["davies_bouldin"], key=lambda score: score[1])[0] == one.info["k"]


def test_identical_images_are_refused():
    with pytest.raises(ValueError, match="distances are equal"):
        build(np.ones((50, 4), np.float32), k=2)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("spec", "k", "least"),
    [("pixels", 8, 0.8), ("pixels", None, 0.8), pytest.param("sift", 8, 0.6, marks=pytest.mark.slow)],
)
def test_distance_follows_corruption(spec, k, least, seed):
    images, _, corruption = collection(seed, families=8, each=60)
    extractor, _ = build_extractor(spec)
    images = torch.from_numpy(resized(images, extractor.image_size))
    extractor.fit(images)
    made = build(extractor(images), k=k, seed=seed)
    agreement = spearmanr(made.distance, corruption).statistic
    print(f"{spec}, K = {made.info['k']}, seed {seed}: Spearman correlation {agreement:.3f}")
    assert agreement >= least
    assert made.distance[corruption < 0.1].mean() + 0.4 < made.distance[corruption > 0.9].mean()


@pytest.fixture
def made():
    return build(blobs(5)[0])


@pytest.mark.parametrize("where", [b"prototypes", "é 日".encode(), b"raw\xe9"])
def test_stored_set_comes_back_memory_mapped(tmp_path, made, where):
    folder = tmp_path / os.fsdecode(where) / "default"
    made.save(folder)
    assert sorted(os.listdir(folder)) == ["centroids.npy", "prototypes.json", "train.arrow"]
    assert os.listdir(folder.parent) == ["default"]
    back = PrototypeSet.load(folder, "a1b2")
    for name in ("cluster", "raw_distance", "distance", "centroids"):
        before, after = getattr(made, name), getattr(back, name)
        assert before.dtype == after.dtype
        assert not after.flags.writeable
        np.testing.assert_array_equal(before, after)
    assert back.info == made.info
    with open(folder / "train.arrow", "rb") as file:
        stored = pa.ipc.open_file(file)
        assert stored.num_record_batches == 1
        assert stored.schema.names == ["cluster", "raw_distance", "distance"]
        assert stored.schema.types == [pa.int32(), pa.float32(), pa.float32()]


def edit(folder, **changes):
    text = json.loads((folder / "prototypes.json").read_text()) | changes
    (folder / "prototypes.json").write_text(json.dumps(text))


def flip_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replaced(folder, name, content):
    """Replace an array's bytes, and its digest."""
    (folder / name).write_bytes(content)
    digests = json.loads((folder / "prototypes.json").read_text())["xxh128"]
    edit(folder, xxh128=digests | {name: prototypes._digest(folder / name)})


def other_column(folder, name, change, kind=None):
    with pa.ipc.open_file(str(folder / "train.arrow")) as file:
        batch = file.get_batch(0)
    column = batch[name].to_numpy().copy()
    place = batch.schema.get_field_index(name)
    batch = batch.set_column(place, name, pa.array(change(column), kind))
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    replaced(folder, "train.arrow", sink.getvalue())


def last(value):
    def change(column):
        column[-1] = value
        return column

    return change


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def pipe(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)


REFUSED = {
    "missing": (shutil.rmtree, "no prototypes in"),
    "json missing": (lambda folder: (folder / "prototypes.json").unlink(), "no prototypes in"),
    "another index": (lambda folder: edit(folder, index_fingerprint="c3d4"), "c3d4.*a1b2"),
    "newer format": (lambda folder: edit(folder, format="mimcl-prototypes/2"), "mimcl-prototypes/2"),
    "json cut": (lambda folder: cut(folder / "prototypes.json"), "is damaged"),
    "json a list": (lambda folder: (folder / "prototypes.json").write_text("[1]"), "is damaged"),
    "json binary": (lambda folder: (folder / "prototypes.json").write_bytes(b"\xff\xfe\x00"), "is damaged"),
    "arrow cut": (lambda folder: cut(folder / "train.arrow"), "is damaged"),
    "arrow empty": (lambda folder: (folder / "train.arrow").write_bytes(b""), "is damaged"),
    "arrow missing": (lambda folder: (folder / "train.arrow").unlink(), "is damaged"),
    "arrow bit": (lambda folder: flip_byte(folder / "train.arrow"), "is damaged"),
    "centroids bit": (lambda folder: flip_byte(folder / "centroids.npy"), "is damaged"),
    "json nested": (lambda folder: (folder / "prototypes.json").write_text("[" * 200_000), "is damaged"),
    "json a pipe": (lambda folder: pipe(folder, "prototypes.json"), "no prototypes in"),
    "arrow a pipe": (lambda folder: pipe(folder, "train.arrow"), r"train\.arrow"),
    "far": (lambda folder: other_column(folder, "distance", last(1.5)), "distance"),
    "near": (lambda folder: other_column(folder, "distance", last(-0.1)), "distance"),
    "nan": (lambda folder: other_column(folder, "distance", last(np.nan)), "distance"),
    "no such cluster": (lambda folder: other_column(folder, "cluster", last(6)), "centroid"),
    "no cluster": (lambda folder: other_column(folder, "cluster", last(-1)), "in no cluster is not at distance 1"),
    "less than none": (lambda folder: other_column(folder, "cluster", last(-2)), "centroid"),
    "double": (lambda folder: other_column(folder, "distance", np.float64), "dtypes"),
    "text": (lambda folder: other_column(folder, "distance", lambda d: d.astype(str).tolist()), "is damaged"),
    "objects": (lambda folder: replaced(folder, "centroids.npy", npy(np.array([[None]]))), "is damaged"),
    "one axis": (lambda folder: replaced(folder, "centroids.npy", npy(np.zeros(6, np.float32))), "dtypes"),
    "a zip": (lambda folder: replaced(folder, "centroids.npy", b"PK\x05\x06" + bytes(18)), "is damaged"),
    "arrow none": (lambda folder: replaced(folder, "train.arrow", b"ARROW1" + bytes(100)), "is damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_set_that_does_not_fit_is_refused_in_one_line_with_advice(tmp_path, made, case):
    damage, message = REFUSED[case]
    made.save(tmp_path / "default")
    damage(tmp_path / "default")
    with pytest.raises(PrototypeError, match=message) as caught:
        PrototypeSet.load(tmp_path / "default", "a1b2")
    assert re.search("build (the set again|them first)", str(caught.value))
    assert "\n" not in str(caught.value)
