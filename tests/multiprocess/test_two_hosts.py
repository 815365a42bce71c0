"""Two hosts, one of which is killed. The same with its cable cut takes longer: tools/bench/two_hosts.py."""

import pytest
from helpers import ranks
from helpers.small_runs import FEW_PATCHES, assert_close_runs, steps_of, train
from helpers.two_hosts import lose_b, unavailable

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 64
CONF = "last_call_timeout=3,keep_alive_interval=1"  # torchrun waits 30 s for more hosts, and 15 for signs of life


@pytest.mark.exhaustive
def test_the_other_host_continues_alone(home, tmp_path):
    if reason := unavailable():
        pytest.skip(reason)
    run = tmp_path / "run"
    lose_b(home, run, train(run, FEW_PATCHES, steps=STEPS), "kill", conf=CONF)
    assert " at draw " in (home / "a.log").read_text()
    assert steps_of(run) == list(range(1, STEPS + 1))
    ranks.run(home, *train(tmp_path / "unbroken", FEW_PATCHES, steps=STEPS), size=2)
    assert_close_runs(run, tmp_path / "unbroken", 1e-5)
