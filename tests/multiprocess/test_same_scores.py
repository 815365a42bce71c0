"""Scores are the same on all processes: given on all, or sent by rank 0; anything else is refused on all of them."""

import pytest
from helpers.gloo_ranks import given_scores, run_ranks

pytestmark = pytest.mark.slow
SCORES = [1.0, 2.5, -3.0]


@pytest.mark.parametrize("given", [[SCORES] * 3, [SCORES, None, None]], ids=["on all", "on rank 0"])
def test_all_processes_have_the_scores(given):
    assert run_ranks(3, given_scores, given) == [SCORES] * 3


def test_no_process_gives_any():
    assert run_ranks(2, given_scores, [None, None]) == [None, None]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([SCORES, SCORES, [1.0, 2.5, 3.0]], "scores differ between ranks 0 and 2; give the same on all"),
        ([SCORES, SCORES[:2], SCORES], "scores differ between ranks 0 and 1"),
        ([None, SCORES, None], "scores came from rank 1 of 3 processes; give them on all, or on rank 0"),
        ([SCORES, None, SCORES], "scores came from ranks 0, 2 of 3 processes"),
    ],
)
def test_different_scores_are_one_clear_line_on_every_process(given, message):
    results = run_ranks(3, given_scores, given)
    assert all(result.startswith("ConfigError: ") and message in result for result in results)
    assert not any("\n" in result for result in results)
