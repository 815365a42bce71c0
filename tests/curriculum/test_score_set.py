"""Sets of scores: scaled over all images, bad images last, whatever the clusters."""

import numpy as np
import pytest

from mimcl.curriculum.prototypes import PrototypeError, PrototypeSet
from mimcl.curriculum.score_set import make_score_set

SOURCE, INFO = {"name": "losses.csv"}, {"index_fingerprint": "abc"}


def made(scores, cluster=None):
    scores = np.asarray(scores)
    return make_score_set(scores, np.zeros(len(scores), np.int32) if cluster is None else cluster, SOURCE, INFO)


@pytest.mark.parametrize(
    ("scores", "distance"),
    [
        ([3.0, 1.0, 2.0, 5.0], [0.5, 0, 0.25, 1]),
        ([-1, -3, 1, 0], [0.5, 0, 1, 0.75]),
        (np.array([1e9, 1e9 + 2, 1e9 + 1]), [0, 1, 0.5]),  # float32 cannot tell them apart
        (np.array([0, 1, 2**24 + 1, 2**24]), [0, 2**-24, 1, 1]),
        (np.float32([3e38, -3e38, 0]), [1, 0, 0.5]),  # whose difference float32 cannot hold
    ],
    ids=str,
)
def test_scores_are_scaled_to_distances(scores, distance):
    found = made(scores)
    np.testing.assert_allclose(found.distance, distance, rtol=1e-6, atol=1e-9)
    assert found.distance.dtype == found.raw_distance.dtype == found.centroids.dtype == np.float32
    np.testing.assert_allclose(found.raw_distance, scores, rtol=1e-7)
    assert found.info["scores"] == {**SOURCE, "lowest": float(min(scores)), "highest": float(max(scores))}
    assert (found.info["k"], found.centroids.shape) == (1, (1, 1))
    np.testing.assert_allclose(found.centroids[0, 0], np.mean(np.float64(scores)), rtol=1e-6)


def test_the_scale_is_one_for_all_clusters():
    found = made(np.array([0.0, 1, 2, 4]), np.array([0, 0, 1, 1], np.int32))
    np.testing.assert_array_equal(found.distance, [0, 0.25, 0.5, 1])
    np.testing.assert_array_equal(found.centroids, [[0.5], [3]])
    assert found.info["cluster_sizes"] == [2, 2]


def test_the_score_of_a_bad_image_does_not_count():
    scores = np.array([2.0, np.nan, 3, np.inf, 4])
    found = made(scores, np.array([0, -1, 0, -1, 0], np.int32))
    np.testing.assert_array_equal(found.distance, [0, 1, 0.5, 1, 1])
    np.testing.assert_array_equal(np.isnan(found.raw_distance), [False, True, False, True, False])
    assert (found.info["scores"]["lowest"], found.info["scores"]["highest"]) == (2, 4)


@pytest.mark.parametrize("scores", [[1.5, 1.5], [7], [np.nan, 2.0, 2.0]])
def test_equal_scores_are_an_error(scores):
    cluster = np.where(np.isnan(scores), -1, 0).astype(np.int32)
    with pytest.raises(ValueError, match="all scores are equal"):
        made(np.array(scores), cluster)


def test_a_set_is_stored_and_loaded(tmp_path):
    found = made(np.arange(5.0))
    found.save(tmp_path)
    loaded = PrototypeSet.load(tmp_path, "abc")
    assert loaded.info == found.info
    assert loaded.described == "scores losses.csv"
    np.testing.assert_array_equal(loaded.distance, found.distance)
    with pytest.raises(PrototypeError, match=r"made for index abc, not def; make the set again from scores") as error:
        PrototypeSet.load(tmp_path, "def", build="mimcl prototypes build")
    assert "mimcl" not in str(error.value)


@pytest.mark.parametrize("scores", ['"text"', "[]", "{}", '{"name": "x", "lowest": 1.0, "highest": "2"}', "null"])
def test_a_damaged_description_is_one_line(tmp_path, scores):
    made(np.arange(5.0)).save(tmp_path)
    text = (tmp_path / "prototypes.json").read_text()
    start, end = text.index('"scores": ') + len('"scores": '), text.index("}") + 1
    (tmp_path / "prototypes.json").write_text(text[:start] + scores + text[end:])
    with pytest.raises(PrototypeError, match="is damaged") as error:
        PrototypeSet.load(tmp_path, "abc")
    assert "\n" not in str(error.value)
