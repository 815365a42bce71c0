"""How long training stands still when one of two hosts is lost: killed, or its cable cut. Needs root and iproute2.

    python tools/bench/two_hosts.py

Both hosts are network namespaces on this machine; each way the run must end as the unbroken one does.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from helpers import ranks
from helpers.images import write_classes
from helpers.small_runs import IMAGES, assert_close_runs, train
from helpers.two_hosts import impossible, lose_b

STEPS = 60


def main() -> None:
    if reason := impossible():
        sys.exit(f"two hosts cannot be had here: {reason}")
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        write_classes(home / "imagenet", {"ant": IMAGES // 2, "bee": IMAGES // 2})
        ranks.run(home, "shard", "imagenet")
        ranks.run(home, "prototypes", "build", "--features", "sift", "--k", "3")
        ranks.run(home, *train("unbroken", steps=STEPS), size=2)
        for how in ("kill", "cut"):
            for conf in ("last_call_timeout=5", "last_call_timeout=30"):
                run = home / f"{how}-{conf}"
                next_step, end = lose_b(home, run, train(run, steps=STEPS), how, conf=conf)
                assert_close_runs(run, home / "unbroken", 1e-5)
                print(f"{how}, {conf}: next step after {next_step:.0f} s, end after {end:.0f} s", flush=True)


if __name__ == "__main__":
    main()
