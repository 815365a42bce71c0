"""How often each sample was drawn."""

import numpy as np

from mimcl.pipeline.draw_counts import DrawCounts


def test_coverage_and_repeats():
    counts = DrawCounts(np.zeros(4, np.uint32))
    counts.add(np.array([1, 1, 3]))
    assert counts.coverage == 0.5
    assert counts.max_repeats == 2


def test_a_copy_stays_and_the_file_is_a_plain_array(tmp_path):
    counts = DrawCounts(np.zeros(3, np.uint32))
    counts.add(np.array([0, 2]))
    kept = counts.without(np.empty(0, np.int64))
    counts.add(np.array([0]))
    kept.save(tmp_path / "draw_counts.npy")
    saved = np.load(tmp_path / "draw_counts.npy", allow_pickle=False)
    assert saved.dtype == np.uint32
    np.testing.assert_array_equal(saved, [1, 0, 1])
