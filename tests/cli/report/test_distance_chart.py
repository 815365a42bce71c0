"""The histogram of distances: images are counted, and draws follow the softmax that the run drew by."""

import math

import numpy as np
import pytest

from mimcl.cli.report.distance_chart import distance_chart
from mimcl.cli.report.run_prototypes import RunPrototypes
from mimcl.cli.report.run_record import Table
from mimcl.curriculum.balance import Balance
from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.prototypes import PrototypeSet
from mimcl.curriculum.temperature import uniform_fraction

IMAGES, BINS = 500, 40
TAUS = (0.03, 0.1, 0.4, math.nan)


def prototypes(name="proto", balanced=False, info=None):
    rng = np.random.default_rng(0)
    distance = rng.beta(2, 3, IMAGES).astype(np.float32)
    distance[:10], distance[10:20] = 0, 1
    cluster = rng.integers(0, 4, IMAGES).astype(np.int32)
    found = PrototypeSet(cluster, distance, distance, np.zeros((4, 2), np.float32), info or {})
    balance = Balance.of(cluster) if balanced else None
    return RunPrototypes(found, CurriculumConfig(name, balance=balanced), balance, "x.csv" if info else "")


def windows(taus=TAUS, last_fraction=None):
    fractions = [0.1] * (len(taus) - 1) + [uniform_fraction(IMAGES) if last_fraction is None else last_fraction]
    draws = 1000 * np.arange(len(taus))
    return Table(draws, {"temperature": np.array(taus), "effective_fraction": np.array(fractions)})


def histogram(distance, weights=None):
    return np.histogram(distance, bins=BINS, range=(0, 1), weights=weights)[0]


@pytest.mark.parametrize("name", ["proto", "anti"])
def test_draws_follow_the_softmax_at_the_start_the_middle_and_the_end(name):
    made = prototypes(name)
    distance = made.found.distance.astype(np.float64)
    chart = distance_chart(windows(), made)
    bars, start, middle, end = chart.series
    assert bars.bars
    np.testing.assert_array_equal(bars.y, histogram(distance))
    assert sum(bars.y) == chart.whole == IMAGES
    h = 1 - distance if name == "anti" else distance
    for series, tau in ((start, 0.03), (middle, 0.1)):
        p = np.exp(-h / tau) / np.exp(-h / tau).sum()
        np.testing.assert_allclose(series.y, IMAGES * histogram(distance, p), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(end.y, bars.y, atol=1e-3)  # uniform: the tops of the bars
    assert [frame.label for frame in chart.frames] == [
        "0 samples, temperature 0.03",
        "1,000 samples, temperature 0.1",
        "2,000 samples, temperature 0.4",
        "3,000 samples, uniform draws",
    ]
    assert (chart.frames[0].y, chart.frames[1].y, chart.frames[-1].y) == (start.y, middle.y, end.y)


def test_with_balance_every_cluster_has_its_mass():
    made = prototypes(balanced=True)
    distance, cluster = made.found.distance.astype(np.float64), made.found.cluster
    p = np.zeros(IMAGES)
    for number in range(4):
        inside = cluster == number
        weights = np.exp(-distance[inside] / 0.03)
        p[inside] = weights / weights.sum() / 4
    chart = distance_chart(windows(), made)
    np.testing.assert_allclose(chart.series[1].y, IMAGES * histogram(distance, p), rtol=1e-2, atol=0.05)
    np.testing.assert_allclose(chart.series[-1].y, chart.series[0].y, atol=1e-3)
    # At infinite temperature within the curriculum, clusters still have equal mass.
    p = 1 / (4 * np.bincount(cluster)[cluster])
    still = distance_chart(windows(last_fraction=0.6), made)
    np.testing.assert_allclose(still.series[-1].y, IMAGES * histogram(distance, p), rtol=1e-3)


def test_a_long_run_has_few_frames_with_both_ends():
    taus = np.linspace(0.05, 0.5, 1000)
    chart = distance_chart(windows(taus), prototypes())
    assert len(chart.frames) == 41
    assert chart.frames[0].label.startswith("0 samples")
    assert chart.frames[-1].label.startswith("999,000 samples")


def test_imported_scores_are_called_scores():
    assert "score" in distance_chart(windows(), prototypes(info={"scores": {"name": "x"}})).note
    assert "distance" in distance_chart(windows(), prototypes()).note
