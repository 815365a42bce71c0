"""Time how long training pauses when one of two hosts is killed or disconnected. Needs root and iproute2.

    python tools/bench/two_hosts.py

Both hosts are network namespaces on this machine; in each case the run must end as an uninterrupted one
does.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from helpers import ranks
from helpers.images import write_classes
from helpers.small_runs import IMAGES, assert_close_runs, train
from helpers.two_hosts import lose_b, unavailable

STEPS = 60


def main() -> None:
    if reason := unavailable():
        sys.exit(f"cannot create two hosts: {reason}")
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        write_classes(home / "imagenet", {"ant": IMAGES // 2, "bee": IMAGES // 2})
        ranks.run(home, "shard", "imagenet")
        ranks.run(home, "prototypes", "build", "--features", "sift", "--k", "3")
        ranks.run(home, *train("uninterrupted", steps=STEPS), size=2)
        for how in ("kill", "cut"):
            for conf in ("last_call_timeout=5", "last_call_timeout=30"):
                run = home / f"{how}-{conf}"
                next_step, end = lose_b(home, run, train(run, steps=STEPS), how, conf=conf)
                assert_close_runs(run, home / "uninterrupted", 1e-5)
                print(f"{how}, {conf}: next step after {next_step:.0f} s, end after {end:.0f} s", flush=True)


if __name__ == "__main__":
    main()
