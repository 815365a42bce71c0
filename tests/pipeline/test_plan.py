"""Plans over a subset of the samples."""

import numpy as np
import pytest
from helpers.streams import Windows

from mimcl.pipeline.plan import InOrderPlan, SubsetPlan

SOME = np.array([3, 5, 8, 13, 21])


def test_a_subset_plan_draws_only_its_samples():
    plan = Windows(len(SOME))
    among = SubsetPlan(plan, SOME)
    assert (among.draws, among.window_length, among.retries) == (plan.draws, plan.window_length, plan.retries)
    for number in range(plan.draws // plan.window_length):
        found, wanted = among.window(number), plan.window(number)
        np.testing.assert_array_equal(found.sample_ids, SOME[wanted.sample_ids])
        np.testing.assert_array_equal(found.distances, wanted.distances)
        assert (found.number, found.first_draw) == (wanted.number, wanted.first_draw)
    draws = np.array([64, 70])
    ids, distances = among.substitutes(1, draws, 2)
    wanted_ids, wanted_distances = plan.substitutes(1, draws, 2)
    np.testing.assert_array_equal(ids, SOME[wanted_ids])
    np.testing.assert_array_equal(distances, wanted_distances)
    assert among.when_ready(0) is None


def test_a_subset_of_an_in_order_plan():
    window = SubsetPlan(InOrderPlan(np.array([4, 0, 1])), SOME).window(0)
    assert window.sample_ids.tolist() == [21, 3, 5]
    with pytest.raises(IndexError):
        SubsetPlan(InOrderPlan(np.array([4])), SOME).substitutes(0, np.array([0]), 0)
