"""Steps without a finite gradient are skipped and recorded; too many in a row end the run."""

import json
import re

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("size", [1, 2])
def test_a_run_that_diverges_says_where_and_why(home, train, size):
    said = train(
        "--set", "optim.base_lr=1e30", "--set", "optim.warmup_epochs=0.1", "--max-nonfinite", "2", code=1, size=size
    )
    # Known one step late, or at once where a report is due.
    assert re.search("mimcl: .*[23] steps.*optim.base_lr", said)
    dumps = sorted((home / "run" / "nonfinite").iterdir())
    assert len(dumps) in (2, 3)
    dump = json.loads(dumps[0].read_text())
    assert dump["step"] == int(dumps[0].stem)
    assert dump["lr"] > 1e20
    assert [row["draw"] for row in dump["draws"]] == list(range(16 * (dump["step"] - 1), 16 * dump["step"]))
    assert {"sample_id", "distance", "loss"} <= dump["draws"][0].keys()
    assert any(f"step {dump['step']} " in line and "run/nonfinite/" in line for line in said.splitlines())
