"""The pace of work, on a clock that the test turns."""

import pytest

from mimcl.cli.pace import Pace


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def work(pace, clock, *seconds):
    for duration in seconds:
        clock.now += duration
        pace.advance()


def test_the_first_piece_is_a_warm_up_and_fewer_than_three_others_say_nothing(clock):
    pace = Pace(clock)
    for duration in (60.0, 2.0, 2.0):
        work(pace, clock, duration)
        assert pace.left(10) is None
    work(pace, clock, 2.0)
    assert str(pace.left(100)) == "about 3 min"


def test_short_items_are_timed_together(clock):
    pace = Pace(clock)
    work(pace, clock, *[0.125] * 31)
    assert pace.left(10) is None  # 4 s make the first estimate
    work(pace, clock, 0.125)
    assert pace.left(10).median == pytest.approx(1.25)


def test_it_follows_the_recent_pace(clock):
    pace = Pace(clock)
    work(pace, clock, *[1.0] * 50)
    assert str(pace.left(300)) == "about 5 min"
    work(pace, clock, *[4.0] * 7)  # something else began to use the machine
    assert str(pace.left(300)) == "5 to 20 min"
    work(pace, clock, *[4.0] * 20)
    assert str(pace.left(300)) == "about 20 min"


def test_pauses_do_not_count(clock):
    pace = Pace(clock)
    for _ in range(10):
        work(pace, clock, 1.5, 1.5)
        with pace.paused():
            clock.now += 500.0
    found = pace.left(2)
    assert (found.low, found.median, found.high) == (3.0, 3.0, 3.0)


def test_a_long_item_that_never_ran_before_changes_nothing_yet(clock):
    pace = Pace(clock)
    work(pace, clock, *[1.0] * 10)
    clock.now += 1000.0
    assert str(pace.left(60)) == "about 60 s"
