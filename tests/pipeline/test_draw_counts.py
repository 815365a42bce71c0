"""draw_counts.npy agrees with the plan at any position, whatever moment the file is of."""

import numpy as np
import pytest

from mimcl.curriculum.sampler import CurriculumConfig, Plan
from mimcl.pipeline.augment import hash64
from mimcl.pipeline.draw_counts import DrawCounts

N, BATCH = 50, 8


@pytest.fixture
def plan():
    distances = np.linspace(0, 1, N, dtype=np.float32)
    config = CurriculumConfig(name="proto", share=0.5)
    return Plan(config, samples=N, distances=distances, draws=200, batch_size=BATCH, seed=1, hash64=hash64)


def expected(plan, windows):
    counts = np.zeros(N, np.int64)
    for number in range(windows):
        np.add.at(counts, plan.window(number).sample_ids, 1)
    return counts


@pytest.mark.parametrize("file_of", [None, 0, 1, 3, 7])
@pytest.mark.parametrize(("position", "windows"), [(0, 0), (8, 1), (32, 1), (40, 2), (96, 3), (200, 7)])
def test_counts_are_of_the_windows_begun(plan, tmp_path, file_of, position, windows):
    assert plan.window_length == 32
    assert plan.windows == 7
    path = tmp_path / "draw_counts.npy"
    if file_of is not None:
        DrawCounts(expected(plan, file_of).astype(np.uint32)).save(path)
    counts = DrawCounts.at(position, plan, N, path)
    np.testing.assert_array_equal(counts.counts, expected(plan, windows))


def test_a_file_of_another_data_set_is_not_used(plan, tmp_path):
    path = tmp_path / "draw_counts.npy"
    np.save(path, np.full(N + 1, 9, np.uint32))
    np.testing.assert_array_equal(DrawCounts.at(32, plan, N, path).counts, expected(plan, 1))


def test_a_damaged_file_is_counted_anew(plan, tmp_path):
    path = tmp_path / "draw_counts.npy"
    path.write_bytes(b"no array")
    np.testing.assert_array_equal(DrawCounts.at(40, plan, N, path).counts, expected(plan, 2))


def test_coverage_and_repeats():
    counts = DrawCounts(np.zeros(4, np.uint32))
    counts.add(np.array([1, 1, 3]))
    assert counts.coverage == 0.5
    assert counts.max_repeats == 2
