"""Scores that move: a change takes effect at a fixed window, whatever is planned when, and resumes exactly."""

import numpy as np
import pytest
import torch

from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.moving_scores import MovingScores
from mimcl.curriculum.plan import Plan
from mimcl.pipeline.augment import hash64

SAMPLES, BATCH = 200, 10
CONFIG = CurriculumConfig("proto", window=40)
FIRST = np.random.default_rng(0).normal(5, 3, SAMPLES)


def moving(scores=FIRST, config=CONFIG):
    return MovingScores(scores, config, samples=SAMPLES, batch_size=BATCH)


def plan_of(scores, config=CONFIG):
    sizes = {"samples": SAMPLES, "draws": 400, "batch_size": BATCH}
    return Plan(config, distances=None, scores=scores, seed=1, hash64=hash64, **sizes)


def changed_after(scores, position):
    """Change the scores as a program does that has just trained on the batch that ends before draw `position`."""
    scores.advance(position)
    drawn = np.arange(position % 7, SAMPLES, 7)
    scores.update(drawn, np.sin(drawn + position) * position)


def run(scores, start=0, stop=400, plan_at_once=False):
    """Train from draw `start` on, planning each window as early as it is allowed or as late as possible."""
    plan, ids, planned = plan_of(scores), {}, start // 40
    for position in range(start + BATCH, stop + 1, BATCH):
        scores.advance(position)
        needed = (position - 1) // 40
        while planned < plan.windows and (planned <= needed or (plan_at_once and plan.when_ready(planned) is None)):
            ids[planned] = plan.window(planned).sample_ids
            planned += 1
        changed_after(scores, position)
    return ids


def test_a_change_in_window_w_takes_effect_in_window_w_plus_2():
    for position, first in ((10, 2), (40, 2), (50, 3), (80, 3), (90, 4)):
        scores = moving()
        changed_after(scores, position)
        before = [scores.difficulty(window).distances for window in range((position - 1) // 40, first)]
        after = scores.difficulty(first).distances
        assert all((distances == before[0]).all() for distances in before)
        assert not (after == before[0]).all()


def test_a_change_before_the_first_step_takes_effect_at_once():
    scores = moving()
    plan = plan_of(scores)
    plan.window(0)  # looks at the scores
    scores.set(FIRST[::-1])
    np.testing.assert_array_equal(plan.window(0).sample_ids, plan_of(moving(FIRST[::-1])).window(0).sample_ids)


def test_what_is_drawn_does_not_depend_on_what_is_planned_ahead():
    late, early = run(moving()), run(moving(), plan_at_once=True)
    assert late.keys() == early.keys() == set(range(10))
    for window in late:
        np.testing.assert_array_equal(late[window], early[window])
    still = plan_of(moving())
    assert all((late[window] == still.window(window).sample_ids).all() for window in (0, 1))
    assert not any((late[window] == still.window(window).sample_ids).all() for window in range(2, 10))


def test_a_window_waits_until_its_scores_are_final():
    scores = moving()
    plan = plan_of(scores)
    assert [plan.when_ready(number) for number in (0, 1)] == [None, None]
    waiting = {number: plan.when_ready(number) for number in (2, 3)}
    scores.advance(40)
    assert not waiting[2].done()
    scores.advance(50)  # the first batch of window 1 is wanted: all changes of window 0 were made
    assert waiting[2].done()
    assert not waiting[3].done()
    assert plan.when_ready(2) is None


@pytest.mark.parametrize("position", [0, 10, 40, 70, 80, 200])
def test_a_state_continues_to_the_same_draws(position, tmp_path):
    whole = run(moving())
    scores = moving()
    run(scores, stop=position)
    torch.save(scores.state_dict(), tmp_path / "state.pt")
    resumed = moving(np.arange(SAMPLES))
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for window, ids in run(resumed, start=position).items():
        np.testing.assert_array_equal(ids, whole[window])


def test_distances_are_scores_between_the_lowest_and_the_highest():
    scores = moving()
    scaled = (FIRST - FIRST.min()) / (FIRST.max() - FIRST.min())
    np.testing.assert_allclose(
        plan_of(scores).window(0).distances, scaled[plan_of(scores).window(0).sample_ids], atol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.set(FIRST[1:]), "one for each of 200 images"),
        (lambda s: s.set(np.where(FIRST > 5, np.nan, FIRST)), "scores must be finite"),
        (lambda s: s.set(np.full(SAMPLES, 3.0)), "all scores are equal (3)"),
        (lambda s: s.update([3, 200], [1, 2]), "sample id 200 is unknown: ids are 0 to 199"),
        (lambda s: s.update([-1], [1]), "sample id -1 is unknown"),
        (lambda s: s.update([1, 2], [1]), "as many scores as sample ids"),
        (lambda s: s.update([1], [np.inf]), "scores must be finite"),
        (lambda s: s.update([1.5], [1]), "which are integers"),
    ],
)
def test_a_wrong_change_is_refused_and_changes_nothing(change, message):
    scores = moving()
    changed_after(scores, 50)
    before = scores.state_dict()
    with pytest.raises(ValueError) as refused:
        change(scores)
    assert message in str(refused.value)
    after = scores.state_dict()
    assert [first for first, _ in after["versions"]] == [first for first, _ in before["versions"]]
    assert all((a == b).all() for (_, a), (_, b) in zip(after["versions"], before["versions"], strict=True))


def test_scores_that_become_equal_by_updates_are_an_error_of_the_window_that_needs_them():
    scores = moving()
    scores.advance(10)
    scores.update(np.arange(SAMPLES), np.zeros(SAMPLES))
    with pytest.raises(ValueError, match="all scores are equal"):
        scores.difficulty(2)


def test_short_windows_are_refused():
    with pytest.raises(ValueError, match="at least 4 batches"):
        moving(config=CurriculumConfig("proto", window=30))
